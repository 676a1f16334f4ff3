"""Deterministic weights, so that reference outputs can be kept without the checkpoints they were made with.

Each tensor is drawn from a Philox stream of its own, keyed by the CRC-32 of its name and a seed, and scaled so that
activations stay near unit variance. No tensor is zero: a UNet whose zero-initialised convolutions stayed zero would put
out zero whatever the rest of it computed, and prove nothing.
"""

import gzip
import json
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Of the releases: UNet, autoencoder, text encoder (without OpenCLIP's unused last block)
RELEASED = {
    "sd1": (859_520_964, 83_653_863, 123_060_480),
    "sd1_inpaint": (859_535_364, 83_653_863, 123_060_480),
    "sd2_base": (865_910_724, 83_653_863, 340_387_840),
    "sd2_v": (865_910_724, 83_653_863, 340_387_840),
    "sd2_inpaint": (865_925_124, 83_653_863, 340_387_840),
    "sd2_depth": (865_913_604, 83_653_863, 340_387_840),
    "x4_upscaler": (473_398_020, 55_325_927, 340_387_840),
    "sd2_unclip_h": (870_173_124, 83_653_863, 340_387_840),
    "sd2_unclip_l": (869_517_764, 83_653_863, 340_387_840),
    "laion400m": (872_300_484, 83_653_863, 542_895_360),
}


def fill(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Returns the float32 tensor that a checkpoint made with `seed` holds under `name`."""
    stream = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), seed]))
    x = stream.standard_normal(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    if len(shape) <= 1:
        return np.float32(0.1) * x + np.float32(name.endswith("weight"))
    if "embedding" in name:
        return np.float32(0.3) * x
    return (x / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def fill_all(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns `fill` of every name."""
    return {name: fill(name, tuple(shape), seed) for name, shape in shapes.items()}


def fill_spec(spec: dict) -> dict[str, np.ndarray]:
    """Returns `fill` of a kit specification's shapes, by its seed, with what it scales scaled and kept from 0."""
    tensors = fill_all(spec["shapes"], spec["seed"])
    for name, scale in spec.get("scale", {}).items():
        tensors[name] = tensors[name] * np.float32(scale)
    for name, floor in spec.get("floor", {}).items():
        tensors[name] = np.float32(floor) + np.abs(tensors[name])
    return tensors


def golden(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of tests/golden/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def families() -> dict[str, dict]:
    """Returns {family: {"spec": configuration in the reference's words, "manifest": {tensor name: shape}}}."""
    return json.loads(gzip.decompress((GOLDEN / "families.json.gz").read_bytes()))
