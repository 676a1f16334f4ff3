"""Writing a model in any layout: the tables that read it, run backwards, one tensor in memory at a time."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sdjax import configs
from sdjax._version import __version__
from sdjax.config import ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.convert.checkpoint import EXTRA, FORMAT
from sdjax.convert.containers import carried
from sdjax.convert.containers.budget import LIMITS
from sdjax.convert.containers.casting import Loss, advice, told
from sdjax.convert.containers.diffusers_folder import OWN_SETTINGS
from sdjax.convert.containers.hashing import manifest_row
from sdjax.convert.containers.lazy import ALIGNMENT, LazyTensor, float_type
from sdjax.convert.containers.safetensors_file import DTYPES
from sdjax.convert.describe import diffusers_config, own_settings
from sdjax.convert.errors import CheckpointError
from sdjax.convert.names import beside, depth, naming, tables
from sdjax.convert.parts.embedding_statistics import are_unit
from sdjax.convert.write.outputs import WRITING, new_folder, staged
from sdjax.nn.parts import NEEDED_FOLDERS
from sdjax.prompts.tokenizer import CLIP_TOKENS
from sdjax.prompts.tokenizer import CONFIG as TOKENIZER_CONFIG
from sdjax.storage import addresses
from sdjax.storage.files import check_room, new_file

Manifest = dict[str, dict[str, Any]]
MAX_HEADER = LIMITS["bytes of safetensors headers"] // 2  # a folder's files are read out of one allowance
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1", "sd1_inpaint": "stable-diffusion-v1-inpainting",
    "sd2_base": "stable-diffusion-v2-512", "sd2_v": "stable-diffusion-v2-768-v",
    "sd2_inpaint": "stable-diffusion-v2-inpainting", "sd2_depth": "stable-diffusion-v2-depth",
    "sd2_unclip_l": "stable-diffusion-v2-unclip-l", "sd2_unclip_h": "stable-diffusion-v2-unclip-h",
    "x4_upscaler": "stable-diffusion-x4-upscaler",
}  # fmt: skip
_FILE = re.compile(r"([A-Za-z0-9_-]{1,60}/)?[A-Za-z0-9_-]{1,60}\.json")  # a native folder's own list is not trusted
_IMPLEMENTATIONS = {
    False: "https://github.com/CompVis/stable-diffusion", True: "https://github.com/Stability-AI/stablediffusion",
}  # fmt: skip
POSITIONS = "text_model.embeddings.position_ids"
_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def write_bundle(
    model: Bundle,
    path: str | os.PathLike[str],
    to: str,
    *,
    ema_names: bool = False,
    overwrite: bool = False,
    manifest: Manifest | None = None,
    lossy: bool = False,
) -> None:
    """Writes the model as "native" or "diffusers" folder or "ldm" file.

    What goes to gs:// or s3:// is written on this computer first, where its temporary folder has to have room for it.
    `ema_names` writes an ldm file's averaged weights too, under their `model_ema.` names. `manifest` is filled with
    shape, dtype and SHA-256 of every tensor, by the name that reading gives it. `lossy` also writes numbers that the
    type asked for cannot hold, as infinite ones and zeros; `model.losses` names the tensors then.

    Raises FileExistsError where something is there that may not be replaced, OSError where it cannot be written,
    ConfigError if the layout cannot describe the model, CheckpointError for a tokenizer that it has no place for, and
    for numbers that the type asked for cannot hold.
    """
    if to not in _WRITERS:
        raise ValueError(f"a layout to write is one of {', '.join(_WRITERS)}; got {to!r}")
    if addresses.remote(path):
        with staged(path, overwrite=overwrite) as local:
            return write_bundle(model, local, to, ema_names=ema_names, manifest=manifest, lossy=lossy)
    model = model.as_leaves()
    leaves = (*model.leaves.values(), *model.extras.values())
    needs = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in leaves)
    check_room(path, needs, WRITING)
    if to == "ldm":
        new = new_file(path, overwrite=overwrite, what=WRITING, needs=needs)
    else:
        new = new_folder(path, overwrite=overwrite, needs=needs)
    with new as partial:
        _WRITERS[to](model, partial, ema_names, manifest)
        if model.losses and not lossy:
            dtype = next(leaf.dtype.name for leaf in leaves if leaf.stored is not None)
            raise CheckpointError(
                f"{told(model.losses, dtype)}; nothing was written: {advice(dtype)}, or ask for it all the same "
                "(--lossy on the command line, lossy=True in Python)"
            )


def tensors_of(model: Bundle, layout: naming.Layout) -> dict[str, LazyTensor]:
    """Returns the model's parameters as a file of the layout stores them."""
    stored = {}
    for entry in tables.entries(model.config, layout):
        stored[entry.name] = _joined(entry, [model.leaves[parameter.path] for parameter in entry.parameters])
    return stored


def _joined(entry: tables.Entry, leaves: list[LazyTensor]) -> LazyTensor:
    dtypes = {leaf.dtype for leaf in leaves}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.result_type(*(leaf.dtype for leaf in leaves))
    if any(leaf.stored is not None for leaf in leaves):  # joined first, so that what is cast can be compared
        return _joined(entry, [leaf.stored or leaf for leaf in leaves]).cast(dtype)

    def read() -> np.ndarray:
        return entry.join([leaf.read().astype(dtype, copy=False) for leaf in leaves])

    def release() -> None:
        for leaf in leaves:
            leaf.release()

    names = dict.fromkeys(leaf.name for leaf in leaves)
    return LazyTensor(entry.shape, dtype, read, release, " and ".join(names))


def write_safetensors(
    path: pathlib.Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    manifest: Manifest | None = None,
    prefix: str = "",
    losses: dict[str, Loss] | None = None,
) -> None:
    """Writes a safetensors file, a tensor at a time, and fills the manifest, if any, with `prefix` before each name.

    `losses` is filled with the tensors whose numbers their type cannot hold.

    By hand, because the library takes all tensors in memory at once. Larger types come first as in its files, and among
    them those of whole 64 bytes, so that JAX can use most tensors where they lie in the memory map.
    """
    sizes = {name: leaf.dtype.itemsize * math.prod(leaf.shape) for name, leaf in tensors.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, sizes[name] % ALIGNMENT > 0, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in order:
        leaf = tensors[name]
        if leaf.dtype not in _NAMES:
            raise CheckpointError(f"{name} is of type {leaf.dtype.name}, which safetensors files cannot hold", path)
        end = position + sizes[name]
        header[name] = {"dtype": _NAMES[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > MAX_HEADER:
        raise CheckpointError(
            f"its tensors' names and its metadata take {len(text)} bytes, more than the {MAX_HEADER} that sdjax reads "
            "of a file: write the model as a folder, where licence, model card and tokenizer are files",
            path,
        )
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            leaf = tensors[name]
            array = np.ascontiguousarray(leaf.read_noting({} if losses is None else losses)).reshape(leaf.shape)
            assert array.dtype == leaf.dtype, name
            file.write(array.reshape(-1).view(np.uint8).data)
            if manifest is not None:
                manifest[prefix + name] = manifest_row(array)
            leaf.release()


def _write_native(model: Bundle, folder: pathlib.Path, ema_names: bool, manifest: Manifest | None) -> None:
    write_safetensors(
        folder / "model.safetensors", tensors_of(model, "native"), model.metadata, manifest, losses=model.losses
    )
    if model.extras:
        write_safetensors(folder / EXTRA, model.extras, {}, manifest, losses=model.losses)
    content = {FORMAT: {"format": 1, "version": __version__}, "model": model.config.to_dict()}
    if model.files:
        content["files"] = dict(model.files)
    _write_json(folder / "config.json", content)
    _write_beside(folder, model)


def _write_diffusers(model: Bundle, folder: pathlib.Path, ema_names: bool, manifest: Manifest | None) -> None:
    files = _files(model)
    by_component: dict[str, dict[str, LazyTensor]] = {}
    others: dict[str, LazyTensor] = {}
    for name, leaf in tensors_of(model, "diffusers").items():
        component, _, rest = name.partition("/")
        by_component.setdefault(component, {})[rest] = leaf
    for name, leaf in model.extras.items():
        component, slash, rest = _in_folder(name, model.config).partition("/")
        if slash and (component in by_component or f"{component}/config.json" in files):
            by_component.setdefault(component, {}).setdefault(rest, leaf)
        else:
            others[name] = leaf
    for name, content in files.items():
        _write_json(folder / name, content)
    _write_beside(folder, model)
    if own := _own_settings(files, folder, model.config):
        content = {FORMAT: {"format": 1, "version": __version__}, "model": own}
        _write_json(folder / OWN_SETTINGS, content)
    for component, tensors in by_component.items():
        (folder / component).mkdir(exist_ok=True)
        config = files.get(f"{component}/config.json", {})
        stem = _STEMS.get(component, "diffusion_pytorch_model" if "_class_name" in config else "model")
        path = folder / component / f"{stem}.safetensors"
        metadata = _component_metadata(model, component)
        write_safetensors(path, tensors, metadata, manifest, f"{component}/", model.losses)
    if others:
        write_safetensors(folder / EXTRA, others, {}, manifest, losses=model.losses)


def _own_settings(files: Mapping[str, Any], folder: pathlib.Path, config: ModelConfig) -> dict[str, Any]:
    """Returns what the written files of a diffusers folder, its tokenizer's among them, do not say of the model."""
    tokenizer = folder / "tokenizer" / TOKENIZER_CONFIG
    said = {f"tokenizer/{TOKENIZER_CONFIG}": json.loads(tokenizer.read_bytes())} if tokenizer.is_file() else {}
    described, _ = diffusers_config.config_from_diffusers({**files, **said})
    return own_settings.differing(described, config)


def _component_metadata(model: Bundle, component: str) -> dict[str, str]:
    own = {"format": "pt"}
    for key, value in _metadata(model).items():
        owner, slash, name = key.partition("/")
        if slash and owner == component:
            own[name] = value
        elif component == "unet" and not (slash and owner in _STEMS):
            own.setdefault(key, value)
    return own


def _write_ldm(model: Bundle, path: pathlib.Path, ema_names: bool, manifest: Manifest | None) -> None:
    tensors = tensors_of(model, "ldm")
    if model.config.noise_stats is not None and are_unit(model.leaves):
        for leaf in ("mean", "std"):
            del tensors[naming.ldm_name(f"noise_stats/{leaf}", model.config.noise_stats)]
    extras = {_in_file(name, model.config): leaf for name, leaf in model.extras.items()}
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
    metadata = _metadata(model)
    if not _is_released(model.config):
        metadata[carried.CONFIG_KEY] = json.dumps(model.config.to_dict(), sort_keys=True)
    if model.own_tokenizer is not None and not model.own_tokenizer.is_clips:
        metadata[carried.TOKENIZER_KEY] = carried.packed_tokenizer(model.own_tokenizer)
    if model.cards:
        metadata[carried.CARD_KEY] = carried.packed_texts(model.cards)
    if model.licences:
        metadata[carried.LICENCE_KEY] = carried.packed_texts(model.licences)
        first = next(iter(model.licences.values())).strip().partition("\n")[0].strip()
        metadata.setdefault("modelspec.license", first[:200])
    write_safetensors(path, tensors, metadata, manifest, losses=model.losses)


def _in_file(name: str, config: ModelConfig) -> str:
    """Returns a single file's name for a folder's extra tensor; one with a slash has no place there."""
    if name == f"text_encoder/{POSITIONS}":
        return f"cond_stage_model.transformer.{POSITIONS}"
    return name if config.depth is None else _DEPTH_IN_FILES.get(name, name)


def _in_folder(name: str, config: ModelConfig) -> str:
    """Returns a folder's name for an extra tensor, component/name; a single file's where folders have no place."""
    return name if config.depth is None else _DEPTH_IN_FOLDERS.get(name, name)


_DEPTH_IN_FILES = {
    f"{naming.COMPONENTS['depth']}/{name}": naming.LDM_PREFIXES["depth"] + depth.midas_name(name)
    for name in depth.UNUSED
}
_DEPTH_IN_FOLDERS = {file: folder for folder, file in _DEPTH_IN_FILES.items()}


def written_without(model: Bundle, to: str, dtype: DTypeLike | None = None) -> tuple[str, ...]:
    """Returns what a model that was written in a layout lacks, each a sentence for its user."""
    notices = []
    if to == "ldm":
        names = (_in_file(name, model.config) for name in model.extras if not beside.BUFFERS.fullmatch(name))
        parts = NEEDED_FOLDERS  # of which only some tensors are lost
        pairs = ((name, name.partition("/")[0]) for name in names if "/" in name)
        if lost := sorted({name if component in parts else component for name, component in pairs}):
            notices.append(f"a single file has no place for {', '.join(lost)}; a folder keeps them")
    if not has_tokenizer(model):
        notices.append(
            f"it came without a tokenizer for the {model.config.text.vocab_size} tokens of its text encoder, so none "
            "was written"
        )
    if model.losses and (kind := float_type(dtype)) is not None:
        notices.append(f"{told(model.losses, kind.name)}; they were written as infinite numbers and zeros")
    return tuple(notices)


def _scalar(value: np.generic) -> LazyTensor:
    return LazyTensor((), value.dtype, functools.partial(np.asarray, value))


def _is_released(config: ModelConfig) -> bool:
    if config.name not in configs.NAMES:
        return False
    known = configs.get(config.name)
    absent: dict[str, Any] = {part: None for part in tables.OPTIONAL if getattr(config, part) is None}  # the file shows
    return config == dataclasses.replace(known, **absent)


def _metadata(model: Bundle) -> dict[str, str]:
    """Returns the metadata with the model specification's keys added, and what it says of prediction true."""
    config, metadata = model.config, dict(model.metadata)
    kept = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES.get(config.name, "stable-diffusion-custom"),
        "modelspec.implementation": _IMPLEMENTATIONS[diffusers_config.is_v2(config)],
        "modelspec.title": config.name,
        "modelspec.resolution": f"{config.image_size}x{config.image_size}",
    }
    for key, value in kept.items():
        metadata.setdefault(key, value)
    word = config.schedule.prediction
    metadata["modelspec.prediction_type"] = {"epsilon": "epsilon", "v": "v", "x0": "sample"}[word]
    if "modelspec.predict_key" in metadata:
        metadata["modelspec.predict_key"] = word
    if "ss_v_parameterization" in metadata:
        metadata["ss_v_parameterization"] = str(word == "v")
    metadata.setdefault("format", "pt")
    return metadata


def _files(model: Bundle) -> dict[str, Any]:
    """Returns a diffusers folder's JSON files: those that came with the model, as far as they still describe it."""
    ours: dict[str, Any] = diffusers_config.diffusers_files(model.config)
    given = {
        name: content
        for name, content in model.files.items()
        if _FILE.fullmatch(name) and isinstance(content, Mapping) and not name.startswith("tokenizer/")
    }
    if "model_index.json" not in given:
        return ours
    try:
        described, _ = diffusers_config.config_from_diffusers(given)
    except ValueError:
        return ours
    kinds = [(c.unet.in_channels, c.unet.label_dim) for c in (described, model.config)]
    if kinds[0] != kinds[1]:  # trained into a model of another kind, whose pipeline is another
        return ours
    files = {**ours, **given}
    for part, component in naming.COMPONENTS.items():
        if getattr(described, part) != getattr(model.config, part):
            name = f"{component}/config.json"
            if name in ours:
                files[name] = ours[name]
            else:  # an optional part that is not there
                files.pop(name, None)
    if described.schedule != model.config.schedule:
        name = "scheduler/scheduler_config.json"
        fresh = ours[name]
        files[name] = {**given.get(name, {}), **{k: v for k, v in fresh.items() if k != "_class_name"}}
        files[name].setdefault("_class_name", fresh["_class_name"])
    return files


def _write_beside(folder: pathlib.Path, model: Bundle) -> None:
    pad = "!" if model.config.text.pad_token_id == 0 else "<|endoftext|>"
    if has_tokenizer(model):
        model.tokenizer().save(folder / "tokenizer", pad, model.config.text.max_length)
    for name, text in {**model.licences, **model.cards}.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")


def has_tokenizer(model: Bundle) -> bool:
    """Returns whether there is a tokenizer to write: the model's own, or CLIP's where it is the text encoder's."""
    text = model.config.text
    return model.own_tokenizer is not None or (text.kind == "clip" and text.vocab_size >= CLIP_TOKENS)


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


_WRITERS: dict[str, Callable[[Bundle, pathlib.Path, bool, Manifest | None], None]] = {
    "native": _write_native, "ldm": _write_ldm, "diffusers": _write_diffusers,
}  # fmt: skip
