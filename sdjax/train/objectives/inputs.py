"""What the objectives of denoising networks read from a batch: latents of its pictures, contexts of its captions.

A batch holds `image` uint8 [b, h, w, 3] (or already floats in [-1, 1]) or the autoencoder's `moments` [b, h', w', 2 c];
and `ids` [b, n] or the text encoder's `context` [b, n, d].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.config import ModelConfig
from sdjax.nn import TextEncoder
from sdjax.pictures.image import to_float
from sdjax.train.objectives import conditioning, draws
from sdjax.train.objectives.objective import Batch
from sdjax.typing import Context, Keys, Latent, Params


def latents(config: ModelConfig, whole: Params, batch: Batch, keys: Keys, dtype: DTypeLike) -> Latent:
    """Returns draws from the posteriors of a batch's pictures, float32."""
    if "moments" in batch:
        return conditioning.from_moments(config, batch["moments"], keys, draws.POSTERIOR)
    image = batch["image"]
    image = to_float(image) if image.dtype == jnp.uint8 else image
    return conditioning.encode(config, whole["vae"], image, keys, draws.POSTERIOR, dtype)


def contexts(
    config: ModelConfig, whole: Params, batch: Batch, dtype: DTypeLike, *,
    keys: Keys | None = None, dropout: float = 0.0, empty: np.ndarray | None = None,
) -> Context:  # fmt: skip
    """Returns the contexts of a batch's captions. A share `dropout` of them is replaced by the empty caption.

    `empty` holds the tokens or the context of the empty caption, as the batch holds captions; it and `keys` are needed
    with `dropout` only.
    """
    encoded = "context" in batch
    given = batch["context"].astype(jnp.float32) if encoded else batch["ids"].astype(jnp.int32)
    if dropout:
        assert keys is not None
        given = draws.replaced(keys, draws.CAPTION, dropout, given, jnp.asarray(empty, given.dtype))
    return given if encoded else _encoded(config, whole, given, dtype)


def empty_contexts(config: ModelConfig, whole: Params, empty: np.ndarray, b: int, dtype: DTypeLike) -> Context:
    """Returns the context of the empty caption b times. `empty` are its tokens [n] or its context [n, d]."""
    one = jnp.asarray(empty, jnp.float32 if empty.ndim == 2 else jnp.int32)[None]
    context = one if empty.ndim == 2 else _encoded(config, whole, one, dtype)
    return jnp.broadcast_to(context, (b, *context.shape[1:]))


def _encoded(config: ModelConfig, whole: Params, ids: jax.Array, dtype: DTypeLike) -> Context:
    return TextEncoder(config.text, dtype).bind({"params": whole["text"]})(ids)
