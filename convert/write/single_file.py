"""Single files under ldm's names."""

import functools
import json
import pathlib

import numpy as np

from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.convert.containers import carried
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.names import depth, naming, tables
from sdjax.convert.parts.embedding_statistics import are_unit
from sdjax.convert.write.file_metadata import file_metadata, is_released
from sdjax.convert.write.gguf_writer import write_gguf
from sdjax.convert.write.safetensors_writer import Manifest, tensors_of, write_safetensors

POSITIONS = "text_model.embeddings.position_ids"


def write_ldm(model: Bundle, path: pathlib.Path, ema_names: bool, manifest: Manifest | None) -> None:
    """Writes a safetensors file; with `ema_names`, the UNet's averaged weights too, under their `model_ema.` names."""
    tensors, metadata = _contents(model, ema_names)
    write_safetensors(path, tensors, metadata, manifest, losses=model.losses)


def write_ldm_gguf(model: Bundle, path: pathlib.Path, ema_names: bool, manifest: Manifest | None) -> None:
    """Writes a GGUF file with the same contents."""
    tensors, metadata = _contents(model, ema_names)
    write_gguf(path, tensors, metadata, model.config, manifest, losses=model.losses)


def _contents(model: Bundle, ema_names: bool) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Returns the tensors by name and the metadata of a single file."""
    tensors = tensors_of(model, "ldm")
    if model.config.noise_stats is not None and are_unit(model.leaves):
        for leaf in ("mean", "std"):
            del tensors[naming.ldm_name(f"noise_stats/{leaf}", model.config.noise_stats)]
    extras = {in_file(name, model.config): leaf for name, leaf in model.extras.items()}
    extras = {name: leaf for name, leaf in extras.items() if "/" not in name}
    unet = {entry.name for entry in tables.part_entries("unet", model.config.unet, "ldm")}
    if ema_names:
        for name in unet:
            other = naming.ema_name(name)
            if name in extras:  # the parameters are the averages, the extras what they are averages of
                tensors[other] = tensors[name]
                tensors[name] = extras.pop(name)
            else:
                tensors[other] = extras.pop(other, tensors[name])
        extras.setdefault("model_ema.decay", _scalar(np.float32(0.9999)))
        extras.setdefault("model_ema.num_updates", _scalar(np.int32(0)))
    beside = (name for name in extras if ema_names or not (name in unet or name.startswith(naming.EMA_PREFIX)))
    tensors = {name: extras[name] for name in beside} | tensors  # no extra takes a parameter's place
    if model.config.schedule.prediction != "v":
        tensors = {name: leaf for name, leaf in tensors.items() if name not in ("v_pred", "ztsnr")}
    metadata = file_metadata(model)
    if not is_released(model.config):
        metadata[carried.CONFIG_KEY] = json.dumps(model.config.to_dict(), sort_keys=True)
    if model.own_tokenizer is not None and not model.own_tokenizer.is_clips:
        metadata[carried.TOKENIZER_KEY] = carried.packed_tokenizer(model.own_tokenizer)
    if model.cards:
        metadata[carried.CARD_KEY] = carried.packed_texts(model.cards)
    if model.licences:
        metadata[carried.LICENCE_KEY] = carried.packed_texts(model.licences)
        first = next(iter(model.licences.values())).strip().partition("\n")[0].strip()
        metadata.setdefault("modelspec.license", first[:200])
    return tensors, metadata


def in_file(name: str, config: ModelConfig) -> str:
    """Returns a single file's name for a folder's extra tensor; one with a slash has no place there."""
    if name == f"text_encoder/{POSITIONS}":
        return f"cond_stage_model.transformer.{POSITIONS}"
    return name if config.depth is None else DEPTH_IN_FILES.get(name, name)


def _scalar(value: np.generic) -> LazyTensor:
    return LazyTensor((), value.dtype, functools.partial(np.asarray, value))


DEPTH_IN_FILES = {
    f"{naming.COMPONENTS['depth']}/{name}": naming.LDM_PREFIXES["depth"] + depth.midas_name(name)
    for name in depth.UNUSED
}
DEPTH_IN_FOLDERS = {file: folder for folder, file in DEPTH_IN_FILES.items()}
