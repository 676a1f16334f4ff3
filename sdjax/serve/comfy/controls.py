"""The ControlNets and T2I-Adapters of a CONDITIONING as arrays of the patch `Controls`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdjax.adapters.control import Controls, ImageControl, scales
from sdjax.pipeline.model import Pipeline
from sdjax.samplers.tools import comfyui_percent_to_sigma
from sdjax.schedule import NoiseSchedule
from sdjax.serve.comfy.resizing import upscale
from sdjax.serve.comfy.values import Control, Entry
from sdjax.tasks.controls import Network, check_fits, read_network


def arrays_of(
    entries: Sequence[Entry], rows: Any, schedule: NoiseSchedule, size: tuple[int, int, int], pipe: Pipeline
) -> tuple[Controls, tuple[Any, ...], list[tuple[ImageControl, ...]]] | None:
    """Returns the patch, the networks' parameters, and the arrays of each entry; None without controls.

    Every entry has all networks; those that are not its own have the weight 0 there.
    """
    slots: dict[tuple[str, int], Control] = {}  # the k-th use of a network in an entry
    used: list[dict[tuple[str, int], Control]] = []
    for entry in entries:
        count: dict[str, int] = {}
        own: dict[tuple[str, int], Control] = {}
        for control in entry.controls:
            own[control.network, count.get(control.network, 0)] = control
            count[control.network] = count.get(control.network, 0) + 1
        used.append(own)
        slots |= {key: control for key, control in own.items() if key not in slots}
    if not slots:
        return None
    networks = {key: read_network(key[0], pipe) for key in slots}
    for network in networks.values():
        check_fits(network, pipe.config)
    patch = Controls(tuple(network.config for network in networks.values()), pipe.dtype)
    shared = tuple(network.params for network in networks.values())
    each = [
        tuple(
            _image(own.get(key, slots[key]), network, key in own, rows, schedule, size, pipe)
            for key, network in networks.items()
        )
        for own in used
    ]
    return patch, shared, each


def _image(
    control: Control, network: Network, is_used: bool, rows: Any, schedule: NoiseSchedule, size: tuple[int, int, int],
    pipe: Pipeline,
) -> ImageControl:  # fmt: skip
    b, h, w = size
    factor, config = pipe.config.vae.factor, network.config
    hint = upscale(control.hint, h * factor, w * factor, "nearest-exact", crop="center")
    if config.hint_channels == 1 and hint.shape[-1] == 3:
        hint = hint.mean(-1, keepdims=True)
    if hint.shape[-1] != config.hint_channels:
        raise ValueError(f"the control {network.name} takes hints of {config.hint_channels} channels")
    weight = np.float32(control.strength if is_used else 0.0) * scales("balanced", config.outputs)
    during = np.asarray(_during(control, rows, schedule), np.float32)
    return ImageControl(
        hint=hint[np.arange(b) % len(hint)].astype(np.float32), weights=np.stack([weight] * b),
        mask=np.ones((b, h, w, 1), np.float32), during=np.stack([during] * b),
    )  # fmt: skip


def _during(control: Control, rows: Any, schedule: NoiseSchedule) -> tuple[float, float]:
    """Returns (highest, lowest): it works at timesteps t with highest >= t > lowest."""
    first, last = (comfyui_percent_to_sigma(schedule, share) for share in (control.start, control.end))
    sigma, timestep = np.asarray(rows.sigma, np.float64), np.asarray(rows.timestep, np.float64)
    if len(sigma) == 1:  # a solver that chooses its steps while it runs
        ends = schedule.timestep(np.clip([first, last], schedule.sigmas[0], schedule.sigmas[-1]), "log_sigma")
        return (np.inf if control.start <= 0 else float(ends[0])), (-np.inf if control.end >= 1 else float(ends[1]))
    on = (first >= sigma) & (sigma >= last)
    if not on.any():
        return -np.inf, np.inf
    below = timestep[(sigma < last)]
    highest = float(timestep[on].max())
    return (np.inf if control.start <= 0 else highest), float(below.max()) if len(below) else -np.inf
