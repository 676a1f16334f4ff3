"""Image embeddings from texts: Karlo's prior, sampled by ancestral steps of DDPM.

Source: huggingface/diffusers, pipelines/deprecated/unclip/pipeline_unclip.py with schedulers/scheduling_unclip.py;
pipelines/stable_diffusion/pipeline_stable_unclip.py with scheduling_ddpm.py.
"""

import dataclasses
import functools
import os
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import DTypeLike

from sdjax.checks.arguments import dtype_name, texts, whole
from sdjax.checks.hints import Explained, explains_arguments
from sdjax.config import PriorConfig, ScheduleConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import Guidance, check_guidance_scale, make_guidance, note_unguided
from sdjax.nn.jax_settings import pinned
from sdjax.nn.prior import Embedding, PriorTransformer, ProjectedTextEncoder
from sdjax.pipeline import placement
from sdjax.pipeline.model import cast, make_keys, summary
from sdjax.prompts.syntax import check_lengths, check_prompts
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.samplers.noise import PRIOR, draw_noise
from sdjax.samplers.rows import Rows, repeat, row, stack
from sdjax.samplers.rule import Changed, Denoiser, Linear, Memory, scan_rows
from sdjax.schedule import alphas_cumprod
from sdjax.typing import Keys, Params, Timestep, TokenIds

TIMESTEPS = 1000
GUIDANCE_SCALE = 4.0


@dataclasses.dataclass(frozen=True)
class PriorNetwork:
    """The prior as a `diffusion.network.Network`, computing in `dtype`.

    Its `Conditioning` has the outputs of `ProjectedTextEncoder`: `label` is the text's embedding, `context` are its
    tokens. Tokens after `context_length` are padding.
    """

    config: PriorConfig
    dtype: str = "float32"

    def init(self, params: Params, x: Embedding) -> Memory:
        """Returns no memory."""
        return ()

    def __call__(
        self, params: Params, x: Embedding, t: Timestep, conditioning: Conditioning, memory: Memory
    ) -> tuple[Embedding, Memory]:
        """Returns the predicted embedding x0."""
        text, length = conditioning.context, conditioning.context_length
        assert text is not None
        assert length is not None
        network = PriorTransformer(self.config, jnp.dtype(self.dtype))
        mask = jnp.arange(text.shape[1]) < length[:, None]
        return typing.cast(Array, network.apply({"params": params}, x, t, conditioning.label, text, mask)), memory


def make_rows(config: PriorConfig, num_steps: int) -> Rows:
    """Returns the rows of ancestral sampling from q(x_s | x_t, x0), with the "squaredcos" schedule a.

    For the variance-preserving x and b = 1 - a_t / a_s, the mean is (sqrt(a_s) b x0 + sqrt(1 - b) (1 - a_s) x) /
    (1 - a_t) and the variance b (1 - a_s) / (1 - a_t). s is the next timestep; after the last one a_s is 1.

    Raises ValueError for fewer than 1 step or more than 1000.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7.
    """
    if not 1 <= whole("the prior's num_steps", num_steps) <= TIMESTEPS:
        raise ValueError(f"the prior takes 1 to {TIMESTEPS} steps; got {num_steps}")
    a = alphas_cumprod(ScheduleConfig(kind="squaredcos", num_timesteps=TIMESTEPS))
    if config.scheduler == "unclip":
        t = np.rint(np.arange(num_steps) * ((TIMESTEPS - 1) / max(num_steps - 1, 1)))[::-1].astype(int)
        if num_steps == 1:  # a single step from pure noise
            t = np.array([TIMESTEPS - 1])
    else:
        t = (np.arange(num_steps) * (TIMESTEPS // num_steps))[::-1]
    now, then = a[t], np.append(a[t[1:]], 1.0)
    b = 1 - now / then
    variance = np.maximum(b * (1 - then) / (1 - now), 1e-20) * (t > 0)
    sigma, sigma_next = (((1 - share) / share) ** 0.5 for share in (now, then))
    # From the variance-preserving x to x0 + sigma noise: divided by sqrt(a) where a step starts and ends
    base = (1 - b) ** 0.5 * (1 - then) / (1 - now) * (now / then) ** 0.5
    return stack([
        row(t[i], sigma[i], sigma_next[i], base=base[i], calls=[b[i] / (1 - now[i])], noise=noise)
        for i, noise in enumerate((variance / then) ** 0.5)
    ])  # fmt: skip


def sample(
    network: PriorNetwork,
    params: Params,
    rows: Rows,
    x: Embedding,
    noises: Float[Array, "t b d"],
    branches: Sequence[Conditioning],
    guidance: Guidance,
) -> Embedding:
    """Returns the embedding sampled from unit noise x, in the prior's scale. noises[i] is the noise of step i.

    The predicted x0 is clipped after guidance.
    """
    denoiser: Denoiser = make_denoiser(network, params, "x0", branches, guidance)
    clip = network.config.clip
    if clip is not None:
        denoiser = Changed(denoiser, lambda denoised: denoised._replace(x0=jnp.clip(denoised.x0, -clip, clip)))
    start = x * (1 + rows.sigma[0] ** 2) ** 0.5
    state = dataclasses.replace(Linear().init(start), memory=denoiser.init(start))
    return scan_rows(Linear(), denoiser, state, repeat(rows, x.shape[0]), noises).x


@functools.partial(jax.jit, static_argnums=0)
def _embed(
    network: PriorNetwork, params: Params, rows: Rows, keys: Keys, branches: Sequence[Conditioning],
    guidance: Guidance,
) -> Embedding:  # fmt: skip
    noise = lambda i: draw_noise(keys, PRIOR, i, (network.config.embedding,))  # noqa: E731
    noises = jax.vmap(noise)(1 + jnp.arange(len(rows.index)))
    x = sample(network, params, rows, noise(0), noises, branches, guidance)
    mean, std = (params[name].astype(jnp.float32) for name in ("clip_mean", "clip_std"))
    return x * std + mean


@functools.partial(jax.jit, static_argnums=0)
def _encode(static: tuple[PriorConfig, str], params: Params, ids: TokenIds) -> Conditioning:
    config, dtype = static
    outputs = ProjectedTextEncoder(config.text, jnp.dtype(dtype)).apply({"params": params}, ids)
    embedding, hidden = typing.cast(tuple[Array, Array], outputs)
    ends = jnp.argmax(ids == config.text.eos_token_id, axis=-1)
    return Conditioning(hidden, context_length=ends + 1, label=embedding)


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
    def load(
        cls, path: str | os.PathLike[str], *, dtype: DTypeLike | None = None, variant: str | None = None
    ) -> "Prior":
        """Returns the prior of a diffusers folder or hub repository, such as "kakaobrain/karlo-v1-alpha".

        Raises sdjax.convert.CheckpointError if there is none, ValueError for an unknown dtype.
        """
        from sdjax import convert
        from sdjax.loading.hub import resolve

        dtype = placement.default_dtype() if dtype is None else dtype_name(dtype)
        config, params, tokenizer = convert.load_prior(resolve(path, variant=variant), dtype)
        return cls(config, cast(params, dtype), tokenizer, dtype, str(path))

    @pinned()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Returns the conditioning of the prompts."""
        text = self.config.text
        check_lengths(self.tokenizer, prompts, text.max_length)
        ids = self.tokenizer(prompts, length=text.max_length, pad_token_id=text.pad_token_id)
        return _encode((self.config, self.dtype), self._placed.on_default_device(self.params)["text"], jnp.asarray(ids))

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
        """Returns a predicted CLIP image embedding for every prompt and its seed, float32 [b, d].

        The noise of an embedding depends only on its seed. Another number of steps needs a new compilation.
        `guidance_scale` 1 switches guidance off. `negative_prompts` None means empty ones. `exact` computes the
        embeddings one by one, so that they are bit-identical alone and in a batch. Raises ValueError if numbers do not
        match or are out of range.
        """
        prompts = texts("prompts", prompts)
        negatives = [""] * len(prompts) if negative_prompts is None else texts("negative_prompts", negative_prompts, "")
        if not len(prompts) == len(seeds) == len(negatives) or not len(prompts):
            raise ValueError(
                f"give one seed and one negative prompt for each prompt; got {len(prompts)} prompts, {len(seeds)} "
                f"seeds, {len(negatives)} negative prompts"
            )
        check_guidance_scale(guidance_scale)
        note_unguided(negative_prompt=guidance_scale == 1 and any(negatives))
        check_prompts([*prompts, *negatives])
        if exact and len(prompts) > 1:
            how = {"num_steps": num_steps, "guidance_scale": guidance_scale}
            each = zip(prompts, seeds, negatives, strict=True)
            return jnp.concatenate([self.embed([p], [s], negative_prompts=[n], **how) for p, s, n in each])
        rows, keys = make_rows(self.config, num_steps), make_keys(seeds)
        guidance = make_guidance(guidance_scale)
        texts_of = {"unconditional": negatives, "conditional": prompts}
        branches = [self.encode(texts_of[branch]) for branch in guidance.branches]
        params = self._placed.on_default_device(self.params)["prior"]
        return _embed(PriorNetwork(self.config, self.dtype), params, rows, keys, branches, guidance)
