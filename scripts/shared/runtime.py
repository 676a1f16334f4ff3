"""Applies the shared flags to JAX: dtype, devices, sampler, progress."""

import argparse
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sdjax.checks.notes import Note

if TYPE_CHECKING:
    from sdjax.schedule import NoiseSchedule


def compute_dtype(args: argparse.Namespace) -> str | None:
    """Returns the dtype that --dtype and --precision ask for; None if the device decides.

    Raises ValueError if they contradict each other.
    """
    if args.precision != "full":
        return args.dtype
    if args.dtype not in (None, "float32"):
        raise ValueError(f"--precision full means float32, --dtype says {args.dtype}; give one of them")
    return "float32"


def set_up_jax(device: str | None) -> list[Any] | None:
    """Returns the devices to use; None for all of the best kind.

    Raises ValueError for a device that does not exist.
    """
    import jax

    named = re.fullmatch(r"([a-z]+)(?::(\d{1,4}))?", device or "cpu")
    if named is None:
        raise ValueError(f"--device is a kind, such as cpu or gpu, or one of several, such as gpu:1; got {device!r}")
    name, index = named.groups()
    if device is not None and name == "cpu":  # so that JAX does not look for accelerators
        jax.config.update("jax_platforms", "cpu")
    if device is None:
        return None
    try:
        devices = jax.local_devices(backend=name)
    except RuntimeError:
        kinds = sorted({d.platform for d in jax.local_devices()} | {"cpu"})
        raise ValueError(f"--device {device}: JAX has no {name} here; it has {', '.join(kinds)}") from None
    if index is None:
        return devices
    if int(index) >= len(devices):
        raise ValueError(f"--device {device}: there are {len(devices)} of that kind, and the first is {name}:0")
    return [devices[int(index)]]


def first_device(devices: list[Any] | None) -> list[Any]:
    """Returns the first of the devices, or of all devices of the best kind for None."""
    import jax

    return (devices or jax.local_devices())[:1]


def make_schedule(name: str | None, settings: Sequence[str]) -> Any:
    """Returns the schedule of --schedule with its options set from NAME=VALUE texts; None if there is no name.

    Raises ValueError for an unknown name or option, or a value out of range.
    """
    from sdjax.samplers import make_schedule
    from sdjax.samplers.known_schedules import is_automatic

    if name is None or (is_automatic(name) and not settings):
        return None
    return make_schedule(name, read_options(settings, "--schedule-option", "the schedule's option {}"))


def read_options(texts: Sequence[str], flag: str, called: str) -> dict[str, str]:
    """Returns the values of NAME=VALUE texts by name. `called` is what a message calls an option.

    Raises ValueError for a text of another form, and for a name that is given twice.
    """
    options: dict[str, str] = {}
    for text in texts:
        option, equals, value = text.partition("=")
        if not equals or not option:
            raise ValueError(f"{flag} is NAME=VALUE; got {text!r}")
        if option in options:
            raise ValueError(f"{called.format(option)} is given twice: give it once")
        options[option] = value
    return options


def make_sampler(
    name: str,
    settings: Sequence[str],
    *,
    eta: float | None = None,
    schedule: "NoiseSchedule | None" = None,
    spacing: Any = None,
    tool: str | None = None,
) -> Any:
    """Returns the sampler with options set from NAME=VALUE texts, and eta and `spacing` if given.

    If `schedule` is given and nothing sets the spacing, the schedule chooses it. With `tool`, which is --compat, the
    sampler is as this tool runs it.

    Raises ValueError for an unknown name or option, or a value of the wrong type.
    """
    from sdjax.checks.effects import ignored
    from sdjax.samplers.diffusers.scheduler import DiffusersSampler
    from sdjax.samplers.schedules import SigmaList
    from sdjax.samplers.tool_sampler import ToolSampler
    from sdjax.tasks.resolve import make_sampler as choose

    default = choose(name, tool=tool)
    own: dict[str, Any] = dict(vars(default.recipe.sampler if isinstance(default, ToolSampler) else default))
    if isinstance(default, DiffusersSampler):
        own = {"eta": 0.0, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0, "spacing": ""}
    given = [text.partition("=") for text in settings]
    if eta is not None and ("eta" in own or eta != 0):  # 0 has no effect on a sampler that never adds noise
        given.append(("eta", "=", str(eta)))
    changed = {}
    twice = [option for number, (option, *_) in enumerate(given) if option in [other for other, *_ in given[:number]]]
    if twice:
        same = " (--ddim_eta is eta)" if twice[0] == "eta" else ""
        raise ValueError(f"the sampler's option {twice[0]} is given twice{same}: give it once")
    for option, equals, value in given:
        if not equals or not option:
            raise ValueError(f"--sampler-option is NAME=VALUE; got {option + equals + value!r}")
        if option not in own:
            raise ValueError(f"the sampler {name} has no {option}; it has {', '.join(own)}")
        kind = type(own[option])
        try:
            changed[option] = _READERS[kind](value)
        except (ValueError, KeyError):
            wanted = {
                bool: "true or false", int: "a whole number", float: "a number", tuple: "whole numbers with commas",
            }[kind]  # fmt: skip
            raise ValueError(f"{option} of the sampler {name} is {wanted}; got {value!r}") from None
    if spacing is not None:
        if "spacing" in changed:
            raise ValueError("--sampler-option spacing and --schedule say the same thing: leave one of them out")
        changed["spacing"] = spacing
        if "end" in changed and isinstance(spacing, SigmaList):
            raise ValueError("--sampler-option end has no effect with --schedule sigmas=...: the last sigma is the end")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # on the command line it is an error
        sampler = choose(name, schedule, tool, **changed)
    for field, otherwise in ignored(sampler.recipe.sampler if isinstance(sampler, ToolSampler) else sampler):
        if field.name in changed:  # at its default too
            raise ValueError(f"{field.name} of the sampler {name} has no effect {otherwise}: leave it out")
    return sampler


def read_guidance(names: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    """Returns the fields `guidance` and `guidance_options` of requests, empty without names.

    Raises ValueError for unknown names and options, and for values that do not fit.
    """
    if not names:
        return {}
    from sdjax.diffusion.rules import make_rules

    guidance, texts = "+".join(names), read_options(settings, "--guidance-option", "the option {} of --guidance")
    options = {option: _plain(value) for option, value in texts.items()}
    make_rules(guidance, options)
    return {"guidance": guidance, **({"guidance_options": options} if options else {})}


def _plain(text: str) -> Any:
    """Returns a text as true, false or a number if it is one."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("()").split(",") if part.strip())


_READERS: dict[type, Callable[[str], Any]] = {
    bool: {"true": True, "false": False}.__getitem__, int: int, float: float, str: str, tuple: _numbers,
}  # fmt: skip


class Interrupts:
    """Handles Ctrl-C in a block: after the first, the next `check` stops the work; the second stops at once.

    So no file is left half written. Only the main thread can catch signals.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
        if self.asked:
            raise KeyboardInterrupt

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nnote: stopping after the network's present call (Ctrl-C again: at once)", file=sys.stderr)

    def __exit__(self, *error: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


class Progress:
    """A progress bar over the network's calls of all batches, on standard error if that is a terminal."""

    def __init__(self, num_batches: int):
        from tqdm.auto import tqdm

        self.left, self.before = num_batches, 0
        self.bar = tqdm(desc="sampling", unit="call", disable=None, dynamic_ncols=True)

    def show(self, done: int, total: int) -> None:
        """Moves the bar: `done` of this batch's `total` calls. The batches to come are taken to have as many."""
        self.bar.total = self.before + total * self.left
        self.bar.update(self.before + done - self.bar.n)
        if done == total:
            self.before += total
            self.left -= 1

    def print(self, line: Any) -> None:
        """Writes a line to standard output without breaking the bar."""
        self.bar.clear()
        print(line, flush=True)
        self.bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
