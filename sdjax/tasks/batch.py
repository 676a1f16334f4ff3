"""What the tasks share: their arguments checked and spread over pictures, and one batch's way through the pipeline."""

import contextlib
import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdjax import samplers
from sdjax.checks import arguments
from sdjax.checks.arguments import flag, texts, whole
from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.diffusion.constraint import Known
from sdjax.diffusion.denoiser import Conditioning, check_guidance_scale, check_negatives
from sdjax.pictures.image import to_float, to_uint8
from sdjax.pipeline import cache, placement
from sdjax.pipeline.model import Pipeline, make_keys
from sdjax.prompts.syntax import check_prompts
from sdjax.samplers import Start, make_start
from sdjax.samplers.custom import complete
from sdjax.samplers.spacing import fitting
from sdjax.schedule import NoiseSchedule
from sdjax.typing import Key, Latent, Pixels

SIDES = (64, 2048)  # smallest and largest height and width, in pixels
STEP = 8  # heights and widths are multiples of this


class ImageError(ValueError):
    """The model made no picture: not-a-number or one flat colour."""


class OutOfMemoryError(MemoryError):
    """The device has too little memory for what was asked."""


def check_size(config: ModelConfig, height: int | None, width: int | None) -> tuple[int, int]:
    """Returns height and width, the model's own side where None.

    Raises ValueError, naming the nearest valid sizes, unless both are multiples of 8 from 64 to 2048.
    """
    sides = []
    step = max(STEP, config.vae.factor)
    for name, side in ("height", height), ("width", width):
        side = config.image_size if side is None else side
        low, high = SIDES
        side = whole(name, side)
        if not low <= side <= high or side % step:
            below = min(max(side // step * step, low), high)
            above = min(max(placement.padded(side, step), low), high)
            near = f"{below}" if below == above else f"{below} or {above}"
            raise ValueError(f"{name} is a multiple of {step} from {low} to {high}; got {side}, the nearest is {near}")
        sides.append(side)
    return sides[0], sides[1]


def expand(
    prompt: str | Sequence[str], negative: str | Sequence[str], seed: int | Sequence[int], num_images: int
) -> tuple[list[str], list[str], list[int]]:
    """Returns one prompt, one negative prompt and one seed a picture.

    Raises ValueError where the numbers of them do not fit.
    """
    prompts, negatives = texts("prompt", prompt), texts("negative_prompt", negative, default="")
    if negative is None or isinstance(negative, str):
        negatives *= len(prompts)
    num_images = whole("num_images", num_images)
    if len(prompts) == 1 and num_images == 1 and np.ndim(seed) == 1 and len(seed):
        num_images = len(seed)
    if not prompts:
        raise ValueError("at least one prompt is needed, got none")
    if num_images < 1:
        raise ValueError(f"num_images is at least 1; got {num_images}")
    if len(negatives) != len(prompts):
        raise ValueError(f"one negative prompt, or one for each of the {len(prompts)} prompts; got {len(negatives)}")
    prompts = [p for p in prompts for _ in range(num_images)]
    negatives = [n for n in negatives for _ in range(num_images)]
    seeds = arguments.seeds(seed, len(prompts))
    if len(seeds) != len(prompts):
        raise ValueError(f"one seed, or one for each of the {len(prompts)} pictures; got {len(seeds)}")
    return prompts, negatives, seeds


def make_sampler(sampler: str | Any, schedule: NoiseSchedule | None = None, **fields: Any) -> Any:
    """Returns the sampler of that name, or the sampler itself, with the fields that are not None replaced.

    A name's own spacing gives way to one that fits the `schedule` (`sdjax.samplers.spacing.fitting`) unless `fields`
    has one; that of a sampler that was handed over stays.

    Raises ValueError for an unknown name (listing the known ones) or a field that the sampler does not have.
    """
    if isinstance(sampler, str):
        if sampler not in samplers.SAMPLERS:
            # As others spell them: "DPM++ 2M Karras", "k_euler_a"
            plain = re.sub(r"\W+", "_", sampler.lower().removeprefix("k_").replace("++", "pp"))
            plain = re.sub("_a$", "_ancestral", plain.removesuffix("_karras"))
            near = difflib.get_close_matches(plain, samplers.SAMPLERS, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(sorted(samplers.SAMPLERS))
            raise ValueError(f"unknown sampler {sampler!r}{meant}; the known ones are {known}")
        sampler = samplers.SAMPLERS[sampler]()
        if schedule is not None and isinstance(sampler, samplers.Sampler):
            sampler = dataclasses.replace(sampler, spacing=fitting(sampler.spacing, schedule))
    whole_sampler = complete(sampler)
    fields = {name: value for name, value in fields.items() if value is not None}
    own = {field.name for field in dataclasses.fields(sampler)} if dataclasses.is_dataclass(sampler) else set()
    unknown = sorted(set(fields) - own)
    if unknown:
        raise ValueError(f"the sampler {type(sampler).__name__} has no {' and no '.join(unknown)}")
    return complete(dataclasses.replace(sampler, **fields)) if fields else whole_sampler


def check_images(image: np.ndarray, dtype: str) -> None:
    """Raises ImageError, with advice, if an image [b, h, w, 3] holds a value that is not finite, or is one colour."""
    for i, picture in enumerate(image):
        if not np.isfinite(picture).all():
            advice = "try dtype bfloat16 or float32" if dtype == "float16" else "is the checkpoint damaged?"
            raise ImageError(f"picture {i} holds values that are not numbers (computed in {dtype}); {advice}")
        if np.ptp(picture, axis=(0, 1)).max() == 0:
            raise ImageError(
                f"picture {i} is one flat colour; is the prediction type the model's (epsilon or v), and is the "
                "guidance scale a usual one (1 to 20)?"
            )


@contextlib.contextmanager
def advice(height: int, width: int, count: int, dtype: str) -> Iterator[None]:
    """Turns a device's out-of-memory error into an OutOfMemoryError that says what to try."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        tries = []
        if count > 1:
            tries.append(f"fewer pictures at once than {count}")
        if height * width > 512 * 512:
            tries.append(f"a smaller size than {width} x {height}")
        if dtype == "float32":
            tries.append("dtype bfloat16")
        tries = tries or ["closing other programs that use the device", "another device"]
        raise OutOfMemoryError(
            f"the device has too little memory for {count} picture(s) of {width} x {height} in {dtype}; "
            f"try {', or '.join(tries)}"
        ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One batch on its way: a prompt, a negative prompt and a seed a picture, and how they are sampled.

    `inputs[i]` is the number of the picture given that picture i is made from (`make_run`). `folds` are numbers folded
    into the pictures' keys, for a second pass that shall draw noise of its own. Arrays of the batch are longer than it
    where the devices do not divide it: the last entry is then made again, and left out at the end.
    """

    pipe: Pipeline
    prompts: list[str]
    negatives: list[str]
    seeds: list[int]
    inputs: list[int]
    sampler: Any
    num_steps: int
    guidance_scale: float
    mesh: jax.sharding.Mesh
    parallel: placement.Parallel
    exact: bool
    progress: Callable[[int, int], None] | None
    folds: tuple[int, ...] = ()

    def part(self, which: Sequence[int], progress: Callable[[int, int], None] | None) -> "Run":
        """Returns the run of some of the pictures only, counting calls by `progress`."""
        lists = {name: [getattr(self, name)[i] for i in which] for name in ("prompts", "negatives", "seeds", "inputs")}
        return dataclasses.replace(self, progress=progress, **lists)

    def advice(self, height: int, width: int) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which running out of memory becomes advice."""
        return advice(height, width, len(self.seeds), self.pipe.dtype)

    @functools.cached_property
    def keys(self) -> Key:
        """One key a picture."""
        keys = make_keys(self._fill(self.seeds))
        for number in self.folds:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return placement.split(keys, self.mesh)

    def spread(self, arrays: Sequence[np.ndarray]) -> jax.Array:
        """Returns one array a picture as one, spread over the devices."""
        return placement.split(np.stack(self._fill(list(arrays))), self.mesh)

    def start(self, strength: float = 1.0, *, compat: str | None = None) -> Start:
        """Returns where sampling starts; a `sdjax.checks.notes.Note` says where that is already the end."""
        start = make_start(self.sampler, self.pipe.schedule, self.num_steps, strength, compat=compat)
        if start.rows is None:
            note(
                f"strength {strength:g} leaves none of {self.num_steps} steps: nothing is made by the prompt, and the "
                "picture only goes through the autoencoder"
            )
        return start

    def noise(self, height: int, width: int) -> Latent:
        """Returns unit starting noise for pictures of height x width pixels."""
        return self.pipe.noise(self.keys, height, width, **self._where)

    def encode(self, pictures: Sequence[np.ndarray], *, draw: int = 0) -> Latent:
        """Returns draws from the posterior of pictures of one size, uint8 [h, w, 3], or float in [-1, 1]."""
        images = [to_float(p) if p.dtype == np.uint8 else p for p in pictures]
        return self.pipe.encode_image(self.spread(images), keys=self.keys, draw=draw, **self._where)

    def told(
        self,
        *,
        concat: jax.Array | None = None,
        label: jax.Array | None = None,
        unconditional_label: jax.Array | None = None,
    ) -> tuple[Conditioning, Conditioning | None]:
        """Returns what the network is told with and without the prompt; the latter is None where there is no guidance.

        `concat` is the same in both, `label` too unless there is an `unconditional_label`.
        """
        encode = functools.partial(self.pipe.encode_prompt, exact=self.exact, **self._where)
        conditioning = Conditioning(encode(self._fill(self.prompts)), concat, label)
        if self.guidance_scale == 1:
            return conditioning, None
        other = label if unconditional_label is None else unconditional_label
        return conditioning, Conditioning(encode(self._fill(self.negatives)), concat, other)

    def sample(
        self,
        start: Start,
        x0: Latent | None,
        noise: Latent,
        told: tuple[Conditioning, Conditioning | None],
        known: Known | None = None,
    ) -> Latent:
        """Returns the latent that sampling makes of x0, which may be None for pure noise, and unit noise.

        x0 itself comes back where `start` leaves no step; `known` parts of it are exact.
        """
        if start.rows is None:
            return x0
        x = start.of_noise * noise if x0 is None else start.of_x0 * x0 + start.of_noise * noise
        state = self.pipe.sample(
            self.sampler, start.rows, x, self.keys, *told, self.guidance_scale, known=known, exact=self.exact,
            progress=self.progress, **self._where,
        )  # fmt: skip
        latent = self.sampler.final(state, start.rows)
        return latent if known is None else known.put(latent)

    def decode(self, latent: Latent) -> Pixels:
        """Returns the pictures, uint8 [b, h, w, 3]. Raises ImageError where one holds no picture."""
        image = np.asarray(self.pipe.decode(latent, **self._where))[: len(self.seeds)]
        check_images(image, self.pipe.dtype)
        return to_uint8(image)

    @property
    def _where(self) -> dict[str, Any]:
        return {"mesh": self.mesh, "parallel": self.parallel}

    def _fill(self, items: list) -> list:
        return placement.fill(items, self.mesh.size)


def make_run(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    num_inputs: int | None = None,
    negative_prompt: str | None | Sequence[str | None] = "",
    seed: int | None | Sequence[int | None] = 0,
    num_images: int = 1,
    sampler: str | Any = "ddim",
    num_steps: int = 50,
    guidance_scale: float | None = None,
    eta: float | None = None,
    spacing: str | None = None,
    parallel: placement.Parallel = "jit",
    devices: Sequence[jax.Device] | None = None,
    exact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Returns the run of these arguments, which are `sdjax.text_to_image`'s.

    `num_inputs` pictures are given: one for all prompts, one prompt for all pictures, or one each. Raises ValueError
    for arguments out of range, and numbers that do not fit.
    """
    cache.enable()
    inputs = [0]
    if num_inputs is not None:
        if num_inputs < 1:
            raise ValueError("at least one picture is needed, got none")
        prompts = texts("prompt", prompt)
        if len(prompts) != num_inputs and 1 not in (len(prompts), num_inputs):
            raise ValueError(f"one prompt, or one for each of the {num_inputs} pictures; got {len(prompts)}")
        inputs = list(range(num_inputs)) if num_inputs > 1 else [0] * len(prompts)
        prompt = prompts * num_inputs if len(prompts) == 1 else prompts
    prompts, negatives, seeds = expand(prompt, negative_prompt, seed, num_images)
    inputs = [i for i in inputs for _ in range(len(prompts) // len(inputs))]
    sampler = make_sampler(sampler, pipe.schedule, eta=eta, spacing=spacing)
    scale = check_guidance_scale(pipe.config.guidance_scale if guidance_scale is None else guidance_scale)
    if progress is not None and not callable(progress):
        raise ValueError(f"progress is a function of (done, total); got {arguments.shown(progress)}")
    mesh, exact = placement.make_mesh(devices), flag("exact", exact)
    check_negatives(negatives, scale)
    check_prompts([*prompts, *negatives])
    return Run(
        pipe, prompts, negatives, seeds, inputs, sampler, num_steps, scale, mesh, parallel, exact, progress
    )  # fmt: skip


def by_size(run: Run, sizes: Sequence[tuple[int, int]], make: Callable[[Run, list[int]], Pixels]) -> list[np.ndarray]:
    """Returns one picture [h, w, 3] for each of the run's, made in one batch for each (height, width) among `sizes`.

    `make(part, which)` makes the pictures of these numbers.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    made: list[Any] = [None] * len(sizes)
    for number, (size, which) in enumerate(groups.items()):
        progress = None
        if run.progress is not None:

            def progress(done: int, total: int, number: int = number) -> None:
                run.progress(number * total + done, len(groups) * total)

        part = run.part(which, progress)
        with part.advice(*size):
            for i, picture in zip(which, make(part, which), strict=True):
                made[i] = picture
    return made


def joined(pictures: list[np.ndarray]) -> Pixels | list[np.ndarray]:
    """Returns pictures of one size as one array [b, h, w, 3], others as they are."""
    return np.stack(pictures) if len({p.shape for p in pictures}) == 1 else pictures
