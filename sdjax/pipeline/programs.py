"""The compiled programs. Each is a module-level function of (static description, parameters, arrays).

Parameters are arguments, never closed over. Only shapes, the sampler's rule and the model description are static. All
arrays of a batch and all results have the batch as their first axis, so that `pipeline.placement` can spread them over
devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from sdjax.adapters.attached import Attached
from sdjax.adapters.patch import patched
from sdjax.adapters.seamless import Seamless
from sdjax.config import TextConfig, VAEConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Constraint
from sdjax.diffusion.denoiser import NetworkDenoiser, Weak, make_denoiser
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.network import Network
from sdjax.nn import TextEncoder, latent_from_moments
from sdjax.nn.layers import rows as map_rows
from sdjax.nn.layers.interpolation import interpolate
from sdjax.nn.vae import autoencoder
from sdjax.pipeline import bands, tiling
from sdjax.samplers.noise import POSTERIOR, START, MadeNoise, draw_noise
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
    """Returns `function` of a batch, computed entry by entry. So entry i never depends on the others.

    If each picture is divided over devices, the parts of the batch go on at the same time, on their own devices.
    """
    mesh = map_rows.current()
    parts = 1 if mesh is None else mesh.shape[map_rows.BATCH]
    entries = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(parts, -1, *a.shape[1:]), 1, 0), batched)
    out = jax.lax.map(lambda entry: function(*entry), entries)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0).reshape(-1, *a.shape[2:]), out)


def encode_text(static: tuple[TextConfig, str, bool], params: Params, ids: TokenIds) -> Context:
    config, dtype, exact = static

    def encode(ids: TokenIds) -> Context:
        with patched([Attached()]):
            return cast(Array, TextEncoder(config, jnp.dtype(dtype)).apply({"params": params}, ids))

    return one_by_one(encode, ids) if exact else encode(ids)


@dataclasses.dataclass(frozen=True)
class VAEProgram:
    """The static description of a program of the autoencoder. Convolutions wrap around along the axes of `seamless`.

    `band` is the number of numbers in a band. None means no bands for pictures up to `tiling.LARGE`.
    """

    vae: VAEConfig
    dtype: str
    seamless: str = ""
    band: int | None = None

    def run(self, params: Params, x: Array, method: Literal["encode", "decode"]) -> Array:
        """Returns moments of images or images of latents: of large pictures band by band (`sdjax.pipeline.tiling`)."""
        factor = 1 if method == "encode" else self.vae.factor
        mesh = map_rows.current()
        rows = x.shape[1] // (1 if mesh is None else mesh.shape[map_rows.ROWS])  # that a device has
        large = self.band is not None or rows * x.shape[2] * factor**2 > tiling.LARGE
        if large and self.vae.kind == "tiny":
            return bands.run(self.vae, self.dtype, params, x, method, self.seamless)
        if large:
            banded = tiling.encode if method == "encode" else tiling.decode
            band = tiling.BAND if self.band is None else self.band
            return banded(self.vae, jnp.dtype(self.dtype), params, x, band=band, seamless=self.seamless)
        network = autoencoder(self.vae, jnp.dtype(self.dtype))
        with patched([Seamless(self.seamless)] if self.seamless else []):
            return cast(Array, network.apply({"params": params}, x, method=method))


def encode_image(
    static: tuple[VAEProgram, int], params: Params, image: Image, keys: Keys | None, made: MadeNoise | None = None
) -> NewMap:
    program, draw = static

    def encode(image: Image) -> Moments:
        return program.run(params, image, "encode")

    moments = one_by_one(encode, image)
    b, h, w, c = moments.shape
    noise = None if keys is None else draw_noise(keys, POSTERIOR, draw, (h, w, c // 2))
    if noise is not None and made is not None:
        noise = made.instead_of(noise, jnp.zeros(b, jnp.int32))
    return latent_from_moments(moments, noise, program.vae.scale_factor)


def decode(program: VAEProgram, params: Params, latent: Latent) -> NewImage:
    def decode(latent: Latent) -> NewImage:
        return program.run(params, latent, "decode")

    # One at a time: a decoder's feature maps are gigabytes, and one picture keeps a device busy
    return one_by_one(decode, latent)


def noise(shape: tuple[int, ...], keys: Keys) -> Latent:
    return draw_noise(keys, START, 0, shape)


def resize(static: tuple[int, int, str, str], latent: Latent) -> NewMap:
    height, width, method, seamless = static
    # A latent that wraps around is repeated along these axes, and the middle is cut out of the result
    times = [3 if axis in seamless else 1 for axis in "yx"]
    several = jnp.tile(latent, (1, *times, 1))
    size = (times[0] * height, times[1] * width)
    top, left = (side if count == 3 else 0 for side, count in zip((height, width), times))
    return RESIZES[method](several, size)[:, top : top + height, left : left + width]


def _by_jax(method: str) -> Callable[[Array, tuple[int, int]], Array]:
    return lambda x, size: jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), method)


# Ways to enlarge a latent. torch's interpolate without a filter is "bilinear" and "sharp bicubic" (a = -0.75);
# with its filter (antialias=True) it is "bilinear" and "bicubic" (a = -0.5). Its "nearest" is "floor nearest", its
# "nearest-exact" is "nearest"
RESIZES: dict[str, Callable[[Array, tuple[int, int]], Array]] = {
    "bilinear": _by_jax("bilinear"),
    "bicubic": _by_jax("bicubic"),
    "sharp bicubic": lambda x, size: interpolate(x, size, method="bicubic"),
    "nearest": _by_jax("nearest"),
    "floor nearest": lambda x, size: x[:, _floors(x.shape[1], size[0])][:, :, _floors(x.shape[2], size[1])],
}


def _floors(old: int, new: int) -> np.ndarray:
    return np.arange(new) * old // new


def begin(
    program: SampleProgram, params: Params, x: Latent, branches: tuple[Conditioning, ...], guidance: Guidance
) -> State:
    """Returns the sampler's state before the first row."""
    denoiser = program.denoiser(params, branches, guidance)
    return dataclasses.replace(program.rule.init(x), memory=denoiser.init(x))


# For each argument of `sample` after the program: whether it is spread over devices with the batch
SPREAD = (False, True, True, True, True, True, True, True)


def images_first(rows: Rows) -> Rows:
    """Returns rows [n, b, ...] as `sample` takes them, [b, n, ...]."""
    return jax.tree.map(lambda a: a.swapaxes(0, 1), rows)


def sample(
    program: SampleProgram, params: Params, rows: Rows, state: State, keys: Keys,
    branches: tuple[Conditioning, ...], guidance: Guidance, known: Constraint | None = None,
    made: MadeNoise | None = None,
) -> State:  # fmt: skip
    """Returns the sampler's state after `rows`. Only this program runs the denoising network.

    Here the batch is the first axis of rows, [b, n, ...], and of the numbers of `guidance`.
    """

    def run(
        rows: Rows, state: State, keys: Keys, branches: tuple[Conditioning, ...], guidance: Guidance,
        known: Constraint | None, made: MadeNoise | None,
    ) -> State:  # fmt: skip
        rows = jax.tree.map(lambda a: a.swapaxes(0, 1), rows)
        denoiser = program.denoiser(params, branches, guidance)
        if known is None:
            return scan_rows(program.rule, denoiser, state, rows, keys, made=made)
        return scan_rows(program.rule, known.answer(denoiser), state, rows, keys, known.constrain(keys), made)

    arrays = (rows, state, keys, branches, guidance, known, made)
    return one_by_one(run, *arrays) if program.exact else run(*arrays)


def sample_with_remat(
    program: SampleProgram, params: Params, rows: Rows, state: State, keys: Keys,
    branches: tuple[Conditioning, ...], guidance: Guidance, made: MadeNoise | None = None,
) -> State:  # fmt: skip
    """Returns the sampler's state after `rows`, [n, b, ...], for gradients: like `sample`, but to be differentiated.

    Only the states between rows are stored; a row is computed again when its gradient is needed. `made` is the noise of
    the whole run.
    """
    denoiser = program.denoiser(params, branches, guidance)

    def step(state: State, row: Rows) -> tuple[State, None]:
        one = jax.tree.map(lambda a: a[None], row)
        return scan_rows(program.rule, denoiser, state, one, keys, made=made), None

    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), state, rows)[0]
