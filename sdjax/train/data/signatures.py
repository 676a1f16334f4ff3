"""Signatures of networks and tokenizers. A cache of latents stores them, and training compares them."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from sdjax.config import TextConfig
from sdjax.prompts.added_words import AddedWords
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Params

PROBES = ("", "a photo of a cat", "Caf\u00e9 \U0001f98a, 2 (large) foxes!")  # tell tokenizers apart


def token_ids(tokenizer: Tokenizer | AddedWords, text: TextConfig, captions: Sequence[str]) -> np.ndarray:
    """Returns captions' tokens for a text encoder, int32 [captions, n]."""
    return np.asarray(tokenizer(captions, length=text.max_length, pad_token_id=text.pad_token_id), np.int32)


def probe(tokenizer: Tokenizer | AddedWords, text: TextConfig) -> str:
    """Returns a SHA-256 of the tokens that a tokenizer makes of PROBES for a text encoder."""
    return hashlib.sha256(token_ids(tokenizer, text, PROBES).tobytes()).hexdigest()


def encoder_of(params: Params) -> Params:
    """Returns the autoencoder's parameters that make latents, without the decoder's."""
    return {name: params["vae"][name] for name in ("encoder", "quant_conv") if name in params["vae"]}


def signature(params: Params) -> list[float]:
    """Returns the parameters' L1 and L2 norm, to four digits. They do not depend on the type of the parameters."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    norms = sum(np.abs(leaf).sum() for leaf in leaves), sum((leaf**2).sum() for leaf in leaves) ** 0.5
    return [float(f"{norm:.4g}") for norm in norms]


def is_signature(found: Sequence[float], params: Params) -> bool:
    """Returns whether a signature is that of these parameters."""
    return bool(np.allclose(found, signature(params), rtol=1e-3, atol=0))


def fingerprint(params: Params) -> str:
    """Returns a SHA-256 of parameters: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
