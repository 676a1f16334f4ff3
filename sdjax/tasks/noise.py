"""Noise of pictures whose seed gives another tool's noise, and variations of starting noise (`sdjax.noise`)."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from sdjax.config import ModelConfig
from sdjax.noise import JAX, SOURCES, PictureNoise, mix, put_in_middle
from sdjax.samplers.noise import MadeNoise
from sdjax.samplers.rows import Coef, Rows, draws
from sdjax.samplers.spacing import Grid
from sdjax.tasks.request import Request

Size: TypeAlias = tuple[int, int]
Drawn: TypeAlias = Callable[[int, Size], Float[np.ndarray, "h w c"]]


def streams(config: ModelConfig, requests: Sequence[Request], size: Size) -> list[PictureNoise | None]:
    """Returns the noise of each picture of this (height, width), None for those with JAX's noise."""
    vae = config.vae
    shape = (vae.latent_channels, size[0] // vae.factor, size[1] // vae.factor)
    out: list[PictureNoise | None] = []
    for one in requests:
        source = JAX if one.noise_source is None else one.noise_source
        if source == JAX:
            out.append(None)
            continue
        seed = 0 if one.seed is None else one.seed
        out.append(PictureNoise(SOURCES[source], seed, shape, place=one.noise_batch or (0, 1), ensd=one.ensd))
    return out


def posterior_noise(streams: Sequence[PictureNoise | None]) -> MadeNoise | None:
    """Returns the noise of the autoencoder's posterior of pictures whose tool draws it with the picture's generator."""
    drawn = [None if stream is None or not stream.source.encodes else stream.posterior() for stream in streams]
    shape = next((one.shape for one in drawn if one is not None), None)
    if shape is None:
        return None
    noise = np.stack([np.zeros(shape, np.float32) if one is None else one for one in drawn])
    return MadeNoise(np.moveaxis(noise, 1, -1)[:, None], np.array([one is not None for one in drawn]))


def starting_noise(
    config: ModelConfig, request: Request, stream: PictureNoise | None, size: Size, drawn: Drawn
) -> Float[np.ndarray, "h w c"] | None:
    """Returns a picture's starting noise, or None if it is the noise that JAX draws with the picture's seed.

    `drawn(seed, size)` is JAX's starting noise for that seed and size in pixels.
    """
    factor = config.vae.factor
    small = None if request.seed_resize in (None, size) else request.seed_resize
    strength, other = request.variation_strength, request.variation_seed or 0
    if stream is not None:
        resize = None if small is None else (small[0] // factor, small[1] // factor)
        noise = stream.start(variation_seed=other, variation_strength=strength, resize=resize)
        return noise.transpose(1, 2, 0)
    if not strength and small is None:
        return None
    seed = 0 if request.seed is None else request.seed
    noise, whole = (_channels_first(drawn(seed, one)) for one in (small or size, size))
    if strength:
        noise = mix(noise, _channels_first(drawn(other, small or size)), strength)
    return (noise if small is None else put_in_middle(noise, whole)).transpose(1, 2, 0)


def step_noise(
    rows: Sequence[Rows], streams: Sequence[PictureNoise | None], grids: Sequence[Callable[[], Grid]]
) -> MadeNoise | None:
    """Returns the noise that the pictures' rows add, made on the host. None if no picture needs any.

    There is one table of rows for each picture, and a function that returns the grid of all steps of its schedule. A
    row takes a draw if the tool draws there, even if it multiplies it by 0.
    """
    made = np.array([stream is not None and _uses(one) for one, stream in zip(rows, streams, strict=True)])
    if not made.any():
        return None
    shape = next(stream.shape for stream in streams if stream is not None)
    out = np.zeros((len(rows), max(np.size(one.index) for one in rows), *shape), np.float32)
    for i, (one, stream, grid) in enumerate(zip(rows, streams, grids, strict=True)):
        if stream is None or not made[i]:
            continue
        takes = draws(one, idle=stream.source.idle)
        brownian = takes & np.asarray(one.brownian)
        if brownian.any():
            pairs = [(float(a), float(b)) for a, b in np.asarray(one.interval)[brownian]]
            levels = grid().sigma if stream.source.whole else np.append(one.sigma, one.sigma_next)
            out[i, np.flatnonzero(brownian)] = stream.between(pairs, levels[levels > 0].min(), levels.max())
        rest = np.flatnonzero(takes & ~brownian)
        out[i, rest] = stream.steps(len(rest))
    return MadeNoise(np.moveaxis(out, 2, -1), made)


def _uses(rows: Rows) -> bool:
    """Returns whether a row of the picture adds noise."""
    return isinstance(rows.coef, Coef) and bool(np.any(rows.coef.noise) or np.any(rows.coef.churn))


def _channels_first(noise: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "c h w"]:
    return noise.transpose(2, 0, 1)
