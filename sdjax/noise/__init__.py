"""Noise of other tools, computed on the host by NumPy alone: with it a seed gives the picture known from there."""

from sdjax.noise.batches import a1111_noise, brownian, comfyui_noise, comfyui_step_noise, diffusers_noise
from sdjax.noise.brownian import BrownianTree
from sdjax.noise.philox import TorchCUDA
from sdjax.noise.sources import JAX, NOISE_SOURCES, SOURCES, NoiseSource, PictureNoise
from sdjax.noise.torch_cpu import TorchCPU
from sdjax.noise.variation import mix, put_in_middle

__all__ = [
    "JAX", "NOISE_SOURCES", "SOURCES", "BrownianTree", "NoiseSource", "PictureNoise", "TorchCPU", "TorchCUDA",
    "a1111_noise", "brownian", "comfyui_noise", "comfyui_step_noise", "diffusers_noise", "mix", "put_in_middle",
]  # fmt: skip
