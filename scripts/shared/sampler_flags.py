"""Flags of samplers and schedules, which take the names of any tool. Imports nothing heavy: every --help reads it."""

import argparse
import sys
from collections.abc import Callable

from sdjax import names
from sdjax.scripts.shared.flags import Needs

SCHEDULED = Needs(
    lambda args: args.schedule is not None or (args.sampler is not None and says_schedule(args.sampler)),
    "without --schedule: add it, or leave this flag out",
)


def add_schedule_flags(add: Callable) -> None:
    """Adds the flags that say how the noise falls, to a parser or a group."""
    add(
        "--schedule",
        type=known_schedule,
        metavar="NAME",
        help=f"how the noise falls: one of {', '.join(names.SCHEDULES)}, the name that another tool has for it, or a "
        "list, such as sigmas=14.6,7.5,2.1,0 or timesteps=999,700,300; default: the sampler's own",
    )
    add(
        "--schedule-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        needs=SCHEDULED,
        help="set an option of the schedule, such as rho=5, sigma_min=0.1 or discard_penultimate=true; may be repeated",
    )
    add(
        "--zero-terminal-snr",
        choices=names.ZERO_SNR,
        metavar="TOOL",
        help="rescale the model's noise schedule to zero terminal SNR, with the number that this tool takes for 0: "
        f"one of {', '.join(names.ZERO_SNR)}; default: as the model was trained",
    )


def sampler_names() -> tuple[str, ...]:
    """Returns our names of samplers: those of the table where a program has imported it and may have added."""
    loaded = sys.modules.get("sdjax.samplers")
    return tuple(names.SAMPLERS) if loaded is None else tuple(loaded.SAMPLERS)


def known_sampler(text: str) -> str:
    """Returns a sampler's name in any tool, for argparse. Refuses an unknown one."""
    try:
        names.find_sampler(text, more=sampler_names())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def says_schedule(text: str) -> bool:
    """Returns whether a sampler's name says the schedule too, as "DPM++ 2M Karras" does."""
    return names.find_sampler(text, more=sampler_names()).schedule is not None


def known_schedule(text: str) -> str:
    """Returns a schedule's name in any tool, or a list such as sigmas=14,1,0, for argparse. Refuses an unknown name."""
    if text.partition("=")[0] not in names.LISTS:
        loaded = sys.modules.get("sdjax.samplers")
        try:
            names.find_schedule(text, more=() if loaded is None else loaded.SCHEDULES)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text
