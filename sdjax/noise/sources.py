"""The noise of other tools: which generators a tool seeds for a picture, and what it draws from them, in which order.

Source: AUTOMATIC1111's modules/rng.py, ComfyUI's comfy/sample.py and comfy/k_diffusion/sampling.py (`seed + 1` since
December 2025), diffusers' utils/torch_utils.py.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from sdjax.checks.arguments import MAX_SEED
from sdjax.noise.brownian import BrownianTree
from sdjax.noise.philox import TorchCUDA
from sdjax.noise.torch_cpu import TorchCPU
from sdjax.noise.variation import mix, put_in_middle

Generator = TorchCPU | TorchCUDA


@dataclasses.dataclass(frozen=True)
class NoiseSource:
    """A tool's way to draw noise.

    `start` is the generator of the starting noise. `steps` is the generator of the noise that is added in steps: None
    means that the starting noise's generator goes on, otherwise it is a new one with the picture's seed + `later`.
    `tree`: whether SDE samplers of k-diffusion take their noise from a Brownian tree with the picture's seed. `idle`:
    whether every step of a sampler that may churn draws noise, or only the steps that do. `encodes`: whether the
    generator first draws the autoencoder's posterior, if the picture starts from another one. `whole`: whether the
    Brownian path spans all steps of the schedule, even if image to image leaves out the first ones. `at_once`: whether
    the noise of a batch is drawn at once from one seed; `clips`: in a clip, with the frames behind the channels.
    """

    start: type[Generator]
    steps: type[Generator] | None = None
    later: int = 0
    tree: bool = True
    idle: bool = False
    encodes: bool = False
    whole: bool = False
    at_once: bool = False
    clips: bool = False


SOURCES = {
    "torch_cpu": NoiseSource(TorchCPU, idle=True, whole=True),
    "torch_cuda": NoiseSource(TorchCUDA, idle=True, whole=True),
    "diffusers": NoiseSource(TorchCPU, tree=False, encodes=True, at_once=True, clips=True),
    "comfyui": NoiseSource(TorchCPU, TorchCPU, later=1, at_once=True),
    "comfyui_2025": NoiseSource(TorchCPU, TorchCPU, at_once=True),
    "comfyui_cuda": NoiseSource(TorchCPU, TorchCUDA, at_once=True),
}
JAX = "jax"
NOISE_SOURCES = (JAX, *SOURCES)


class PictureNoise:
    """All noise of one picture, [c, h, w] each, float32, in the order in which the tool draws it.

    Call `posterior` first, if the picture starts from another one and the source `encodes`. Then call `start`. `place`
    (k, n): the picture is number k, counted from 0, of n whose noise the tool draws at once from one generator. `ensd`:
    if it is not 0, the noise of steps comes from a generator with seed + `ensd`. `of_clip`: the n pictures are the
    frames of a clip.
    """

    of_clip = False

    def __init__(
        self,
        source: NoiseSource,
        seed: int,
        shape: Sequence[int],
        *,
        place: tuple[int, int] = (0, 1),
        ensd: int = 0,
        dtype: str = "float32",
    ) -> None:
        self.source, self._seed, self._place, self._dtype = source, seed, place, dtype
        self.shape = tuple(shape)
        self._generator: Generator = source.start(seed)
        self._later: Generator | None = None
        if ensd:
            self._later = (source.steps or source.start)(seed + ensd & MAX_SEED)
        elif source.steps is not None:
            self._later = source.steps(seed + source.later & MAX_SEED)

    def posterior(self) -> Float[np.ndarray, "c h w"]:
        """Returns the noise of the autoencoder's posterior."""
        return self._draw(self._generator, self.shape)

    def start(
        self,
        *,
        variation_seed: int = 0,
        variation_strength: float = 0.0,
        resize: tuple[int, int] | None = None,
    ) -> Float[np.ndarray, "c h w"]:
        """Returns the starting noise.

        With `variation_strength` s above 0 it is mixed with the noise of `variation_seed`, which is s of it (`mix`).
        `resize` (height, width) of another latent: the noise of that size is put in the middle of this one's.
        """
        small = self.shape if resize is None else (self.shape[0], *resize)
        noise = self._draw(self._generator if small == self.shape else self.source.start(self._seed), small)
        if variation_strength:
            noise = mix(noise, self._draw(self.source.start(variation_seed), small), variation_strength)
        return noise if small == self.shape else put_in_middle(noise, self._draw(self._generator, self.shape))

    def steps(self, count: int) -> Float[np.ndarray, "n *chw"]:
        """Returns the noise of the next `count` draws of a sampler."""
        generator = self._later or self._generator
        return np.array([self._draw(generator, self.shape) for _ in range(count)]).reshape(count, *self.shape)

    def between(
        self, pairs: Sequence[tuple[float, float]], sigma_min: float, sigma_max: float
    ) -> Float[np.ndarray, "n c h w"]:
        """Returns the noise of steps (from sigma, to sigma): a Brownian path's, or without a `tree` the next draws.

        The path goes from `sigma_min` to `sigma_max`, the smallest sigma above 0 and the largest one of the run.
        """
        if not self.source.tree:
            return self.steps(len(pairs))
        kind = self.source.start

        def randn(seed: int, shape: tuple[int, ...]) -> np.ndarray:
            return self._draw(kind(seed), shape)

        return BrownianTree(self._seed, self.shape, sigma_min, sigma_max, randn)(pairs)

    def _draw(self, generator: Generator, shape: tuple[int, ...]) -> np.ndarray:
        place, count = self._place
        if self.of_clip and self.source.clips:
            return generator.randn((shape[0], count, *shape[1:]), self._dtype)[:, place]
        return generator.randn((count, *shape), self._dtype)[place]
