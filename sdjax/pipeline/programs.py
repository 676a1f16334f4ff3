"""The compiled programs. Each is a module-level function of (static description, parameters, arrays).

Parameters are arguments, never closed over. Only shapes, the sampler's rule and the model description are static. All
arrays of a batch and all results have the batch as their first axis, so that `pipeline.placement` can spread them over
devices.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from sdjax.config import TextConfig, VAEConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Known
from sdjax.diffusion.denoiser import NetworkDenoiser, Weak, make_denoiser
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.network import Network
from sdjax.nn import AutoencoderKL, TextEncoder, latent_from_moments
from sdjax.pipeline import tiling
from sdjax.samplers.noise import POSTERIOR, START, draw_noise
from sdjax.samplers.rows import Rows
from sdjax.samplers.rule import Rule, State, scan_rows
from sdjax.typing import Context, Image, Keys, Latent, Moments, NewImage, NewMap, Params, TokenIds

CHUNK = 5  # rows of one compiled scan; the host calls it as often as the sampler has rows (see docs/design.md)

Out = TypeVar("Out")


@dataclasses.dataclass(frozen=True)
class SampleProgram:
    """The static description of a sampling program. Only another one, or other shapes, need a new compilation.

    `weak` is the second network of autoguidance and its prediction type. The parameters are then those of both.
    """

    network: Network
    prediction: str
    rule: Rule
    exact: bool = False
    weak: tuple[Network, str] | None = None

    def denoiser(self, params: Params, branches: tuple[Conditioning, ...], guidance: Guidance) -> NetworkDenoiser:
        """Returns the denoiser of these parameters."""
        weak = None
        if self.weak is not None:
            network, prediction = self.weak
            weak, params = Weak(network, params["weak"], prediction), params["main"]
        return make_denoiser(self.network, params, self.prediction, branches, guidance, weak)


def one_by_one(function: Callable[..., Out], *batched: PyTree) -> Out:
    """Returns `function` of a batch, computed entry by entry. So entry i never depends on the others."""
    return jax.tree.map(
        lambda a: a[:, 0], jax.lax.map(lambda entry: function(*jax.tree.map(lambda a: a[None], entry)), batched)
    )


def encode_text(static: tuple[TextConfig, str, bool], params: Params, ids: TokenIds) -> Context:
    config, dtype, exact = static

    def encode(ids: TokenIds) -> Context:
        return cast(Array, TextEncoder(config, jnp.dtype(dtype)).apply({"params": params}, ids))

    return one_by_one(encode, ids) if exact else encode(ids)


def encode_image(static: tuple[VAEConfig, str, int], params: Params, image: Image, keys: Keys | None) -> NewMap:
    config, dtype, draw = static
    vae = AutoencoderKL(config, jnp.dtype(dtype))

    def encode(image: Image) -> Moments:
        return cast(Array, vae.apply({"params": params}, image, method="encode"))

    moments = one_by_one(encode, image)
    b, h, w, c = moments.shape
    noise = None if keys is None else draw_noise(keys, POSTERIOR, draw, (h, w, c // 2))
    return latent_from_moments(moments, noise, config.scale_factor)


def decode(static: tuple[VAEConfig, str], params: Params, latent: Latent) -> NewImage:
    config, dtype = static
    vae = AutoencoderKL(config, jnp.dtype(dtype))

    def decode(latent: Latent) -> NewImage:
        if latent.shape[1] * latent.shape[2] * config.factor**2 > tiling.LARGE:
            return tiling.decode(config, jnp.dtype(dtype), params, latent)
        return cast(Array, vae.apply({"params": params}, latent, method="decode"))

    # One at a time: a decoder's feature maps are gigabytes, and one picture keeps a device busy
    return one_by_one(decode, latent)


def noise(shape: tuple[int, ...], keys: Keys) -> Latent:
    return draw_noise(keys, START, 0, shape)


def resize(static: tuple[int, int, str], latent: Latent) -> NewMap:
    height, width, method = static
    return jax.image.resize(latent, (latent.shape[0], height, width, latent.shape[-1]), method)


def begin(
    program: SampleProgram, params: Params, x: Latent, branches: tuple[Conditioning, ...], guidance: Guidance
) -> State:
    """Returns the sampler's state before the first row."""
    denoiser = program.denoiser(params, branches, guidance)
    return dataclasses.replace(program.rule.init(x), memory=denoiser.init(x))


# For each argument of `sample` after the program: whether it is spread over devices with the batch
SPREAD = (False, True, True, True, True, True, True)


def images_first(rows: Rows) -> Rows:
    """Returns rows [n, b, ...] as `sample` takes them, [b, n, ...]."""
    return jax.tree.map(lambda a: a.swapaxes(0, 1), rows)


def sample(
    program: SampleProgram, params: Params, rows: Rows, state: State, keys: Keys,
    branches: tuple[Conditioning, ...], guidance: Guidance, known: Known | None = None,
) -> State:  # fmt: skip
    """Returns the sampler's state after `rows`. Only this program runs the denoising network.

    Here the batch is the first axis of rows, [b, n, ...], and of the numbers of `guidance`.
    """

    def run(
        rows: Rows, state: State, keys: Keys, branches: tuple[Conditioning, ...], guidance: Guidance,
        known: Known | None,
    ) -> State:  # fmt: skip
        rows = jax.tree.map(lambda a: a.swapaxes(0, 1), rows)
        denoiser = program.denoiser(params, branches, guidance)
        if known is None:
            return scan_rows(program.rule, denoiser, state, rows, keys)
        return scan_rows(program.rule, known.answer(denoiser), state, rows, keys, known.constrain(keys))

    arrays = (rows, state, keys, branches, guidance, known)
    return one_by_one(run, *arrays) if program.exact else run(*arrays)


def sample_with_remat(
    program: SampleProgram, params: Params, rows: Rows, state: State, keys: Keys,
    branches: tuple[Conditioning, ...], guidance: Guidance,
) -> State:  # fmt: skip
    """Returns the sampler's state after `rows`, [n, b, ...], for gradients: like `sample`, but to be differentiated.

    Only the states between rows are stored; a row is computed again when its gradient is needed.
    """
    denoiser = make_denoiser(program.network, params, program.prediction, branches, guidance)

    def step(state: State, row: Rows) -> tuple[State, None]:
        return scan_rows(program.rule, denoiser, state, jax.tree.map(lambda a: a[None], row), keys), None

    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), state, rows)[0]
