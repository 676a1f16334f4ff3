"""Descriptions of models from a diffusers folder's JSON files, and those files from a description.

Source of the fields: huggingface/diffusers, models/unets/unet_2d_condition.py and
schedulers/; huggingface/transformers, models/clip/configuration_clip.py.
What diffusers calls `attention_head_dim` is the number of heads.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.config import (
    ConfigError,
    ModelConfig,
    Prediction,
    ScheduleConfig,
    ScheduleKind,
    TextConfig,
    UNetConfig,
    VisionConfig,
)
from sdjax.convert.describe import dpt_config, vae_config, vision_config
from sdjax.convert.describe.fields import channels_of, only
from sdjax.convert.describe.ldm_config import named
from sdjax.convert.describe.other_kinds import kind_of_component
from sdjax.convert.describe.vision_config import mlp_width
from sdjax.convert.errors import shown
from sdjax.convert.names.naming import is_open_clip
from sdjax.few_step import recipe_of

Configs = Mapping[str, Mapping[str, Any]]

# Fields that would change what is computed, and the values under which it is what Stable Diffusion computes
_UNET_ONLY = {
    "act_fn": ("silu", "swish"), "addition_embed_type": (None,), "attention_type": ("default",),
    "center_input_sample": (False,), "class_embeddings_concat": (False,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "cross_attention_norm": (None,), "downsample_padding": (1,),
    "dual_cross_attention": (False,), "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,), "freq_shift": (0,), "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None), "norm_eps": (1e-5,),
    "resnet_out_scale_factor": (1.0,), "resnet_skip_time_act": (False,), "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,), "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,), "time_embedding_type": ("positional",), "timestep_post_act": (None,),
}  # fmt: skip
_UNET_KINDS = {
    "addition_embed_type": "Stable Diffusion XL or a model that is told more than a text",
    "encoder_hid_dim_type": "a model that is told a picture (Kandinsky, or with an IP-Adapter inside)",
}  # fmt: skip
_TEXT_ONLY = {"layer_norm_eps": (1e-5,)}
LCM_SCALE = 8.0  # the default of models that take the scale as an input
DIFFUSERS = "0.30.0"  # whose files these are; pipelines warn about those of versions before 0.16
_SCHEDULE_KINDS: dict[str, ScheduleKind] = {
    "scaled_linear": "scaled_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "squaredcos",
}
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


def config_from_diffusers(files: Configs) -> tuple[ModelConfig, bool]:
    """Returns the model that a folder's JSON files describe, and whether they say what it predicts.

    Raises ConfigError, naming file and field, for what Stable Diffusion v1 and v2 do not have.
    """
    unet = _unet(_file(files, "unet/config.json"))
    vae = vae_config.vae_from_diffusers(_file(files, "vae/config.json"))
    tokenizer = files.get("tokenizer/tokenizer_config.json", {})
    text = text_from_transformers(_file(files, "text_encoder/config.json"), tokenizer)
    scheduler = files.get("scheduler/scheduler_config.json", {})
    schedule = _schedule(scheduler)
    size = files["unet/config.json"].get("sample_size")
    size = size if type(size) is int and 1 <= size <= 1024 else 64
    upscales = unet.in_channels == 7
    model = ModelConfig(
        name="custom",
        unet=unet,
        vae=vae,
        text=text,
        schedule=schedule,
        image_size=512 if upscales else size * vae.factor,
        guidance_scale=_scale(unet, text),
        depth=dpt_config.depth_from_transformers(files.get("depth_estimator/config.json", {})),
        vision=_vision(files, unet),
        noise_stats=_noise_stats(files, unet),
        few_step=_few_step(scheduler, unet, text),
    )
    return named(model), "prediction_type" in scheduler


def _scale(unet: UNetConfig, text: TextConfig) -> float:
    if unet.guidance_dim is not None:
        return LCM_SCALE
    return 9.0 if text.activation == "gelu" else 7.5


def _few_step(scheduler: Mapping[str, Any], unet: UNetConfig, text: TextConfig) -> str | None:
    """Returns how a distilled model is sampled, from its UNet and its scheduler; None if they show no distillation.

    SD-Turbo's folder has Euler with trailing timesteps and predicts epsilon, which no other release of v2 has.
    """
    kind = scheduler.get("_class_name")
    if unet.guidance_dim is not None or kind == "LCMScheduler":
        return "lcm"
    if kind == "TCDScheduler":
        return "tcd"
    trailing = kind == "EulerDiscreteScheduler" and scheduler.get("timestep_spacing") == "trailing"
    if trailing and is_open_clip(text) and scheduler.get("prediction_type", "epsilon") == "epsilon":
        return "turbo" if unet.mid_block else "sdxs"
    return None


def _vision(files: Configs, unet: UNetConfig) -> VisionConfig | None:
    if unet.label_dim is None or "image_encoder/config.json" not in files:
        return None
    return vision_config.vision_from_transformers(files["image_encoder/config.json"])


def _noise_stats(files: Configs, unet: UNetConfig) -> int | None:
    if unet.label_dim is None or "image_normalizer/config.json" not in files:
        return None
    return files["image_normalizer/config.json"].get("embedding_dim", 768)


def is_v2(config: ModelConfig) -> bool:
    """Returns whether a model is of the second generation: its text encoder is OpenCLIP's, with the exact GELU."""
    return is_open_clip(config.text)


def _file(files: Configs, name: str) -> Mapping[str, Any]:
    if name not in files:
        raise ConfigError(f"the folder has no {name}, which says how its networks are built")
    return files[name]


def _levels(value: Any, count: int, name: str) -> tuple[Any, ...]:
    if isinstance(value, list):
        if len(value) != count:
            raise ConfigError(f"unet/config.json: {name} has {len(value)} entries for {count} levels")
        return tuple(value)
    return (value,) * count


def _unet(config: Mapping[str, Any]) -> UNetConfig:
    if kind := kind_of_component(config.get("_class_name"), ("UNet2DConditionModel",), "UNet"):
        raise ConfigError(f"unet/config.json: {kind}")
    for name, what in _UNET_KINDS.items():
        if config.get(name) is not None:
            raise ConfigError(
                f"unet/config.json: {name} is {shown(config[name])}: it is {what}, which sdjax does not run"
            )
    only(config, _UNET_ONLY, "unet/config.json")
    channels = channels_of(config, "unet/config.json", [320, 640, 1280, 1280])
    count = len(channels)
    down = config.get("down_block_types", ["CrossAttnDownBlock2D"] * (count - 1) + ["DownBlock2D"])
    up = config.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (count - 1))
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
    attends = [kinds.get(kind) if isinstance(kind, str) else None for kind in down] if isinstance(down, list) else []
    mirrored = [kinds.get(kind) if isinstance(kind, str) else None for kind in up] if isinstance(up, list) else []
    if len(attends) != count or None in attends or attends != mirrored[::-1]:
        raise ConfigError("unet/config.json: down_block_types and up_block_types are no Stable Diffusion UNet's")
    heads = _heads(config, channels)
    depth = _levels(config.get("transformer_layers_per_block", 1), count, "transformer_layers_per_block")
    only_cross = config.get("only_cross_attention", False)
    middle = config.get("mid_block_only_cross_attention")
    middle = (only_cross if isinstance(only_cross, bool) else False) if middle is None else middle
    kind = config.get("class_embed_type")
    if kind not in (None, "projection"):
        raise ConfigError(f"unet/config.json: class_embed_type is null or 'projection'; got {shown(kind)}")
    return UNetConfig(
        in_channels=config.get("in_channels", 4),
        out_channels=config.get("out_channels", 4),
        channels=tuple(channels),
        num_res_blocks=_blocks(config.get("layers_per_block", 2)),
        heads=tuple(n if has else 0 for n, has in zip(heads, attends)),
        mid_heads=heads[-1],
        transformer_depth=depth,
        self_attention=tuple(not flag for flag in _levels(only_cross, count, "only_cross_attention")),
        mid_self_attention=not middle,
        context_dim=config.get("cross_attention_dim", 1280),
        num_classes=None if kind else config.get("num_class_embeds"),
        label_dim=config.get("projection_class_embeddings_input_dim") if kind else None,
        guidance_dim=config.get("time_cond_proj_dim"),
        mid_block=config.get("mid_block_type", "") is not None,
        norm_groups=config.get("norm_num_groups", 32),
        linear_projection=any(_levels(config.get("use_linear_projection", False), count, "use_linear_projection")),
    )


def _blocks(count: Any) -> Any:
    """Returns the number of residual blocks of every level, which is a list in some files."""
    if not isinstance(count, list):
        return count
    if not count or any(one != count[0] for one in count):
        raise ConfigError(
            f"unet/config.json: layers_per_block is one number for all levels in every model that sdjax runs; got "
            f"{shown(count)}"
        )
    return count[0]


def _heads(config: Mapping[str, Any], channels: list[int]) -> tuple[int, ...]:
    """Returns each level's number of heads, which `attention_head_dim` holds unless `num_attention_heads` does."""
    count = len(channels)
    if config.get("num_attention_heads") is None:
        return _levels(config.get("attention_head_dim", 8), count, "attention_head_dim")
    heads = _levels(config["num_attention_heads"], count, "num_attention_heads")
    other = config.get("attention_head_dim")
    sizes = heads if other is None else _levels(other, count, "attention_head_dim")
    for n, size, width in zip(heads, sizes, channels):
        if size != n and (type(size) is not int or type(n) is not int or size * n != width):
            raise ConfigError(
                f"unet/config.json: num_attention_heads {shown(n)} and attention_head_dim {shown(size)} contradict "
                f"each other at a level of {shown(width)} channels"
            )
    return heads


def text_from_transformers(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> TextConfig:
    """Returns the text tower that transformers' config.json and tokenizer_config.json describe. Raises ConfigError."""
    tower = config.get("text_config")
    config = tower if tower and isinstance(tower, Mapping) else config  # CLIPModel's file holds it inside
    only(config, _TEXT_ONLY, "text_encoder/config.json")
    width, activation = config.get("hidden_size", 512), config.get("hidden_act", "quick_gelu")
    pad = tokenizer.get("pad_token")
    pad = pad.get("content") if isinstance(pad, Mapping) else pad
    own = TextConfig()
    vocab_size, bos, eos = config.get("vocab_size", own.vocab_size), own.bos_token_id, own.eos_token_id
    # Folders of the releases name tokens 0 and 2, which no text of CLIP's vocabulary begins or ends with
    if isinstance(vocab_size, int) and vocab_size < own.vocab_size:
        bos, eos = config.get("bos_token_id", vocab_size - 2), config.get("eos_token_id", vocab_size - 1)
    default = 0 if activation == "gelu" else eos
    return TextConfig(
        vocab_size=vocab_size,
        bos_token_id=bos,
        eos_token_id=eos,
        width=width,
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 8),
        mlp_width=mlp_width(config, width, 2048),
        max_length=config.get("max_position_embeddings", 77),
        activation=activation,
        pad_token_id={"!": 0, "<|endoftext|>": eos}.get(pad, default) if isinstance(pad, str) else default,
    )


def _odd(blocks: Any, kind: str) -> Any:
    return next((block for block in blocks if block != kind), None) if isinstance(blocks, list) else blocks


def _schedule(config: Mapping[str, Any]) -> ScheduleConfig:
    only(config, {"trained_betas": (None,)}, "scheduler/scheduler_config.json")
    kind, prediction = config.get("beta_schedule", "scaled_linear"), config.get("prediction_type", "epsilon")
    if kind not in [*_SCHEDULE_KINDS] or prediction not in [*_PREDICTIONS]:  # a list has no hash
        raise ConfigError(
            f"scheduler/scheduler_config.json: beta_schedule {shown(kind)} and prediction_type {shown(prediction)}; "
            f"known are {', '.join(_SCHEDULE_KINDS)} and {', '.join(_PREDICTIONS)}"
        )
    predicts = _PREDICTIONS[prediction]
    return ScheduleConfig(
        kind=_SCHEDULE_KINDS[kind],
        num_timesteps=config.get("num_train_timesteps", 1000),
        beta_start=config.get("beta_start", 0.00085),
        beta_end=config.get("beta_end", 0.012),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)) and predicts != "epsilon",
        prediction=predicts,
    )


def diffusers_files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Returns the JSON files that describe the model to diffusers, by path. Raises ConfigError if none can."""
    unet, vae, text, v2 = config.unet, config.vae, config.text, is_v2(config)
    if text.kind != "clip":
        raise ConfigError("diffusers' Stable Diffusion folders hold CLIP's text encoders; this one is of the kind BERT")
    if unet.heads[-1] not in (0, unet.mid_heads):
        raise ConfigError("diffusers gives a UNet's middle block as many heads as its last level; this one has others")
    heads = [n or unet.mid_heads for n in unet.heads]
    cross = [not flag for flag in unet.self_attention]
    files: dict[str, dict[str, Any]] = {}
    files["unet/config.json"] = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": _same(heads),
        "block_out_channels": list(unet.channels), "center_input_sample": False,
        "class_embed_type": None if unet.label_dim is None else "projection",
        "cross_attention_dim": unet.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in unet.heads],
        "downsample_padding": 1, "dual_cross_attention": False, "flip_sin_to_cos": True, "freq_shift": 0,
        "in_channels": unet.in_channels, "layers_per_block": unet.num_res_blocks, "mid_block_scale_factor": 1,
        "mid_block_only_cross_attention": not unet.mid_self_attention,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if unet.mid_block else None, "norm_eps": 1e-5,
        "norm_num_groups": unet.norm_groups, "num_class_embeds": unet.num_classes,
        "only_cross_attention": _same(cross), "out_channels": unet.out_channels,
        "projection_class_embeddings_input_dim": unet.label_dim,
        "sample_size": 128 if unet.in_channels == 7 else config.image_size // vae.factor,
        "time_cond_proj_dim": unet.guidance_dim,
        "transformer_layers_per_block": _same(list(unet.transformer_depth)),
        "up_block_types": ["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in reversed(unet.heads)],
        "upcast_attention": v2, "use_linear_projection": unet.linear_projection,
    }  # fmt: skip
    files["vae/config.json"] = vae_config.diffusers_file(vae, config.image_size)
    files["text_encoder/config.json"] = {
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id, "hidden_act": text.activation, "hidden_size": text.width,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": text.mlp_width or 4 * text.width,
        "layer_norm_eps": 1e-5, "max_position_embeddings": text.max_length, "model_type": "clip_text_model",
        "num_attention_heads": text.heads, "num_hidden_layers": text.layers, "pad_token_id": 1,
        "projection_dim": 512 if v2 else 768, "vocab_size": text.vocab_size,
    }  # fmt: skip
    files["scheduler/scheduler_config.json"] = _scheduler_file(config)
    files["model_index.json"] = _index(config)
    if unet.label_dim is not None:  # the noise put on the picture's embedding
        files["image_noising_scheduler/scheduler_config.json"] = {
            "_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000,
        }  # fmt: skip
    if config.vision is not None:
        files["image_encoder/config.json"] = vision_config.transformers_file(config.vision)
        files["feature_extractor/preprocessor_config.json"] = vision_config.preprocessor_file(config.vision)
    if config.noise_stats is not None:
        files["image_normalizer/config.json"] = {
            "_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": config.noise_stats,
        }  # fmt: skip
    if config.depth is not None:
        files["depth_estimator/config.json"] = dpt_config.transformers_file(config.depth)
        files["feature_extractor/preprocessor_config.json"] = dpt_config.preprocessor_file(config.depth)
    if unet.in_channels == 7:  # the noise put on the picture to enlarge, by a schedule of the same numbers
        files["low_res_scheduler/scheduler_config.json"] = {
            **_betas(config.schedule), "_class_name": "DDPMScheduler", "clip_sample": True,
            "prediction_type": "epsilon", "variance_type": "fixed_small",
        }  # fmt: skip
    return files


def _same(values: list[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else values


def _betas(schedule: ScheduleConfig) -> dict[str, Any]:
    kind = next(theirs for theirs, ours in _SCHEDULE_KINDS.items() if ours == schedule.kind)
    return {
        "beta_end": schedule.beta_end, "beta_schedule": kind, "beta_start": schedule.beta_start,
        "num_train_timesteps": schedule.num_timesteps, "trained_betas": None,
    }  # fmt: skip


def _scheduler_file(config: ModelConfig) -> dict[str, Any]:
    """Returns DDIM's file: the sampler of every release, and the one whose file can say all of a schedule.

    Distilled models have the scheduler that they are known by (`_few_step`).
    """
    schedule = config.schedule
    prediction = next(theirs for theirs, ours in _PREDICTIONS.items() if ours == schedule.prediction)
    recipe = None if config.few_step is None else recipe_of(config.few_step)
    trailing = schedule.zero_terminal_snr or (recipe is not None and recipe.spacing == "trailing")
    kind = _scheduler_class(config)
    of_ddim = {} if kind.startswith("Euler") else {"clip_sample": False, "set_alpha_to_one": False}
    return {
        **_betas(schedule), **of_ddim, "_class_name": kind, "prediction_type": prediction,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr, "steps_offset": 1,
        "timestep_spacing": "trailing" if trailing else "leading",
    }  # fmt: skip


def _scheduler_class(config: ModelConfig) -> str:
    word = "" if config.few_step is None else config.few_step.partition(":")[0]
    by_kind = {"lcm": "LCM", "tcd": "TCD", "turbo": "EulerDiscrete", "sdxs": "EulerDiscrete"}
    return f"{by_kind.get(word, 'DDIM')}Scheduler"


def _index(config: ModelConfig) -> dict[str, Any]:
    pipelines = {9: "StableDiffusionInpaintPipeline", 5: "StableDiffusionDepth2ImgPipeline",
                 7: "StableDiffusionUpscalePipeline", 8: "StableDiffusionInstructPix2PixPipeline"}  # fmt: skip
    nothing = [None, None]
    index: dict[str, Any] = {
        "scheduler": ["diffusers", _scheduler_class(config)], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae_config.CLASSES[config.vae.kind]],
    }  # fmt: skip
    if config.unet.label_dim is not None:
        name = "StableUnCLIPImg2ImgPipeline"
        index |= dict.fromkeys(("feature_extractor", "image_encoder", "image_normalizer"), nothing)
        index["image_noising_scheduler"] = ["diffusers", "DDPMScheduler"]
        if config.vision is not None:
            index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
            index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
        if config.noise_stats is not None:
            index["image_normalizer"] = ["stable_diffusion", "StableUnCLIPImageNormalizer"]
    else:
        usual = "StableDiffusionPipeline" if config.unet.guidance_dim is None else "LatentConsistencyModelPipeline"
        name = pipelines.get(config.unet.in_channels, usual)
        index["feature_extractor"] = nothing
        if config.depth is not None:
            index["depth_estimator"] = ["transformers", "DPTForDepthEstimation"]
            index["feature_extractor"] = ["transformers", "DPTImageProcessor"]
        elif config.unet.in_channels == 5:
            index["depth_estimator"] = nothing
        else:
            index["safety_checker"] = nothing
        if config.unet.in_channels == 7:
            index |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "watermarker": nothing}
            index |= {"max_noise_level": 350}
        if config.unet.in_channels in (4, 9):
            index |= {"image_encoder": nothing, "requires_safety_checker": False}
    return {"_class_name": name, "_diffusers_version": DIFFUSERS, **dict(sorted(index.items()))}
