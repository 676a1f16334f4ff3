"""ComfyUI's files of latents: safetensors with `latent_tensor` [b, c, h, w], as the autoencoder gives it.

Source: ComfyUI's nodes SaveLatent and LoadLatent. A file with the empty tensor `latent_format_version_0` holds latents
before the scaling for the network. Older files hold scaled ones. c is 4; the built-in model has 16 channels.
"""

from collections.abc import Mapping

import numpy as np
import safetensors
from jaxtyping import Float
from safetensors.numpy import save

from sdjax.convert.containers.safetensors_file import DTYPES

SCALE = np.float32(0.18215)  # of Stable Diffusion's latents
MOST_BYTES = 64 * 2**20
MOST_CHANNELS = 16
TENSOR, VERSION = "latent_tensor", "latent_format_version_0"
FLOATS = ("F16", "BF16", "F32", "F64")


def encode(samples: Float[np.ndarray, "b h w c"], texts: Mapping[str, str]) -> bytes:
    """Returns the file of latents, scaled as the network sees them. Raises ValueError as `check`."""
    check(samples.shape)
    tensor = np.ascontiguousarray(np.moveaxis(samples.astype(np.float32) / SCALE, -1, 1))
    return save({TENSOR: tensor, VERSION: np.zeros(0, np.float32)}, metadata=dict(texts))


def decode(data: bytes) -> Float[np.ndarray, "b h w c"]:
    """Returns the latents of a file, scaled as the network sees them. Raises ValueError, in a sentence, for others."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"a file of latents has at most {MOST_BYTES // 2**20} MB")
    try:
        found = dict(safetensors.deserialize(data))
    except (safetensors.SafetensorError, ValueError):
        raise ValueError("it is no file of latents, which SaveLatent writes: it is no safetensors file") from None
    if TENSOR not in found:
        raise ValueError(f"it is no file of latents: it holds no {TENSOR}")
    kind, shape = found[TENSOR]["dtype"], tuple(found[TENSOR]["shape"])
    if kind not in FLOATS:
        raise ValueError(f"latents are of a type of {', '.join(FLOATS)}; the file's are {kind}")
    if len(shape) == 4:
        shape = (shape[0], *shape[2:], shape[1])
    check(shape)
    tensor = np.frombuffer(found[TENSOR]["data"], DTYPES[kind]).reshape(shape[0], shape[-1], *shape[1:-1])
    samples = np.ascontiguousarray(np.moveaxis(tensor, 1, -1)).astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("the latents of the file are not all finite numbers")
    return samples * SCALE if VERSION in found else samples


def check(shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a shape is [b, h, w, c]."""
    if len(shape) != 4 or shape[-1] > MOST_CHANNELS or 0 in shape:
        raise ValueError(f"latents are [batch, height, width, 1 to {MOST_CHANNELS} channels]; got {list(shape)}")
