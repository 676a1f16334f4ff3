"""A batch of requests, and its way through the pipeline: keys, noise, encoded prompts, sampling, decoding."""

import dataclasses
import functools
from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sdjax.adapters.spans import Run
from sdjax.checks.arguments import MAX_SEED, is_sequence
from sdjax.checks.notes import note
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Known
from sdjax.diffusion.denoiser import conditionings_of
from sdjax.diffusion.guidance import ClassifierFree, Guidance, make_guidance
from sdjax.noise import PictureNoise
from sdjax.pictures.image import to_float, to_uint8
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline, make_keys
from sdjax.samplers import Rows, Start, State, batch
from sdjax.samplers.noise import MadeNoise
from sdjax.samplers.rows import per_image
from sdjax.tasks import noise, style_aligned
from sdjax.tasks.additions import Addition, additions, alike
from sdjax.tasks.computing import Computing
from sdjax.tasks.contexts import Prompts, branch_of
from sdjax.tasks.control_arrays import Seen, seeing
from sdjax.tasks.group import Group
from sdjax.tasks.inputs import one_each
from sdjax.tasks.request import Each
from sdjax.tasks.resolve import Resolved, begin, check_begin
from sdjax.tasks.results import check_images
from sdjax.tasks.session import Step
from sdjax.typing import Keys, Latent

Sampling = Generator[Step, bool | None, Latent]  # yields after every few calls of the network; send True to stop it


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Requests with all defaults filled in (`sdjax.tasks.resolve`), and how they are computed.

    `inputs[i]` is the number of the input picture for picture i, and `starts[i]` the start of its sampling. `folds` are
    folded into the pictures' keys, to give a second pass other noise. `after[i]` is the number of steps of an earlier
    pass, from which prompts that change count on. If the number of devices does not divide the batch, its arrays are
    padded with copies of the last entry.
    """

    pipe: Pipeline
    requests: list[Resolved]
    inputs: list[int]
    how: Computing
    starts: list[Start] = dataclasses.field(default_factory=list)
    folds: tuple[int, ...] = ()
    after: list[int] = dataclasses.field(default_factory=list)
    streams: dict[tuple[int, int], list[PictureNoise | None]] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    def part(self, which: Sequence[int]) -> "Batch":
        """Returns the batch of some of the pictures."""
        return dataclasses.replace(
            self,
            requests=[self.requests[i] for i in which],
            inputs=[self.inputs[i] for i in which],
            starts=[self.starts[i] for i in which],
            after=[self.after[i] for i in which] if self.after else [],
        )

    def seeing(self, given: Sequence[Seen]) -> "Batch":
        """Returns the batch whose controls without hints take the input pictures `given`, one for each input."""
        return dataclasses.replace(self, requests=seeing(self.requests, [given[i] for i in self.inputs]))

    def starting(self, strength: Each[float] | Sequence[float | None] | None = None) -> "Batch":
        """Returns the batch with its starts. `strength` is one for all pictures, or one for each.

        None means that nothing is there to start from. A `sdjax.checks.notes.Note` warns if no steps are left. Raises
        ValueError if numbers do not match.
        """
        made: dict[Any, Start] = {}
        shares = list(strength) if is_sequence(strength) else [strength]  # type: ignore[arg-type]
        starts = []
        for request, share in zip(self.requests, one_each("strength", shares, len(self.requests))):
            schedule = request.noise_schedule
            recipe = (id(request.sampler), request.num_steps, schedule, request.strength_counting, share)
            if recipe not in made:
                made[recipe] = start = begin(request, share)
                if start.rows is None:
                    note(
                        f"strength {share:g} leaves none of {request.num_steps} steps: the prompt has no effect, "
                        "and the picture only goes through the autoencoder"
                    )
                else:
                    check_begin(schedule, start.rows)
            starts.append(made[recipe])
        return dataclasses.replace(self, starts=starts)

    def groups(self) -> list[list[int]]:
        """Returns groups of picture numbers. The pictures of a group have one size and one compiled program.

        A group has at most `at_once` pictures (`Computing`). A larger one is divided into groups of equal size, so
        that they share a program: the last picture is repeated as often as needed. Pictures that are style aligned are
        in groups with the first of them.

        Raises ValueError if they cannot be computed together.
        """
        groups: dict[Any, list[int]] = {}
        for height, _ in map(self.size_of, range(len(self.requests))):
            placement.check_rows(self.how.mesh, height, self.pipe.config.vae.factor)
        for i, (request, start) in enumerate(zip(self.requests, self.starts, strict=True)):
            sampler = request.sampler
            # A sampler with its own `final` shares no batch with others
            end = id(sampler) if sampler.ends_alone else None
            structure = (jax.tree.structure(request.guidance), tuple(setting.patch for setting in request.patches))
            shape = self.prompts.shape(i) if self.how.exact else None  # a longer context changes the order of sums
            made_as = (*structure, request.seamless, request.windows, shape, alike(request))
            likeness = (self.size_of(i), start.rows is None, sampler.rule, end, *made_as)
            groups.setdefault(likeness, []).append(i)
        at_once, devices = self.how.at_once, placement.parts(self.how.mesh)
        aligned = [group for group in groups.values() if self.requests[group[0]].style_aligned is not None]
        apart = [
            part for group in groups.values() if group not in aligned for part in placement.divided(group, at_once)
        ]
        together = style_aligned.groups_with_reference(aligned, self.how.exact, at_once, devices) if aligned else []
        return [*together, *apart]

    def size_of(self, i: int) -> tuple[int, int]:
        """Returns the (height, width) at which picture i is made."""
        return self.requests[i].height, self.requests[i].width

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) at which the first picture is made. All pictures of a group have this size."""
        return self.size_of(0)

    @property
    def calls(self) -> int:
        """The number of network calls."""
        return max(0 if start.rows is None else np.size(start.rows.index) for start in self.starts)

    @property
    def needs_x0(self) -> bool:
        """Whether sampling starts from the latent of an input picture, at least for one picture."""
        return any(start.needs_x0 for start in self.starts)

    @functools.cached_property
    def guidance(self) -> Guidance:
        """Guidance with each picture's numbers, and without the passes that no picture needs."""
        each = [request.guidance for request in self._fill(self.requests)]
        whole = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf, np.float32) for leaf in leaves]), *each)
        if not isinstance(whole, ClassifierFree):
            return whole
        used = any(request.sampler.uses_unconditional for request in self.requests)
        return make_guidance(whole.scale, whole.rescale, whole.rules, needs_unconditional=used)

    @functools.cached_property
    def prompts(self) -> Prompts:
        """The pictures' prompts."""
        return Prompts(self.pipe, self.requests, self.starts, self.how, self.after)

    @functools.cached_property
    def keys(self) -> Keys:
        """One key per picture."""
        return self._keys([request.seed for request in self.requests])

    def _keys(self, seeds: list[int]) -> Keys:
        keys = make_keys(self._fill(seeds))
        for number in self.folds:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return placement.split(keys, self.how.mesh)

    def spread(self, arrays: Sequence[np.ndarray]) -> jax.Array:
        """Returns the arrays of the pictures as one array, spread over the devices."""
        return placement.split(np.stack(self._fill(list(arrays))), self.how.mesh)

    def noise(self, size: tuple[int, int] | None = None) -> Latent:
        """Returns unit starting noise: the request's `latents`, or noise drawn from its seed.

        If `size` differs from the pictures' size, the noise is always drawn.
        """
        at = self.size if size is None else size
        drawn = self.pipe.noise(self.keys, *at, **self.where)
        others: dict[tuple[int, tuple[int, int]], np.ndarray] = {}

        def with_seed(seed: int, size: tuple[int, int]) -> np.ndarray:
            if (seed, size) not in others:
                keys = self._keys([seed] * len(self.requests))
                others[seed, size] = np.asarray(self.pipe.noise(keys, *size, **self.where))[0]
            return others[seed, size]

        given = [
            request.latents
            if size is None and request.latents is not None
            else noise.starting_noise(self.pipe.config, request, stream, at, with_seed)
            for request, stream in zip(self.requests, self._streams_at(at))
        ]
        return self._in_place(drawn, given)

    def encode(self, pictures: Sequence[np.ndarray], *, draw: int = 0) -> Latent:
        """Returns latents of pictures: draws from the posterior. Pictures are uint8 or float in [-1, 1], [h, w, 3]."""
        images = [to_float(p) if p.dtype == np.uint8 else p for p in pictures]
        made = None if draw else self._spread_noise(noise.posterior_noise(self._streams_at(images[0].shape[:2])))
        return self.pipe.encode_image(
            self.spread(images), keys=self.keys, draw=draw, seamless=self.seamless, made=made, **self.where
        )

    def conditionings(
        self,
        *,
        concat: jax.Array | None = None,
        label: jax.Array | None = None,
        unconditional_label: jax.Array | None = None,
    ) -> list[Conditioning]:
        """Returns the conditionings for the branches of guidance (`conditionings_of`).

        All branches have the same `concat` (None: that of the requests), but "nothing" has zeros. All have the same
        `label` unless there is an `unconditional_label`, which is then that of the branches without the prompt.
        """
        other = label if unconditional_label is None else unconditional_label
        if concat is None and self.requests[0].concat is not None:
            concat = self.spread([np.asarray(request.concat) for request in self.requests])
        names = conditionings_of(self.guidance)
        branches = list(dict.fromkeys(map(branch_of, names)))
        scale = self.scale_input
        contexts = dict(zip(branches, self.prompts.contexts(branches), strict=True))
        made = []
        for name in names:
            context, length = contexts[branch_of(name)]
            given = concat if name != "nothing" or concat is None else jnp.zeros_like(concat)
            own = label if branch_of(name) >= 0 else other
            made.append(Conditioning(context, length, concat=given, label=own, guidance_scale=scale))
        return made

    @property
    def scale_input(self) -> jax.Array | None:
        """Each picture's guidance scale for a model that takes it as an input; None for others."""
        if self.pipe.config.unet.guidance_dim is None:
            return None
        return self.spread([np.asarray(request.guidance_scale, np.float32) for request in self.requests])

    def sample(
        self,
        x0: Latent | None,
        noise: Latent,
        conditionings: Sequence[Conditioning],
        known: Known | None = None,
        *,
        last: bool = True,
        rows: Sequence[Rows] | None = None,
    ) -> Sampling:
        """Returns the latents that sampling makes of x0 and unit noise. x0 may be None if sampling starts from noise.

        If `starts` leaves no step, the result is x0. `known` parts are exact. `last` says whether the pictures are
        finished afterwards. `rows` None are those of the pictures' prompts.
        """
        rows = self.prompts.rows() if rows is None else list(rows)
        if not rows:
            assert x0 is not None
            return x0
        starts = self._fill(self.starts)
        of_x0, of_noise = (per_image(np.array(a), noise) for a in zip(*((s.of_x0, s.of_noise) for s in starts)))
        x = of_noise * noise if x0 is None else of_x0 * x0 + of_noise * noise
        state = yield from self.scan(rows, x, conditionings, known, last=last)
        latent = self.requests[0].sampler.final(state, batch(self._fill(rows)))
        if any(one.as_it_is for one in starts):
            latent = latent * per_image(np.array([one.of_result for one in starts]), latent)
        return latent if known is None else known.put(latent)

    def scan(
        self,
        rows: Sequence[Rows],
        x: Latent,
        conditionings: Sequence[Conditioning],
        known: Known | None = None,
        *,
        last: bool = True,
    ) -> Generator[Step, bool | None, State]:
        """Returns the samplers' state after all rows, starting from x. There is one table of rows per picture."""
        first, before = self.requests[0], 0
        keys, made = self.step_noise(rows, x)
        for done, state in self.pipe.sampling(
            first.sampler.rule, batch(self._fill(list(rows))), x, keys, self.with_patches(conditionings), self.guidance,
            **self.network_options, known=known, made=made, exact=self.how.exact, **self.where,
        ):  # fmt: skip
            over = tuple(i for i, one in enumerate(rows) if np.size(one.index) <= done) if last else ()
            if (yield Step(self, done - before, state, over)):
                break
            before = done
        return state

    def step_noise(self, rows: Sequence[Rows], x: Latent) -> tuple[Keys, MadeNoise | None]:
        """Returns the keys that draw the noise of rows, and the noise that the host made for some pictures."""
        keys = self._keys([request.seed + request.ensd & MAX_SEED for request in self.requests])
        factor = self.pipe.config.vae.factor
        size = x.shape[1] * factor, x.shape[2] * factor
        grids = [functools.partial(one.sampler.grid, one.noise_schedule, one.num_steps) for one in self.requests]
        return keys, self._spread_noise(noise.step_noise(rows, self._streams_at(size), grids))

    def with_patches(self, conditionings: Sequence[Conditioning]) -> list[Conditioning]:
        """Returns the conditionings of all branches with each picture's numbers of the patches."""
        names = conditionings_of(self.guidance)
        return [
            dataclasses.replace(one, patches=self._patch_numbers(branch_of(name) >= 0))
            for one, name in zip(conditionings, names, strict=True)
        ]

    @property
    def network_options(self) -> dict[str, Any]:
        """What changes the network for all pictures of this group: arguments of `Pipeline.sampling`."""
        first = self.requests[0]
        return {
            "patches": [*(one.patch for one in self._additions), *(setting.patch for setting in first.patches)],
            "shared": [*(one.shared for one in self._additions), *([None] * len(first.patches))],
            "windows": first.windows,
            "seamless": self.seamless,
        }

    def finish(self, latent: Latent) -> np.ndarray:
        """Returns the output of the task: the pictures of the latents (`pixels`), or the latents themselves."""
        return self.pixels(latent) if self.how.output == "pixels" else np.asarray(latent)[: len(self.requests)]

    def pixels(self, latent: Latent) -> np.ndarray:
        """Returns the pictures of latents, uint8 [b, h, w, 3]. Raises ImageError if one is not a picture."""
        image = np.asarray(self.pipe.decode(latent, seamless=self.seamless, **self.where))[: len(self.requests)]
        check_images(image, self.pipe.dtype)
        return np.stack([to_uint8(one, rounding=request.rounding) for one, request in zip(image, self.requests)])

    @property
    def seamless(self) -> str | None:
        """The axes along which all pictures of this group continue over their edges."""
        return self.requests[0].seamless

    def _patch_numbers(self, conditional: bool) -> tuple[PyTree, ...]:
        """Returns the arrays of each patch in a branch with or without the prompt, with the batch as first axis."""
        pictures = zip(self._fill(self.requests), self._fill(self.starts))
        runs = [(one, Run(one.seed, 0 if s.rows is None else np.size(s.rows.index))) for one, s in pictures]
        of_pictures = ([setting.numbers(run) for setting in one.patches] for one, run in runs)
        stacked = (jax.tree.map(lambda *leaves: np.stack(leaves), *each) for each in zip(*of_pictures, strict=True))
        return (*(one.arrays(conditional) for one in self._additions), *stacked)

    @functools.cached_property
    def _additions(self) -> list[Addition]:
        """What each picture adds to the UNet."""
        after = self._fill(self.after) if self.after else ()
        return additions(Group(self._fill(self.requests), self._fill(self.starts), self.pipe, self.how, after))

    @property
    def where(self) -> dict[str, Any]:
        """The device arguments of the pipeline's primitives."""
        return {"mesh": self.how.mesh, "parallel": self.how.parallel}

    def _streams_at(self, size: tuple[int, int]) -> list[PictureNoise | None]:
        """Returns the noise of each picture at this (height, width), None if it is JAX's. What was drawn is drawn."""
        if size not in self.streams:
            self.streams[size] = noise.streams(self.pipe.config, self.requests, size)
        return self.streams[size]

    def _spread_noise(self, made: MadeNoise | None) -> MadeNoise | None:
        return jax.tree.map(lambda part: np.stack(self._fill(list(part))), made)

    def _in_place(self, made: jax.Array, given: Sequence[Any]) -> jax.Array:
        """Returns an array of the batch, with the entries that requests give themselves replaced by those."""
        if all(one is None for one in given):
            return made
        parts = [own if one is None else one for own, one in zip(np.asarray(made), self._fill(list(given)))]
        return placement.split(np.stack(parts), self.how.mesh)

    def _fill(self, items: list) -> list:
        return placement.fill(items, placement.parts(self.how.mesh))
