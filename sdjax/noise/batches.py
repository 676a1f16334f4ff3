"""The noise of whole batches, as four tools draw it: for `latents`, and to look at. Everything is [b, c, h, w].

latents = sdjax.noise.comfyui_noise(42, (1, 4, 64, 64), [2])  # picture 2 of a batch: LatentFromBatch
sdjax.text_to_image(pipe, "a cat", latents=latents[0].transpose(1, 2, 0))
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from sdjax.noise.sources import SOURCES, PictureNoise
from sdjax.noise.torch_cpu import TorchCPU

Noise = Float[np.ndarray, "b c h w"]
Draws = Float[np.ndarray, "n b c h w"]


def a1111_noise(
    source: str,
    shape: Sequence[int],
    seeds: Sequence[int],
    draws: int,
    *,
    variation_seeds: Sequence[int] = (),
    variation_strength: float = 0.0,
    resize: tuple[int, int] | None = None,
    ensd: int = 0,
) -> Draws:
    """Returns the starting noise of pictures of `shape` [c, h, w], then what an ancestral sampler draws.

    `source` is "torch_cpu" or "torch_cuda". Each picture has its own generator. The variation seed of pictures that
    have none is 0. `resize` is the other latent's (height, width).
    """
    out = []
    for i, seed in enumerate(seeds):
        noise = PictureNoise(SOURCES[source], seed, shape, ensd=ensd)
        variation = variation_seeds[i] if i < len(variation_seeds) else 0
        start = noise.start(variation_seed=variation, variation_strength=variation_strength, resize=resize)
        out.append([start, *(noise.steps(draws - 1) if draws > 1 else [])])
    return np.swapaxes(np.array(out), 0, 1)


def comfyui_noise(seed: int, shape: Sequence[int], indices: Sequence[int] | None = None) -> Noise:
    """Returns ComfyUI's starting noise of a batch of `shape` [b, c, h, w].

    With `indices` (noise_inds, of the node LatentFromBatch), pictures are drawn one after another, and those kept.
    """
    generator = TorchCPU(seed)
    if indices is None:
        return generator.randn(shape)
    one = (1, *shape[1:])
    return np.concatenate([generator.randn(one) for _ in range(max(indices) + 1)])[list(indices)]


def comfyui_step_noise(seed: int, shape: Sequence[int], draws: int, source: str = "comfyui") -> Draws:
    """Returns what ComfyUI's ancestral samplers draw for a batch of `shape` [b, c, h, w].

    `source` is "comfyui", "comfyui_2025" (releases before 26 December 2025) or "comfyui_cuda".
    """
    return PictureNoise(SOURCES[source], seed, shape).steps(draws)


def diffusers_noise(seeds: int | Sequence[int], shape: Sequence[int], draws: int, *, dtype: str = "float32") -> Draws:
    """Returns the starting noise of a batch of `shape` [b, c, h, w] in diffusers, then what its steps draw.

    `seeds` is a list with one generator each, or one seed of one generator for the whole batch. `dtype` is the
    pipeline's: float16 noise is not rounded float32 noise.
    """
    groups = [(seeds, shape)] if isinstance(seeds, int) else [(seed, (1, *shape[1:])) for seed in seeds]
    generators = [(TorchCPU(seed), one) for seed, one in groups]
    return np.stack([np.concatenate([g.randn(one, dtype) for g, one in generators]) for _ in range(draws)])


def brownian(
    source: str,
    seeds: Sequence[int],
    shape: Sequence[int],
    pairs: Sequence[tuple[float, float]],
    sigma_min: float,
    sigma_max: float,
) -> Draws:
    """Returns the noise of steps (from sigma, to sigma) from one Brownian tree a picture of `shape` [c, h, w]."""
    noises = [PictureNoise(SOURCES[source], seed, shape).between(pairs, sigma_min, sigma_max) for seed in seeds]
    return np.stack(noises, axis=1)
