"""Priors, which make image embeddings of texts, from diffusers' folders: Karlo's, and StableUnCLIPPipeline's.

Source of the fields: huggingface/diffusers, models/transformers/prior_transformer.py, schedulers/scheduling_unclip.py.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ConfigError, PriorConfig, TextConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import float_type
from sdjax.convert.describe.diffusers_config import text_from_transformers
from sdjax.convert.describe.fields import only
from sdjax.convert.describe.tokens import check_tokens
from sdjax.convert.errors import CheckpointError
from sdjax.convert.parts.networks import network_params, prefix_of
from sdjax.nn.networks import NETWORKS
from sdjax.nn.prior import EXTRA
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Params

_ONLY = {
    "added_emb_type": ("prd",), "additional_embeddings": (EXTRA,), "embedding_proj_norm_type": (None,),
    "encoder_hid_proj_type": ("linear",), "norm_in_type": (None,), "time_embed_act_fn": ("silu",),
    "time_embed_dim": (None,),
}  # fmt: skip
_SCHEDULER_ONLY = {
    "beta_schedule": ("squaredcos_cap_v2",), "num_train_timesteps": (1000,), "prediction_type": ("sample",),
    "steps_offset": (0,), "thresholding": (False,), "timestep_spacing": ("leading",), "trained_betas": (None,),
    "variance_type": ("fixed_small_log", "fixed_small"), "rescale_betas_zero_snr": (False,),
}  # fmt: skip
_KINDS: dict[str, Literal["unclip", "ddpm"]] = {"UnCLIPScheduler": "unclip", "DDPMScheduler": "ddpm"}
_POSITIONS = r"text_model\.embeddings\.position_ids"


def prior_from_diffusers(
    config: Mapping[str, Any], scheduler: Mapping[str, Any], text: TextConfig | None = None
) -> PriorConfig:
    """Returns the prior that diffusers' prior/config.json and its scheduler's file describe. Raises ConfigError."""
    only(config, _ONLY, "prior/config.json")
    only(scheduler, _SCHEDULER_ONLY, "prior_scheduler/scheduler_config.json")
    kind = scheduler.get("_class_name", "UnCLIPScheduler")
    if kind not in _KINDS:
        raise ConfigError(f"prior_scheduler/scheduler_config.json: its class is {' or '.join(_KINDS)}; got {kind}")
    width = config.get("embedding_dim", 768)
    for name in ("clip_embed_dim", "embedding_proj_dim"):
        only(config, {name: (None, width)}, "prior/config.json")
    text = TextConfig(width=width) if text is None else text
    only(config, {"num_embeddings": (text.max_length,)}, "prior/config.json")
    heads = config.get("num_attention_heads", 32)
    return PriorConfig(
        width=heads * config.get("attention_head_dim", 64),
        heads=heads,
        layers=config.get("num_layers", 20),
        embedding=width,
        scheduler=_KINDS[kind],
        clip=scheduler.get("clip_sample_range", 1.0) if scheduler.get("clip_sample", True) else None,
        text=text,
    )


def load_prior(source: CheckpointLike, dtype: DTypeLike | None = None) -> tuple[PriorConfig, Params, Tokenizer]:
    """Returns a prior, description, parameters {"prior", "text"} and tokenizer, from a diffusers folder with one.

    Its text encoder is prior_text_encoder, or text_encoder in Karlo's folder. Raises CheckpointError as `load`,
    ValueError for an unknown dtype.
    """
    kind, checkpoint = float_type(dtype), open_checkpoint(source)
    if prefix_of(checkpoint, ("prior/", "prd_embedding")) is None:
        raise checkpoint.error("it holds no prior; expected a diffusers folder with one (kakaobrain/karlo-v1-alpha's)")
    last = "text_projection.weight"
    words = prefix_of(checkpoint, ("prior_text_encoder/", last), ("text_encoder/", last))
    if words is None:
        raise checkpoint.error("the prior has no text encoder with a projection (prior_text_encoder, text_encoder)")
    try:
        text = text_from_transformers(_file(checkpoint, f"{words}config.json"), {})
        scheduler = _file(checkpoint, "prior_scheduler/scheduler_config.json")
        config = prior_from_diffusers(_file(checkpoint, "prior/config.json"), scheduler, text)
    except ConfigError as error:
        raise checkpoint.error(str(error)) from error
    shapes, what = NETWORKS["prior_text"].shapes(text), "a text encoder with a projection"
    params = {
        "prior": prior_params(checkpoint, config, "prior/", kind),
        "text": network_params(checkpoint, shapes, words, what, dtype=kind, unused=_POSITIONS),
    }
    own = None if checkpoint.path is None else checkpoint.path / words.replace("text_encoder/", "tokenizer")
    try:
        tokenizer = Tokenizer.load(own) if own is not None and own.is_dir() else Tokenizer()
    except ValueError as error:
        raise CheckpointError(str(error), checkpoint.path) from error
    check_tokens(tokenizer, text, checkpoint.error)
    return config, params, tokenizer


def prior_params(
    source: Checkpoint | CheckpointLike, config: PriorConfig, prefix: str, dtype: np.dtype | None
) -> Params:
    """Returns the parameters of a described prior from the tensors that begin with `prefix`. Raises CheckpointError."""
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    return network_params(checkpoint, NETWORKS["prior"].shapes(config), prefix, "a prior", dtype=dtype)


def _file(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    file = checkpoint.files.get(name)
    if file is None:
        raise checkpoint.error(f"the folder has no {name}, which says how the prior is built")
    return file
