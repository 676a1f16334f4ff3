"""The controls of a batch as arrays: hints in the pictures' size, weights, masks, and the timesteps of each."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from sdjax import pictures
from sdjax.adapters.control import Controls, ImageControl, scales, seen_without_prompt
from sdjax.adapters.spans import make_span
from sdjax.pictures.hints import inpaint_hint
from sdjax.pictures.opening import PictureSource
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.tag_spans import Span
from sdjax.samplers import Linear, Start
from sdjax.tasks.controls import INPAINT, ControlUse
from sdjax.tasks.resolve import Resolved
from sdjax.typing import Params

Pixels = UInt8[np.ndarray, "h w c"]


class Seen(NamedTuple):
    """What a task works on: a picture in the size that is made, and its mask (white is repainted), None without one.

    `whole` is the (height, width) of the picture that the user gave, and `place` brings pixels of that size to the part
    and size that the task works on. None: the task works on all of it.
    """

    pixels: Pixels
    mask: Bool[np.ndarray, "h w"] | None = None
    whole: tuple[int, int] | None = None
    place: Callable[[Pixels], Pixels] | None = None


def seeing(requests: Sequence[Resolved], given: Sequence[Seen]) -> list[Resolved]:
    """Returns requests whose controls without a hint take the task's picture, one of `given` for each.

    Other hints and masks belong to the whole picture, and are brought to the part that the task works on.
    """
    out = []
    for request, seen in zip(requests, given, strict=True):
        controls = tuple(_seeing(use, seen) for use in request.controls)
        out.append(dataclasses.replace(request, controls=controls) if controls else request)
    return out


def _seeing(use: ControlUse, seen: Seen) -> ControlUse:
    def placed(given: PictureSource | None, method: str) -> np.ndarray | None:
        pixels = None if given is None else np.asarray(given)
        if pixels is None or seen.whole is None or seen.place is None or pixels.dtype != np.uint8:
            return pixels
        fitting = fitted(pixels if pixels.ndim == 3 else pixels[..., None], *seen.whole, use.resize, method)
        return seen.place(fitting if pixels.ndim == 3 else fitting[..., 0])

    hint, hidden = placed(use.hint, "lanczos"), placed(use.hidden, "nearest")
    if hint is None:
        hint = seen.pixels
    if use.preprocess == INPAINT and hidden is None and seen.mask is not None:
        hidden = np.where(seen.mask, np.uint8(255), np.uint8(0))
    return dataclasses.replace(use, hint=hint, hidden=hidden, mask=placed(use.mask, "lanczos"))


def control_arrays(
    requests: Sequence[Resolved], starts: Sequence[Start], pipe: Pipeline
) -> tuple[Controls, tuple[Params, ...], tuple[ImageControl, ...], tuple[ImageControl, ...]]:
    """Returns the patch of pictures with the same networks, its shared arrays, and the pictures' arrays.

    The pictures' arrays come for branches of guidance with the prompt, and for those without it. Raises ValueError for
    hints that are missing or of another size.
    """
    networks = [use.loaded for use in requests[0].controls]
    calls = [np.zeros(0) if start.rows is None else np.ravel(start.rows.timestep) for start in starts]
    own, other = [], []
    for k in range(len(networks)):
        made = [_image(one, one.controls[k], t, pipe) for one, t in zip(requests, calls, strict=True)]
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *made)
        seen = [seen_without_prompt(one.controls[k].mode, networks[k].config) for one in requests]
        own.append(whole)
        other.append(dataclasses.replace(whole, weights=np.where(np.array(seen)[:, None], whole.weights, 0)))
    patch = Controls(tuple(network.config for network in networks), pipe.dtype)
    return patch, tuple(network.params for network in networks), tuple(own), tuple(other)


def _image(request: Resolved, use: ControlUse, timesteps: np.ndarray, pipe: Pipeline) -> ImageControl:
    """Returns one control of one picture, as a batch of one."""
    factor = pipe.config.vae.factor
    height, width = request.height, request.width
    mask = np.ones((height // factor, width // factor), np.float32)
    if use.mask is not None:
        fitting = fitted(np.asarray(use.mask)[..., None], height, width, use.resize)[..., 0]
        mask = pictures.resize(fitting, *mask.shape, "area").astype(np.float32) / np.float32(255)
    known = isinstance(request.sampler.rule, Linear)  # the other samplers choose their timesteps while they run
    during = timesteps_of(use.span, timesteps) if known else shares_of(use.span)
    return ImageControl(
        hint=hint_of(use, height, width)[None],
        weights=np.float32(use.weight) * scales(use.mode, use.loaded.config.outputs)[None],
        mask=mask[None, ..., None],
        during=np.asarray([during], np.float32),
    )


def hint_of(use: ControlUse, height: int, width: int) -> Float[np.ndarray, "h w c"]:
    """Returns the hint of a control for a picture of this size, float32, as its network takes it."""
    if use.hint is None:
        raise ValueError(
            f"the control {use.name} has no hint: name one after =; only tasks with an input picture have a hint of "
            "their own"
        )
    given, channels = np.asarray(use.hint), use.loaded.config.hint_channels
    if given.dtype != np.uint8:
        if given.shape[:2] != (height, width):
            raise ValueError(
                f"a hint of floats has the size of the picture that is made, {width} x {height}; got "
                f"{given.shape[1]} x {given.shape[0]}"
            )
        return given.astype(np.float32)
    pixels = fitted(given, height, width, use.resize)
    if use.preprocess == INPAINT:
        if use.hidden is None:
            raise ValueError(
                f"the hint of the control {use.name} needs a mask: name it by hidden=; only inpainting has its own"
            )
        mask = fitted(np.asarray(use.hidden)[..., None], height, width, use.resize, "nearest")[..., 0]
        hint = np.asarray(inpaint_hint(pixels, mask))
    else:
        if use.preprocess is not None:
            from sdjax.tasks.hints import make_hint

            options: dict[str, Any] = dict(use.options)
            pixels = make_hint(pixels, use.preprocess, annotators=use.annotators, **options)
        hint = pixels.astype(np.float32) / 255
    if channels == 1 and hint.shape[-1] == 3:
        hint = hint @ np.array([[0.299], [0.587], [0.114]], np.float32)
    if hint.shape[-1] != channels:
        raise ValueError(
            f"the control {use.name} takes hints of {channels} channels: give it as an array [h, w, {channels}]"
        )
    return np.asarray(hint, np.float32)


def fitted(
    pixels: Pixels, height: int, width: int, resize: str, method: str = "lanczos"
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Returns a picture, uint8 [h, w, c], in this size, by a way of `sdjax.tasks.controls.RESIZES`."""
    h, w, channels = pixels.shape
    if (h, w) == (height, width):
        return pixels
    if resize == "stretch":
        return pictures.resize(pixels, height, width, method)
    share = (max if resize == "crop" else min)(height / h, width / w)
    near = [max(1, round(side * share)) for side in (h, w)]
    near = [max(a, b) if resize == "crop" else min(a, b) for a, b in zip(near, (height, width))]
    made = pictures.resize(pixels, near[0], near[1], method)
    if resize == "crop":
        top, left = (near[0] - height) // 2, (near[1] - width) // 2
        return made[top : top + height, left : left + width]
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    out = np.empty((height, width, channels), np.uint8)
    out[:] = np.median(edges, axis=0)
    top, left = (height - near[0]) // 2, (width - near[1]) // 2
    out[top : top + near[0], left : left + near[1]] = made
    return out


def steps_of(span: Span, count: int) -> tuple[int, int]:
    """Returns the first of `count` steps at which a control works, and the one after the last."""
    start, end = span
    on = [i for i in range(count) if i / count >= start and (i + 1) / count <= end]
    return (on[0], on[-1] + 1) if on else (0, 0)


def shares_of(span: Span) -> tuple[float, float]:
    """Returns (highest, lowest) timesteps of a span of the way from noise to picture, as `timesteps_of`."""
    made = make_span(*span)
    return float(made.first), float(made.last)


def timesteps_of(span: Span, timesteps: np.ndarray) -> tuple[float, float]:
    """Returns (highest, lowest): calls at timesteps t with highest >= t > lowest are those of the span.

    Timesteps fall; those of an inversion rise, and its last steps are the first ones of a span. A control that works at
    no step has two numbers between which nothing is.
    """
    if len(timesteps) > 1 and timesteps[0] < timesteps[-1]:
        timesteps = timesteps[::-1]
    first, stop = steps_of(span, len(timesteps))
    if first == stop:
        return -math.inf, math.inf
    highest = math.inf if first == 0 else float(timesteps[first])
    return highest, -math.inf if stop == len(timesteps) else float(timesteps[stop])
