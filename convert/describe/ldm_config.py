"""Descriptions of models from ldm's YAML files, read as data: a `target` is looked up in a table, never imported.

Source of the fields: the constructors of Stability-AI/stablediffusion, ldm/models/diffusion/ddpm.py,
ldm/modules/diffusionmodules/{openaimodel,model}.py and ldm/modules/encoders/modules.py.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from sdjax import configs
from sdjax.config import (
    ConfigError,
    DepthConfig,
    ModelConfig,
    Prediction,
    ScheduleConfig,
    ScheduleKind,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)
from sdjax.convert.containers.places import written_otherwise
from sdjax.convert.errors import CheckpointError, shown
from sdjax.storage.addresses import local

MAX_BYTES = 2**18
_PREDICTIONS: dict[str, Prediction] = {"eps": "epsilon", "v": "v", "x0": "x0"}

_MODELS = (
    "LatentDiffusion", "LatentFinetuneDiffusion", "LatentInpaintDiffusion", "LatentDepth2ImageDiffusion",
    "LatentUpscaleDiffusion", "LatentUpscaleFinetuneDiffusion", "ImageEmbeddingConditionedLatentDiffusion",
)  # fmt: skip
_OPEN_CLIP: dict[str, Any] = {"width": 1024, "heads": 16, "activation": "gelu", "pad_token_id": 0}
_BERT: dict[str, Any] = {
    "kind": "bert", "heads": 8, "head_dim": 64, "activation": "gelu", "bos_token_id": 101, "eos_token_id": 102,
    "pad_token_id": 0,
}  # fmt: skip
_TEXT = {
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": lambda params: TextConfig(),
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder": lambda params: TextConfig(
        layers={"last": 24, "penultimate": 23}[params.get("layer", "last")], **_OPEN_CLIP
    ),
    "ldm.modules.encoders.modules.BERTEmbedder": lambda params: TextConfig(
        width=_integer(params, "n_embed"),
        layers=_integer(params, "n_layer"),
        vocab_size=params.get("vocab_size", 30522),
        max_length=params.get("max_seq_len", 77),
        **_BERT,
    ),
}


YAMLS = {  # the files of CompVis's, Runway's and Stability's repositories, and the models that they describe
    "v1-inference": "sd1",
    "v1-inpainting-inference": "sd1_inpaint",
    "v2-inference": "sd2_base",
    "v2-inference-v": "sd2_v",
    "v2-inpainting-inference": "sd2_inpaint",
    "v2-midas-inference": "sd2_depth",
    "x4-upscaling": "x4_upscaler",
    "v2-1-stable-unclip-h-inference": "sd2_unclip_h",
    "v2-1-stable-unclip-l-inference": "sd2_unclip_l",
    "txt2img-1p4B-eval": "laion400m",
    "txt2img-1p4B-eval_with_tokenizer": "laion400m",
}
_YAML = re.compile(r"(?i)(?:.*[\\/])?([^\\/]+?)(?:[-_](?:fp16|bf16|fp32))?\.ya?ml(?:[?#].*)?", re.DOTALL)


def stand_in(config: Any) -> str | None:
    """Returns the released model whose original YAML a path names by its last part, if no such file is here."""
    match = _YAML.fullmatch(config.strip(" \t\n\"'")) if isinstance(config, str) else None
    if match is None or written_otherwise(config) is not None:
        return None
    return {name.lower(): model for name, model in YAMLS.items()}.get(match[1].lower())


def read_ldm_yaml(path: str | os.PathLike[str]) -> ModelConfig:
    """Returns the model that an ldm YAML file describes. Raises CheckpointError if sdjax knows no such model."""
    path = written_otherwise(os.fsdecode(local(path))) or pathlib.Path(path)
    try:
        if not path.is_file():
            known = ", ".join(configs.NAMES)
            raise CheckpointError(f"there is no such file; a description is an ldm YAML file or one of {known}", path)
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"it has more than {MAX_BYTES} bytes; a model's YAML is shorter", path)
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"it cannot be read ({error.strerror or error})", path) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"its YAML cannot be read ({str(error).splitlines()[0]})", path) from error
    try:
        return config_from_ldm(data)
    except ConfigError as error:
        raise CheckpointError(str(error), path) from error


def config_from_ldm(data: Any) -> ModelConfig:
    """Returns the model that the contents of an ldm YAML file describe. Raises ConfigError."""
    model = _mapping(_mapping(data, "the file").get("model"), "model")
    target = model.get("target")
    if not isinstance(target, str) or target.rpartition(".")[2] not in _MODELS:
        raise ConfigError(f"model.target is {shown(target)}; known are {', '.join(_MODELS)}")
    params = _mapping(model.get("params"), "model.params")
    text = _mapping(params.get("cond_stage_config"), "cond_stage_config")
    if text.get("target") not in _TEXT:
        raise ConfigError(f"cond_stage_config.target is {shown(text.get('target'))}; known are {', '.join(_TEXT)}")
    try:
        tower = _TEXT[text["target"]](_mapping(text.get("params") or {}, "cond_stage_config.params"))
    except (KeyError, TypeError):
        raise ConfigError("FrozenOpenCLIPEmbedder's layer is 'last' or 'penultimate'") from None
    network = _mapping(_mapping(params.get("unet_config"), "unet_config").get("params"), "unet_config.params")
    first = _mapping(_mapping(params.get("first_stage_config"), "first_stage_config").get("params"), "its params")
    unet = unet_from_ldm(network)
    vae = vae_from_ldm(
        _mapping(first.get("ddconfig"), "ddconfig"), first.get("embed_dim", 4), params.get("scale_factor", 1.0)
    )
    return named(
        ModelConfig(
            name="custom",
            unet=unet,
            vae=vae,
            text=tower,
            schedule=schedule_from_ldm(params),
            image_size=_image_size(params, vae),
            guidance_scale=9.0 if tower.kind == "clip" and tower.activation == "gelu" else 7.5,
            depth=_depth(params.get("depth_stage_config")),
            vision=_vision(params.get("embedder_config")),
            noise_stats=_noise_stats(params.get("noise_aug_config")),
        )
    )


def _depth(stage: Any) -> DepthConfig | None:
    if stage is None:
        return None
    kind = _mapping(_mapping(stage, "depth_stage_config").get("params"), "depth_stage_config.params").get("model_type")
    if kind != "dpt_hybrid":
        raise ConfigError(f"depth_stage_config's model_type is 'dpt_hybrid'; got {shown(kind)}")
    return DepthConfig()


def _vision(embedder: Any) -> VisionConfig | None:
    if embedder is None:
        return None
    embedder = _mapping(embedder, "embedder_config")
    kind, params = embedder.get("target"), _mapping(embedder.get("params") or {}, "embedder_config.params")
    named = {field: params.get(field, default) for field, default in (("model", "ViT-L/14"), ("arch", "ViT-H-14"))}
    for name, field, value, tower in (
        ("ClipImageEmbedder", "model", "ViT-L/14", configs.get("sd2_unclip_l").vision),
        ("FrozenOpenCLIPImageEmbedder", "arch", "ViT-H-14", configs.get("sd2_unclip_h").vision),
    ):
        if kind == f"ldm.modules.encoders.modules.{name}" and named[field] == value:
            return tower
    raise ConfigError(
        "embedder_config is ClipImageEmbedder of ViT-L/14 or FrozenOpenCLIPImageEmbedder of ViT-H-14; got "
        f"{shown(kind)}"
    )


def _noise_stats(noise: Any) -> int | None:
    if noise is None:
        return None
    params = _mapping(_mapping(noise, "noise_aug_config").get("params"), "noise_aug_config.params")
    schedule = _mapping(params.get("noise_schedule_config") or {}, "noise_schedule_config")
    _only(schedule, "timesteps", 1000)
    _only(schedule, "beta_schedule", "squaredcos_cap_v2")
    return params.get("timestep_dim", 256)


def named(config: ModelConfig) -> ModelConfig:
    """Returns the released model's description if this one builds the same networks; else itself.

    Depth network and image tower are this one's own: other ones may stand beside the same model, or none.
    """
    for name in configs.NAMES:
        known = configs.get(name)
        if all(getattr(known, part) == getattr(config, part) for part in ("unet", "vae", "text", "schedule")):
            own = {name: getattr(config, name) for name in ("depth", "vision", "noise_stats", "few_step")}
            return dataclasses.replace(known, **own)
    return config


def unet_from_ldm(params: Mapping[str, Any]) -> UNetConfig:
    """Returns the UNet that openaimodel.UNetModel builds from these arguments. Raises ConfigError."""
    width, multiples = _integer(params, "model_channels"), _integers(params.get("channel_mult"), "channel_mult")
    channels = tuple(width * multiple for multiple in multiples)
    _only(params, "dims", 2)
    _only(params, "conv_resample", True)
    _only(params, "use_scale_shift_norm", False)
    _only(params, "resblock_updown", False)
    _only(params, "n_embed", None)
    if not params.get("use_spatial_transformer"):
        raise ConfigError("use_spatial_transformer is true in every Stable Diffusion model; here it is not")
    where = _integers(params.get("attention_resolutions"), "attention_resolutions")
    per_head, count = params.get("num_head_channels", -1), params.get("num_heads", -1)

    def heads(channels: int) -> int:
        n = count if per_head == -1 else channels // _positive(per_head, "num_head_channels")
        return _positive(n, "num_heads")

    depth = params.get("transformer_depth", 1)
    depths = tuple(depth) if isinstance(depth, list) else (depth,) * len(channels)
    disabled = params.get("disable_self_attentions") or [False] * len(channels)
    classes, label = params.get("num_classes"), None
    if classes == "sequential":
        classes, label = None, _integer(params, "adm_in_channels")
    return UNetConfig(
        in_channels=_integer(params, "in_channels"),
        out_channels=_integer(params, "out_channels"),
        channels=channels,
        num_res_blocks=_integer(params, "num_res_blocks"),
        heads=tuple(heads(c) if 2**level in where else 0 for level, c in enumerate(channels)),
        mid_heads=heads(channels[-1]),
        transformer_depth=depths,
        self_attention=tuple(not flag for flag in disabled),
        mid_self_attention=not params.get("disable_middle_self_attn", False),
        context_dim=_integer(params, "context_dim"),
        num_classes=classes,
        label_dim=label,
        linear_projection=bool(params.get("use_linear_in_transformer", False)),
    )


def vae_from_ldm(ddconfig: Mapping[str, Any], embed_dim: Any, scale_factor: Any) -> VAEConfig:
    """Returns the autoencoder that AutoencoderKL builds from these arguments. Raises ConfigError."""
    _only(ddconfig, "attn_resolutions", [])
    _only(ddconfig, "double_z", True)
    latent = _integer(ddconfig, "z_channels")
    if embed_dim != latent:
        raise ConfigError(f"embed_dim is z_channels = {latent} in every Stable Diffusion model; got {shown(embed_dim)}")
    width = _integer(ddconfig, "ch")
    return VAEConfig(
        image_channels=_integer(ddconfig, "out_ch"),
        latent_channels=latent,
        channels=tuple(width * multiple for multiple in _integers(ddconfig.get("ch_mult"), "ch_mult")),
        num_res_blocks=_integer(ddconfig, "num_res_blocks"),
        scale_factor=scale_factor,
    )


def schedule_from_ldm(params: Mapping[str, Any]) -> ScheduleConfig:
    """Returns the schedule of ldm's DDPM arguments; ldm's "linear" is linear in sqrt(beta). Raises ConfigError."""
    kinds: dict[str, ScheduleKind] = {"linear": "scaled_linear", "sqrt_linear": "linear"}
    kind, prediction = params.get("beta_schedule", "linear"), params.get("parameterization", "eps")
    if kind not in kinds:
        raise ConfigError(f"beta_schedule is {' or '.join(kinds)}; got {shown(kind)}")
    if prediction not in _PREDICTIONS:
        raise ConfigError(f"parameterization is {', '.join(_PREDICTIONS)}; got {shown(prediction)}")
    return ScheduleConfig(
        kind=kinds[kind],
        num_timesteps=params.get("timesteps", 1000),
        beta_start=params.get("linear_start", 1e-4),
        beta_end=params.get("linear_end", 2e-2),
        prediction=_PREDICTIONS[prediction],
    )


def _image_size(params: Mapping[str, Any], vae: VAEConfig) -> int:
    # The YAML says 64 for the 768-pixel models too: Stability's README is where 768 stands
    v = params.get("parameterization") == "v" and params.get("conditioning_key") in ("crossattn", "crossattn-adm")
    return 768 if v else 64 * vae.factor if vae.factor == 8 else 512


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} is a mapping of names to values in an ldm YAML file; got {shown(value)}")
    return value


def _positive(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value < 2**20:
        raise ConfigError(f"{name} is a positive whole number; got {shown(value)}")
    return value


def _integer(params: Mapping[str, Any], name: str) -> int:
    return _positive(params.get(name), name)


def _integers(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not 1 <= len(value) <= 16:
        raise ConfigError(f"{name} is a short list of whole numbers; got {shown(value)}")
    return [_positive(item, name) for item in value]


def _only(params: Mapping[str, Any], name: str, value: Any) -> None:
    if params.get(name, value) != value:
        raise ConfigError(f"{name} is {value!r} in every Stable Diffusion model; got {shown(params[name])}")
