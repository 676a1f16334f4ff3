"""Clips: animations whose frames are made together by a model with AnimateDiff's motion modules."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sdjax import pictures
from sdjax.adapters.motion import Motion, blocks_without_attention
from sdjax.checks import arguments
from sdjax.checks.arguments import flag, whole
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.diffusion.clip import FrameWindows, shuffled
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import conditionings_of
from sdjax.diffusion.guidance import ClassifierFree, Rule
from sdjax.noise import JAX, SOURCES, PictureNoise
from sdjax.pipeline.model import Pipeline
from sdjax.samplers.sampler import choose
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch
from sdjax.tasks.compat import profile_of
from sdjax.tasks.computing import Computing
from sdjax.tasks.contexts import Prompts, branch_of
from sdjax.tasks.controls import ControlUse, read_text
from sdjax.tasks.expand import expand
from sdjax.tasks.keyframe_uses import shares_at, with_uses
from sdjax.tasks.keyframes import (
    INTERPOLATIONS,
    MOST_FRAMES,
    Prompted,
    between,
    check_keyframes,
    frame_positions,
    joined_weights,
    numbers_of,
    staged,
    straight,
    turn_tokens,
    with_weights,
)
from sdjax.tasks.make_batch import COMPUTING, batch_of
from sdjax.tasks.motion import MotionUse
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import resolve
from sdjax.tasks.results import advice
from sdjax.tasks.session import Making, Session

ENCODED = 8  # chunks of prompts that the text encoder gets at a time
WEIGHTED = ("adapters", "loras", "merge", "hypernetworks", "image_prompts")  # fields that make adapters of frames


@dataclasses.dataclass(frozen=True, eq=False)
class ClipBatch(Batch):
    """The frames of a clip, in order."""

    motion: MotionUse | None = None
    windows: FrameWindows | None = None

    @property
    def network_options(self) -> dict[str, Any]:
        """What changes the network: that of a batch, the motion modules nearest to it, and the windows of frames."""
        assert self.motion is not None
        assert self.windows is not None
        options, loaded = super().network_options, self.motion.loaded
        as_diffusers = self.requests[0].compat == "diffusers"
        patch = Motion(
            loaded.config, self.windows.size, blocks_without_attention(self.pipe.config.unet),
            over_frames=as_diffusers,
            resnets_over_frames=loaded.config.version == "v1" and not as_diffusers,
        )  # fmt: skip
        return {
            **options,
            "patches": [patch, *options["patches"]],
            "shared": [loaded.params, *options["shared"]],
            "frames": self.windows,
        }

    def _streams_at(self, size: tuple[int, int]) -> list[PictureNoise | None]:
        streams = super()._streams_at(size)
        for stream in streams:
            if stream is not None:
                stream.of_clip = True
        return streams

    def _patch_numbers(self, conditional: bool) -> tuple[PyTree, ...]:
        return (None, *super()._patch_numbers(conditional))

    def pixels(self, latent: Any) -> np.ndarray:
        """Returns the pictures of latents, uint8 [f, h, w, 3]. Each device decodes one at a time."""
        count, step = len(self.requests), self.how.mesh.size
        latent = np.asarray(latent)  # small, and cut again for the devices
        groups = [list(range(first, min(first + step, count))) for first in range(0, count, step)]
        return np.concatenate([Batch.pixels(self.part(group), latent[group]) for group in groups])


def clip(
    pipe: Pipeline,
    prompts: Prompted,
    seeds: int | None | Sequence[int | None],
    frames: int,
    motion: MotionUse,
    options: Mapping[str, Any],
    *,
    loop: bool,
    negative_prompt: str | None | Sequence[str | None],
    interpolation: str,
    image: inputs.Pictures | None,
    strength: Any,
) -> Session:
    """Returns the session of a clip. See `sdjax.animate` for the arguments; `options` are those of `text_to_image`.

    The motion modules were trained with linear betas, which replace the model's. Raises ValueError for arguments out of
    range.
    """
    numbers = numbers_of(prompts)
    texts, negatives, several = check_keyframes(prompts, negative_prompt, seeds)
    if len(set(several)) > 1:
        raise ValueError(f"a clip has one seed, and frame i the noise of seed + i; got {arguments.shown(seeds)}")
    loop, count = flag("loop", loop), len(texts)
    positions = frame_positions(count, frames, loop=loop, numbers=numbers, fewest=1)
    choose("interpolation", interpolation, INTERPOLATIONS)
    how = _computing(options, whole("frames", frames, 1, MOST_FRAMES), motion.frame_window)
    rest = {name: value for name, value in options.items() if name not in COMPUTING}
    given, sizes = _opened(pipe.config, image, frames, rest)
    rest |= _frame_controls(rest.get("controls") or (), frames)
    before = np.floor(positions).astype(int) % count  # the keyframe before each frame
    frame_texts = [(texts[i], negatives[i]) for i in before]
    requests = _requests(frame_texts, several[0], motion, rest)
    linear = dataclasses.replace(pipe, config=_with_linear_betas(pipe.config))
    which = [i % len(given) for i in range(frames)] if given else None
    batch = batch_of(linear, requests, how, which, sizes, strength if given else None)
    windows = FrameWindows(frames, motion.frame_window, min(motion.frame_overlap, frames - 1), loop)
    _check_together(batch, windows)
    start = batch.starts[0]
    keys = [
        dataclasses.replace(requests[before.tolist().index(i)], prompt=text, negative_prompt=negative, latents=None)
        for i, (text, negative) in enumerate(zip(texts, negatives, strict=True))
    ]
    resolved = resolve(linear, keys, [batch.size] * count)
    keyed = Prompts(pipe, resolved, [start] * count, how)
    if all(getattr(one, name) == getattr(requests[0], name) for one in requests for name in WEIGHTED):
        batch = with_uses(batch, resolved, shares_at(count, positions))
    batch = with_weights(batch, between(joined_weights(keyed), positions, straight))
    mix = straight if interpolation == "linear" else turn_tokens

    def make(part: Batch) -> Making:
        clip = ClipBatch(pipe, part.requests, part.inputs, how, part.starts, motion=motion, windows=windows)
        names = conditionings_of(clip.guidance)
        contexts, stage = keyed.keyframes([branch_of(name) for name in names], ENCODED)
        scale = clip.scale_input
        mixed = [jnp.asarray(between(context, positions, mix)) for context in contexts]
        conditionings = [Conditioning(context, guidance_scale=scale) for context in mixed]
        rows = [staged(one.rows, stage) for one in clip.starts if one.rows is not None]
        x0 = clip.encode([given[i] for i in clip.inputs]) if clip.needs_x0 else None
        with advice(*clip.size, frames, pipe.dtype, window=windows.size):
            return clip.finish((yield from clip.sample(x0, clip.noise(), conditionings, rows=rows)))

    return Session(batch, make, groups=[list(range(frames))])


def _computing(options: Mapping[str, Any], frames: int, window: int) -> Computing:
    """Returns how a clip is computed: on as many of the devices as divide its frames and those of a window.

    Raises ValueError for what divides a batch.
    """
    how = Computing(**{name: value for name, value in options.items() if name in COMPUTING})
    for name in "exact", "at_once":
        if getattr(how, name):
            raise ValueError(f"{name} divides a batch, and the frames of a clip are made together: leave {name} out")
    if how.split_picture > 1:
        raise ValueError(
            "the frames of a clip are spread over the devices, not the rows of each: leave split_picture out"
        )
    devices = list(how.mesh.devices.flat)
    if how.parallel == "pmap" and len(devices) > 1:
        raise ValueError("pmap divides a batch, and the frames of a clip are made together: leave parallel out")
    shared = math.gcd(frames, min(frames, window))
    count = next(n for n in range(len(devices), 0, -1) if shared % n == 0)
    if how.devices is not None and count < len(devices):
        note(
            f"the clip is made on {count} of the {len(devices)} devices: their number divides the frames of the clip "
            f"and of a window, {frames} and {min(frames, window)}"
        )
    return dataclasses.replace(how, devices=devices[:count])


def _opened(
    config: ModelConfig, image: inputs.Pictures | None, frames: int, options: dict[str, Any]
) -> tuple[list[np.ndarray], list[tuple[int, int]] | None]:
    """Returns the pictures that frames start from, and each frame's size; without a picture, nothing and None.

    Takes height and width out of the options if there are pictures.
    """
    if image is None:
        return [], None
    given = inputs.open_pictures(image)
    if len(given) not in (1, frames):
        raise ValueError(f"give one picture for all frames, or one for each of the {frames}; got {len(given)}")
    height, width = options.pop("height", None), options.pop("width", None)
    windowed = options.get("window") is not None
    size = inputs.working_size(config, given[0].shape[:2], height, width, windowed=windowed)
    return [pictures.resize(picture, *size) for picture in given], [size] * frames


def _frame_controls(controls: Any, frames: int) -> dict[str, Any]:
    """Returns the field `controls` with one list for each frame, if a hint is a folder; else nothing.

    The pictures of such a folder, sorted by name, are the hints of the frames.
    """
    uses = [read_text(one) if isinstance(one, str) else one for one in controls]
    folders = {
        i: pictures.list_pictures(use.hint)
        for i, use in enumerate(uses)
        if isinstance(use, ControlUse) and isinstance(use.hint, str | os.PathLike) and os.path.isdir(use.hint)
    }
    if not folders:
        return {}
    for i, files in folders.items():
        if len(files) != frames:
            raise ValueError(
                f"the folder of hints {str(uses[i].hint)} has one picture for each frame, {frames}; it has {len(files)}"
            )
    return {
        "controls": [
            [dataclasses.replace(use, hint=folders[i][frame]) if i in folders else use for i, use in enumerate(uses)]
            for frame in range(frames)
        ]
    }


def _requests(
    texts: Sequence[tuple[str, str]], seed: int, motion: MotionUse, options: Mapping[str, Any]
) -> list[Request]:
    """Returns the request of each frame, with its prompt and negative prompt.

    Frame i has the noise of seed + i. If a tool draws the noise of a batch at once, it has number i of the seed's.
    """
    frames = len(texts)
    tool = options.get("noise_source") or profile_of(options.get("compat")).noise_source
    at_once = tool != JAX and SOURCES[tool].at_once
    numbers = list(range(frames))
    if motion.free_noise:
        numbers = shuffled(frames, motion.frame_window, motion.frame_window - motion.frame_overlap, seed).tolist()
    placed: dict[str, Any] = {"noise_batch": [(i, max(numbers) + 1) for i in numbers]} if at_once else {}
    own = {"seed": [seed if at_once else seed + i for i in numbers], **placed, **options}
    return expand([text for text, _ in texts], negative_prompt=[negative for _, negative in texts], **own)


def _check_together(batch: Batch, windows: FrameWindows) -> None:
    """Raises ValueError for settings of frames that cannot be made together."""
    if len(batch.groups()) > 1:
        raise ValueError(
            "the frames of a clip are made together: they have one size, one sampler, the same kinds of patches and "
            "guidance, and equally many adapters"
        )
    guidance = batch.guidance
    rules = guidance.rules if isinstance(guidance, ClassifierFree) else ()
    if len(windows.places()) > 1 and any(type(rule).patches is not Rule.patches for rule in rules):
        raise ValueError(
            "guidance that changes the network's attention (pag, seg, sag, nag) sees all frames together: use a clip "
            f"of at most {windows.length} frames, or other guidance"
        )


def _with_linear_betas(config: ModelConfig) -> ModelConfig:
    schedule = dataclasses.replace(config.schedule, kind="linear", beta_start=0.00085, beta_end=0.012)
    return dataclasses.replace(config, schedule=schedule)
