"""The metadata of a trained adapter's file, in the names that kohya's scripts write and A1111's web UI shows.

Everything comes from the folder of the run: its settings, and what it noted about its training set (`dataset.json`).
"""

import json
import math
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from sdjax import errors
from sdjax.config import ModelConfig
from sdjax.convert.describe.diffusers_config import is_v2
from sdjax.convert.describe.distilled import KEY
from sdjax.convert.write.file_metadata import architecture
from sdjax.loading.run_folder import few_step_of_run, read_settings
from sdjax.loading.run_layout import DATASET

# kohya's name, and the setting that it is. Values are written as Python shows them
_SAME = {
    "ss_batch_size_per_device": "batch_size",
    "ss_caption_dropout_rate": "objective.dropout",
    "ss_caption_tag_dropout_rate": "data.captions.tag_dropout",
    "ss_debiased_estimation": "objective.debiased",
    "ss_enable_bucket": "data.buckets",
    "ss_gradient_accumulation_steps": "accumulate",
    "ss_huber_c": "objective.huber_delta",
    "ss_huber_schedule": "objective.huber_schedule",
    "ss_ip_noise_gamma": "objective.perturbation",
    "ss_keep_tokens": "data.captions.keep",
    "ss_learning_rate": "optim.learning_rate",
    "ss_loss_type": "objective.loss",
    "ss_lr_scheduler": "optim.decay",
    "ss_lr_warmup_steps": "optim.warmup",
    "ss_max_grad_norm": "optim.clip",
    "ss_min_snr_gamma": "objective.gamma",
    "ss_multires_noise_discount": "objective.multires_discount",
    "ss_multires_noise_iterations": "objective.multires_noise",
    "ss_noise_offset": "objective.offset_noise",
    "ss_adaptive_noise_scale": "objective.offset_adaptive",
    "ss_optimizer": "optim.name",
    "ss_seed": "seed",
    "ss_shuffle_caption": "data.captions.shuffle",
    "ss_total_batch_size": "batch_size",
}


_PRECISIONS = {"bfloat16": "bf16", "float32": "no"}


def run_metadata(
    folder: pathlib.Path, model: ModelConfig, *, name: str, step: int, kind: str = "lora"
) -> dict[str, str]:  # fmt: skip
    """Returns `training_metadata` of the run in a folder."""
    return training_metadata(read_settings(folder), read_statistics(folder), model, name=name, step=step, kind=kind)


def read_statistics(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what a run noted about its training set; empty for a folder that an older sdjax made."""
    path = folder / DATASET
    with errors.doing("reading what the run noted about its training set", path):
        return json.loads(path.read_text()) if path.exists() else {}


def training_metadata(
    settings: Mapping[str, Any], statistics: Mapping[str, Any], model: ModelConfig, *, name: str, step: int,
    kind: str = "lora", finished: float | None = None,
) -> dict[str, str]:  # fmt: skip
    """Returns the `ss_` and `modelspec` metadata of an adapter, besides what its tensors show: rank, alpha and hashes.

    `sdjax.convert.adapters.write.write_adapter` adds those.

    Args:
        settings: the run's (`settings.json`). statistics: see `read_statistics`.
        name: the file's, without its ending.
        step: the steps that were taken.
        kind: what the file is, as modelspec calls it: "lora" or "textual-inversion".
        finished: the time in seconds since 1970; None for now.
    """
    finished = time.time() if finished is None else finished
    found = {other: _setting(settings, own) for other, own in _SAME.items()}
    batches = statistics.get("batches")
    steps = max(step, settings["optim"]["steps"])  # a run that was made longer keeps its first settings
    dtype = settings.get("dtype")
    side = settings["data"].get("side") or model.image_size
    rates = {part: _rate(settings["optim"], part) for part in settings["train"]}
    found |= {
        "ss_output_name": name,
        "ss_sd_model_name": pathlib.PurePath(settings["model"].get("path") or model.name).name,
        "ss_base_model_version": f"sd_v{2 if is_v2(model) else 1}{'_v' * (model.schedule.prediction == 'v')}",
        "ss_v2": is_v2(model),
        "ss_v_parameterization": model.schedule.prediction == "v",
        "ss_zero_terminal_snr": model.schedule.zero_terminal_snr,
        "ss_resolution": (side, side),
        "ss_flip_aug": settings["data"].get("flip", 0.0) > 0,
        "ss_random_crop": settings["data"].get("crop") == "random",
        "ss_bucket_no_upscale": not settings["data"].get("enlarge", True),
        "ss_cache_latents": bool(settings["data"].get("cached")),
        "ss_gradient_checkpointing": settings.get("remat", "none") != "none",
        "ss_mixed_precision": _PRECISIONS.get(str(dtype), dtype),
        "ss_max_train_steps": steps,
        "ss_steps": step,
        "ss_training_started_at": statistics.get("started"),
        "ss_training_finished_at": finished,
        "ss_num_batches_per_epoch": batches,
        "ss_epoch": None if batches is None else step // batches,
        "ss_num_epochs": None if batches is None else math.ceil(steps / batches),
        "ss_unet_lr": rates.get("unet"),
        "ss_text_encoder_lr": rates.get("text"),
        **_of_set(statistics),
    }
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(finished))
    specification = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(model)}/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": date,
        "modelspec.prediction_type": {"epsilon": "epsilon", "v": "v", "x0": "sample"}[model.schedule.prediction],
    }
    word = few_step_of_run(settings)
    own = {} if word is None else {KEY: word}
    return {key: str(value) for key, value in found.items()} | specification | own


def _of_set(statistics: Mapping[str, Any]) -> dict[str, Any]:
    if "folders" not in statistics:
        return {}
    folders = statistics["folders"]
    sizes = {
        str(i): {"resolution": [w, h], "count": count} for i, (w, h, count) in enumerate(statistics["sizes"])
    }  # fmt: skip
    dirs = {name: {"n_repeats": one["repeats"], "img_count": one["pictures"]} for name, one in folders.items()}
    return {
        "ss_num_train_images": sum(count for _, _, count in statistics["sizes"]),
        "ss_num_reg_images": 0,  # a part with a loss weight is a part as any other
        "ss_dataset_dirs": json.dumps(dirs),
        "ss_reg_dataset_dirs": json.dumps({}),
        "ss_tag_frequency": json.dumps(statistics["tags"]),
        "ss_bucket_info": json.dumps({"buckets": sizes}),
    }


def _setting(settings: Mapping[str, Any], path: str) -> Any:
    """Returns a setting; None if an older sdjax, or another objective, has none."""
    value: Any = settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _rate(optim: Mapping[str, Any], part: str) -> float:
    """Returns the learning rate of a whole part, such as "unet"."""
    rate = (optim.get("part_rates") or {}).get(part, optim["learning_rate"])
    return rate * next((factor for pattern, factor in optim.get("rates", ()) if re.search(pattern, f"{part}/")), 1.0)
