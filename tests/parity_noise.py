"""The parity kit's functions about other tools' noise, carried out by sdjax.noise."""

import numpy as np

from sdjax import noise

DEVICES = {"cpu": noise.TorchCPU, "cuda": noise.TorchCUDA}
A1111 = {"CPU": "torch_cpu", "NV": "torch_cuda"}
RELEASES = {"2025-10": "comfyui_2025", "2026-01": "comfyui"}


def torch_randn(device, seed, shapes, dtype):
    generator = DEVICES[device](seed)
    return [np.asarray(generator.randn(shape, dtype), np.float64) for shape in shapes]


def a1111_noise(source, shape, seeds, draws, subseeds, subseed_strength, resize_from, ensd):
    resize = tuple(side // 8 for side in resize_from)
    return noise.a1111_noise(
        A1111[source], shape, seeds, draws, variation_seeds=subseeds or (),
        variation_strength=subseed_strength if subseeds else 0.0, resize=resize if all(resize) else None, ensd=ensd,
    )  # fmt: skip


def comfyui_noise(seed, shape, noise_inds):
    return noise.comfyui_noise(seed, shape, noise_inds)


def comfyui_step_noise(seed, shape, draws, release):
    return noise.comfyui_step_noise(seed, shape, draws, RELEASES[release])


def diffusers_noise(seeds, shape, dtype, draws):
    return np.asarray(noise.diffusers_noise(seeds, shape, draws, dtype=dtype), np.float64)


def brownian(seeds, shape, sigma_min, sigma_max, pairs, source):
    return noise.brownian(A1111[source], seeds, shape[1:], pairs, sigma_min, sigma_max)
