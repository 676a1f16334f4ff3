"""Stores the autoencoder's moments of a fixed set of pictures, with their captions' tokens."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sdjax.config import VAEConfig
from sdjax.nn import AutoencoderKL
from sdjax.nn.jax_settings import pinned
from sdjax.pictures.image import to_float
from sdjax.storage.addresses import local
from sdjax.storage.files import new_file
from sdjax.typing import Params

ENCODE_BATCH = 64


@pinned()
def encode_to_folder(
    config: VAEConfig, params: Params, pictures: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    folder: str | pathlib.Path, *, count: int, shard: int, say: Callable[[str], Any] = print,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Returns `moments` (float16) and token `ids` (uint16) of `count` pictures, made in shards that are kept in files.

    `pictures(k, n)` returns the n pictures of shard k, uint8, and their captions' ids. An existing shard is read and
    not made again, so a folder must be used with one autoencoder only.
    """
    folder = pathlib.Path(local(folder))
    vae = AutoencoderKL(config)
    encode = jax.jit(lambda images: vae.apply({"params": params}, to_float(images), method="encode"))
    moments, ids = [], []
    for k in range(-(-count // shard)):
        path = folder / f"{k:05d}.npz"
        if not path.exists():
            images, tokens = pictures(k, min(shard, count - k * shard))
            parts = [encode(images[i : i + ENCODE_BATCH]) for i in range(0, len(images), ENCODE_BATCH)]
            made = {"moments": np.concatenate(parts).astype(np.float16), "ids": tokens.astype(np.uint16)}
            needs = sum(array.nbytes for array in made.values())
            with new_file(path, what="writing the latents", needs=needs) as partial, open(partial, "wb") as file:
                np.savez(file, allow_pickle=False, **made)
            say(f"encoded {k * shard + len(images)} of {count} pictures")
        with np.load(path) as arrays:
            moments.append(arrays["moments"])
            ids.append(arrays["ids"])
    return {"moments": np.concatenate(moments), "ids": np.concatenate(ids)}


def scale_factor(moments: np.ndarray) -> float:
    """Returns one over the standard deviation of the latents' means, over all values.

    Source: Rombach et al. 2022 (arXiv 2112.10752), appendix G; theirs is 0.18215.
    """
    mean, _ = np.split(moments.astype(np.float64), 2, axis=-1)
    return float(1.0 / mean.std())


def draw(latents: dict[str, np.ndarray], seed: int, n: int, count: int) -> dict[str, np.ndarray]:
    """Returns batch `n` of a seed: `count` random entries. The result depends only on the arguments."""
    rows = np.random.default_rng([seed, n]).integers(0, len(latents["ids"]), count)
    return {name: values[rows] for name, values in latents.items()}
