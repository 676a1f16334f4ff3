"""Image embeddings from texts: Karlo's prior, sampled by ancestral steps of DDPM.

Source: huggingface/diffusers, pipelines/deprecated/unclip/pipeline_unclip.py with schedulers/scheduling_unclip.py;
pipelines/stable_diffusion/pipeline_stable_unclip.py with scheduling_ddpm.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdjax.checks.arguments import dtype_name, texts, whole
from sdjax.checks.hints import Explained, explains_arguments
from sdjax.config import PriorConfig, ScheduleConfig
from sdjax.diffusion.denoiser import check_guidance_scale, check_negatives
from sdjax.nn.jax_settings import pinned
from sdjax.nn.prior import Embedding, PriorTransformer, ProjectedTextEncoder
from sdjax.pipeline import placement
from sdjax.pipeline.model import cast, default_dtype, make_keys, summary
from sdjax.prompts.syntax import check_lengths, check_prompts
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.samplers.base import PRIOR, draw_noise
from sdjax.schedule import alphas_cumprod
from sdjax.typing import Context, Params, TokenIds

TIMESTEPS = 1000
GUIDANCE_SCALE = 4.0


class Rows(NamedTuple):
    """What a step does: the guess's and the embedding's weights in the next embedding, and its noise's. float32 [n]."""

    timestep: np.ndarray
    of_x0: np.ndarray
    of_x: np.ndarray
    of_noise: np.ndarray


class Told(NamedTuple):
    """What the prior is told of texts, `ProjectedTextEncoder`'s outputs; `mask` is false for padding."""

    embedding: Embedding
    hidden: Context
    mask: Bool[Array, "b n"]


def make_rows(config: PriorConfig, num_steps: int) -> Rows:
    """Returns the steps of the "squaredcos" schedule a: x0 and x mixed to the mean of q(x_s | x_t, x0), and its noise.

    With b = 1 - a_t / a_s: (sqrt(a_s) b x0 + sqrt(1 - b) (1 - a_s) x) / (1 - a_t), variance b (1 - a_s) / (1 - a_t).
    s is the next timestep; a_s is 1 behind the last. Raises ValueError for fewer than 1 step or more than 1000.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7.
    """
    if not 1 <= whole("the prior's num_steps", num_steps) <= TIMESTEPS:
        raise ValueError(f"the prior makes 1 to {TIMESTEPS} steps; got {num_steps}")
    a = alphas_cumprod(ScheduleConfig(kind="squaredcos", num_timesteps=TIMESTEPS))
    if config.scheduler == "unclip":
        t = np.rint(np.arange(num_steps) * ((TIMESTEPS - 1) / max(num_steps - 1, 1)))[::-1].astype(int)
        if num_steps == 1:  # the one step that leads from pure noise
            t = np.array([TIMESTEPS - 1])
    else:
        t = (np.arange(num_steps) * (TIMESTEPS // num_steps))[::-1]
    now, then = a[t], np.append(a[t[1:]], 1.0)
    b = 1 - now / then
    variance = np.maximum(b * (1 - then) / (1 - now), 1e-20) * (t > 0)
    weights = (then**0.5 * b / (1 - now), (1 - b) ** 0.5 * (1 - then) / (1 - now), variance**0.5)
    return Rows(t.astype(np.float32), *(w.astype(np.float32) for w in weights))


def sample(
    predict: Callable[[Embedding, jax.Array, Told], Embedding],
    config: PriorConfig,
    rows: Rows,
    x: Embedding,
    noises: Float[Array, "t b d"],
    told: Told,
    untold: Told | None = None,
    guidance_scale: jax.Array | float = GUIDANCE_SCALE,
) -> Embedding:
    """Returns the embedding that the steps make of unit noise x, in the prior's own scale; noises[i] is step i's.

    `predict(x, t, told)` is the network. `untold` None switches guidance off. The guess is clipped after guidance.
    """
    both = told if untold is None else jax.tree.map(lambda u, c: jnp.stack([u, c], 1).reshape(-1, *c.shape[1:]),
                                                    untold, told)  # fmt: skip

    def step(x: Embedding, row: tuple[Rows, jax.Array]) -> tuple[Embedding, None]:
        r, noise = row
        given = x if untold is None else jnp.repeat(x, 2, axis=0)  # interleaved, as the sampling of latents is
        x0 = predict(given, jnp.broadcast_to(r.timestep, given.shape[:1]), both)
        if untold is not None:
            unconditional, conditional = x0[::2], x0[1::2]
            x0 = unconditional + guidance_scale * (conditional - unconditional)
        if config.clip is not None:
            x0 = jnp.clip(x0, -config.clip, config.clip)
        return r.of_x0 * x0 + r.of_x * x + r.of_noise * noise, None

    return jax.lax.scan(step, x, (rows, noises))[0]


@functools.partial(jax.jit, static_argnums=0)
def _embed(
    static: tuple[PriorConfig, str], params: Params, rows: Rows, keys: jax.Array, told: Told, untold: Told | None,
    scale: jax.Array,
) -> Embedding:  # fmt: skip
    config, dtype = static
    network = PriorTransformer(config, jnp.dtype(dtype))
    noise = lambda i: draw_noise(keys, PRIOR, i, (config.embedding,))  # noqa: E731

    def predict(x: Embedding, t: jax.Array, told: Told) -> Embedding:
        return network.apply({"params": params}, x, t, *told)

    noises = jax.vmap(noise)(1 + jnp.arange(rows.timestep.shape[0]))
    x = sample(predict, config, rows, noise(0), noises, told, untold, scale)
    mean, std = (params[name].astype(jnp.float32) for name in ("clip_mean", "clip_std"))
    return x * std + mean


@functools.partial(jax.jit, static_argnums=0)
def _tell(static: tuple[PriorConfig, str], params: Params, ids: TokenIds) -> Told:
    config, dtype = static
    embedding, hidden = ProjectedTextEncoder(config.text, jnp.dtype(dtype)).apply({"params": params}, ids)
    ends = jnp.argmax(ids == config.text.eos_token_id, axis=-1)
    return Told(embedding, hidden, jnp.arange(ids.shape[1]) <= ends[:, None])


@dataclasses.dataclass(frozen=True, eq=False)
class Prior(metaclass=Explained):
    """A prior ready to use: its description, parameters {"prior", "text"}, tokenizer and compute dtype."""

    config: PriorConfig
    params: Params
    tokenizer: Tokenizer
    dtype: str = "float32"
    source: str = ""
    _placed: placement.Placed = dataclasses.field(default_factory=placement.Placed, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))

    def __repr__(self) -> str:
        return summary(self, "of image embeddings")

    @classmethod
    @explains_arguments(task=False)
    @pinned()
    def load(cls, path: Any, *, dtype: Any = None, variant: str | None = None) -> "Prior":
        """Returns the prior of a diffusers folder or hub repository, "kakaobrain/karlo-v1-alpha".

        Raises sdjax.convert.CheckpointError where there is none, ValueError for an unknown dtype.
        """
        from sdjax import convert
        from sdjax.loading.hub import resolve

        dtype = default_dtype() if dtype is None else dtype_name(dtype)
        config, params, tokenizer = convert.load_prior(resolve(path, variant=variant), dtype)
        return cls(config, cast(params, dtype), tokenizer, dtype, str(path))

    @pinned()
    def tell(self, prompts: Sequence[str]) -> Told:
        """Returns what the network is told of the prompts."""
        text = self.config.text
        check_lengths(self.tokenizer, prompts, text.max_length)
        ids = self.tokenizer(prompts, length=text.max_length, pad_token_id=text.pad_token_id)
        return _tell((self.config, self.dtype), self._placed.on_default_device(self.params)["text"], jnp.asarray(ids))

    @explains_arguments(task=False)
    @pinned()
    def embed(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative_prompts: Sequence[str] | None = None,
        num_steps: int = 25,
        guidance_scale: float = GUIDANCE_SCALE,
        exact: bool = False,
    ) -> Embedding:
        """Returns an image embedding for every prompt and seed, float32 [b, d], as CLIP's image tower would make them.

        An embedding depends on its own seed alone; another number of steps compiles again. `guidance_scale` 1 switches
        guidance off; `negative_prompts` None are empty ones. `exact` computes them one by one, so that they are
        bit-identical alone and among others. Raises ValueError where numbers do not fit or are out of range.
        """
        prompts = texts("prompts", prompts)
        negatives = [""] * len(prompts) if negative_prompts is None else texts("negative_prompts", negative_prompts, "")
        if not len(prompts) == len(seeds) == len(negatives) or not len(prompts):
            raise ValueError(
                f"one seed and one negative prompt for each prompt; got {len(prompts)} prompts, {len(seeds)} seeds, "
                f"{len(negatives)} negative prompts"
            )
        check_guidance_scale(guidance_scale)
        check_negatives(negatives, guidance_scale)
        check_prompts([*prompts, *negatives])
        if exact and len(prompts) > 1:
            how = {"num_steps": num_steps, "guidance_scale": guidance_scale}
            each = zip(prompts, seeds, negatives, strict=True)
            return jnp.concatenate([self.embed([p], [s], negative_prompts=[n], **how) for p, s, n in each])
        rows, keys = make_rows(self.config, num_steps), make_keys(seeds)
        told = self.tell(prompts)
        untold = None if guidance_scale == 1 else self.tell(negatives)
        static = (self.config, self.dtype)
        params = self._placed.on_default_device(self.params)["prior"]
        return _embed(static, params, rows, keys, told, untold, jnp.float32(guidance_scale))
