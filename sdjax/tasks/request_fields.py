"""Checks values of fields of `sdjax.tasks.request.Request`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.checks import arguments
from sdjax.checks.arguments import shown
from sdjax.prompts.language import LONGEST
from sdjax.samplers import Schedule, make_schedule
from sdjax.samplers.known_schedules import is_automatic
from sdjax.schedule import LAST_ALPHAS


def checked_schedule(schedule: Any, options: Any, spacing: Any) -> str | Schedule | None:
    """Returns the schedule with its options. Raises ValueError for options or a spacing that do not go with it."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f'schedule_options is a dictionary, such as {{"rho": 5}}; got {shown(options)}')
    if schedule is None or (is_automatic(schedule) and not options):
        if options:
            raise ValueError("schedule_options has no effect without schedule: name one, such as karras")
        return None
    if spacing is not None:
        raise ValueError("give either schedule or spacing, not both")
    return make_schedule(schedule, options)


def checked_snr(value: Any) -> str | None:
    """Returns the tool whose last alphas_cumprod is taken, or None. Raises ValueError for an unknown one."""
    if value is None or value is False:
        return None
    if value is True:
        return "diffusers"
    if not isinstance(value, str) or value not in LAST_ALPHAS:
        raise ValueError(f"zero_terminal_snr is True, False or one of {', '.join(LAST_ALPHAS)}; got {shown(value)}")
    return value


def several(value: Any) -> tuple[Any, ...]:
    """Returns a sequence as a tuple, and one value as a tuple of one."""
    return tuple(value) if arguments.is_sequence(value) else (value,)


def checked_text(name: str, value: Any) -> str:
    """Returns a text. Raises ValueError for anything else, and for one that is too long."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is a text; got {shown(value)}")
    if len(value) > LONGEST:
        raise ValueError(f"{name} has at most {LONGEST} characters; got {len(value)}")
    return str(value)


def checked_array(name: str, value: Any, axes: str) -> np.ndarray | None:
    """Returns an array, float32, with these axes; None for None. Raises ValueError for anything else."""
    if value is None:
        return None
    try:
        if np.iscomplexobj(value):
            raise TypeError
        out = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        out = np.zeros(0, np.float32)
    if out.ndim != len(axes) or not np.isfinite(out).all():
        raise ValueError(f"{name} must be finite numbers, [{', '.join(axes)}] for each picture; got {shown(value)}")
    return out
