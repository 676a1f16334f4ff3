"""Folders as diffusers and transformers write them: components below one folder, weights in one file or in shards."""

import contextlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from sdjax.convert.containers.budget import Budget
from sdjax.convert.containers.mapped import MappedFile
from sdjax.convert.containers.stored import MAX_NAME, MAX_TENSORS, StoredTensor, TensorFile
from sdjax.convert.containers.strict_json import read_json
from sdjax.convert.errors import CheckpointError, OtherKindError, shown
from sdjax.nn.parts import NEEDED_FOLDERS, PARTS

OWN_SETTINGS = "sdjax_config.json"  # settings that diffusers' files cannot hold
MAX_COMPONENTS = 50
COMPONENTS = (  # possible components of a folder without model_index.json; other files there are not part of the model
    *(part.folder for part in PARTS.values()), "safety_checker", "prior", "prior_text_encoder", "prior_scheduler",
    "scheduler", "tokenizer", "prior_tokenizer", "feature_extractor", "image_noising_scheduler", "text_encoder_2",
    "transformer", "motion_adapter",
)  # fmt: skip

# diffusers' models; transformers' as safetensors and as .bin. Nothing else beside them (optimizer.bin, ...) is weights.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = ("safetensors", "bin")  # the first is preferred

ReadFile = Callable[[pathlib.Path, Budget], TensorFile]


def read_folder(path: pathlib.Path, variant: str | None, read_file: ReadFile, budget: Budget) -> TensorFile:
    """Returns the tensors of a pipeline's folder, named "component/name", or of a component's, unprefixed.

    Only files that a listing of the folder shows are opened, one level deep; names in an index choose among them.

    Raises:
        CheckpointError: where no weights are found, the variant is not there, or index and shards contradict each
            other.
    """
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", variant):
        raise CheckpointError(f"{shown(variant)} is no variant's name; an example is 'fp16'", path)
    names, folders = _listing(path, budget)
    described: set[str] = set()
    own = find_weights(names)
    if "model_index.json" in names:
        listed = _named_by(_json(path / "model_index.json", budget))
        described = folders.intersection(COMPONENTS) - listed if listed else set()  # whose weights are left out
        folders = folders & listed if listed else folders
    elif not own and folders.intersection(NEEDED_FOLDERS):
        folders = folders.intersection(COMPONENTS)
    if own and "model_index.json" not in names:
        listings = {"": names}
        components = {"": own}
    else:
        listings = {"": names} | {folder: _listing(path / folder, budget)[0] for folder in sorted(folders)}
        components = {}
        for folder in sorted(folders):
            if weights := find_weights(listings[folder]):
                components[folder] = weights
    if not components:
        raise _nothing(names, listings, path)
    if len(components) > MAX_COMPONENTS:
        raise CheckpointError(f"it has {len(components)} folders of weights; a pipeline has at most ten or so", path)
    chosen = choose_weights(components, variant, path)

    opened: list[TensorFile] = []
    try:
        tensors: dict[str, StoredTensor] = {}
        metadata: dict[str, str] = {}
        for component, (name, indexed) in chosen.items():
            prefix = f"{component}/" if component else ""
            first = len(opened)
            if indexed:
                _read_shards(path / component / name, listings[component], read_file, budget, opened)
            else:
                opened.append(read_file(path / component / name, budget))
            for file in opened[first:]:
                tensors |= {prefix + key: tensor for key, tensor in file.tensors.items()}
                metadata |= {prefix + key: value for key, value in file.metadata.items()}
        configs = _configs(path, listings, budget)
        for folder in sorted(described):
            with contextlib.suppress(CheckpointError):
                configs |= _configs(path, {folder: _listing(path / folder, budget)[0]}, budget)
    except BaseException:
        for file in opened:
            file.close()
        raise
    kind = "diffusers-component" if "" in components else "diffusers"
    return TensorFile(path, kind, tensors, metadata, files=opened, configs=configs)


Weights = dict[tuple[str, str], tuple[str, bool]]  # (variant or "", suffix) -> (file name, whether it is an index)

_SINGLE = re.compile(rf"({'|'.join(STEMS)})(?:\.([A-Za-z0-9_-]+))?\.({'|'.join(SUFFIXES)})")
# diffusers and transformers put the variant before .json; older diffusers before .index
_INDEX = re.compile(
    rf"({'|'.join(STEMS)})\.({'|'.join(SUFFIXES)})(?:\.([A-Za-z0-9_-]+))?\.index(?:\.([A-Za-z0-9_-]+))?\.json"
)
_SHARD = re.compile(rf"(?:{'|'.join(STEMS)})(?:\.[A-Za-z0-9_-]+)?-\d+-of-\d+(?:\.[A-Za-z0-9_-]+)?\.(?:safetensors|bin)")


def _listing(path: pathlib.Path, budget: Budget) -> tuple[set[str], set[str]]:
    """Returns the names of what lies in a folder: all but folders, and folders."""
    names: set[str] = set()
    folders: set[str] = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                budget.spend("files in its folders", 1, path)
                (folders if entry.is_dir() else names).add(entry.name)
    except OSError as error:
        raise CheckpointError(f"the folder cannot be read ({error.strerror or error})", path) from error
    return names, {name for name in folders if name.isprintable() and not name.startswith(".")}


def _named_by(index: dict[str, Any]) -> set[str]:
    """Returns the components that a model_index.json names, not those that it says are left out: [null, null]."""
    return {
        name
        for name, value in index.items()
        if not name.startswith("_") and type(value) is list and len(value) == 2 and value[1] is not None
    }


def find_weights(names: set[str]) -> Weights:
    """Returns the sets of weights among a folder's files, whole files before indices of shards."""
    found: Weights = {}
    for stem in STEMS:
        for name in sorted(names):
            if (match := _SINGLE.fullmatch(name)) and match[1] == stem and not _SHARD.fullmatch(name):
                found.setdefault((match[2] or "", match[3]), (name, False))
        for name in sorted(names):
            if (match := _INDEX.fullmatch(name)) and match[1] == stem:
                found.setdefault((match[3] or match[4] or "", match[2]), (name, True))
    return found


def is_index(name: str) -> bool:
    """Returns whether a file of that name lists the shards of weights."""
    return _INDEX.fullmatch(name) is not None


def choose_weights(
    components: dict[str, Weights], variant: str | None, path: str | os.PathLike[str]
) -> dict[str, tuple[str, bool]]:
    """Returns each component's file: of the variant where it has one, else its plain weights.

    A component without plain weights gives its fp16 ones, or its only ones, if no variant is asked for.
    """
    wanted = variant or ""
    known = sorted({name for weights in components.values() for name, _ in weights})
    if wanted and wanted not in known:
        named = ", ".join(repr(name) for name in known if name)
        plain = "none (plain weights), " if "" in known else ""
        if named:
            reason = f"variant {wanted!r} was asked for; its variants are {plain}{named}: name one by variant="
        else:
            reason = f"variant {wanted!r} was asked for, and it has no variants, only plain weights: leave variant= out"
        raise CheckpointError(reason, path)
    chosen = {}
    for component, weights in components.items():
        own = substitute(weights)
        order = (wanted, "") if wanted or own is None else (own,)
        for key in ((name, suffix) for name in dict.fromkeys(order) for suffix in SUFFIXES):
            if key in weights:
                chosen[component] = weights[key]
                break
        else:
            names = ", ".join(sorted({name for name, _ in weights}))
            where = f"its component {component} has" if component else "it has"
            raise CheckpointError(f"{where} weights of the variants {names} only; name one as the variant", path)
    return chosen


def substitute(weights: Weights) -> str | None:
    """Returns the variant to use if there are no plain weights; None if there are some, or if the choice is unclear."""
    names = sorted({name for name, _ in weights})
    if "" in names or not names:
        return None
    return "fp16" if "fp16" in names else names[0] if len(names) == 1 else None


def substitutes(components: dict[str, Weights]) -> list[str]:
    """Returns a line for each variant that is used because components have no plain weights."""
    found: dict[str, list[str]] = {}
    for component, weights in components.items():
        if name := substitute(weights):
            found.setdefault(name, []).append(component)
    lines = []
    for name, parts in found.items():
        of = f" of {', '.join(parts)}" if any(parts) else ""
        lines.append(f"there are no plain weights{of}, so those of the variant {name} were taken")
    return lines


def _read_shards(
    index: pathlib.Path, there: set[str], read_file: ReadFile, budget: Budget, opened: list[TensorFile]
) -> None:
    """Opens the shards that an index names, adds them to `opened`, and checks that it and they agree."""
    table = _json(index, budget).get("weight_map")
    if type(table) is not dict or not 0 < len(table) <= MAX_TENSORS or not all(len(name) <= MAX_NAME for name in table):
        raise CheckpointError("its weight_map does not give a file for each tensor", index)
    promised: dict[str, set[str]] = {}
    for tensor, name in table.items():
        if type(name) is not str or not _SHARD.fullmatch(name):  # no path: nothing out of the folder is named
            raise CheckpointError(f"it names the file {shown(name)}, which is no shard's name", index)
        if name not in there:
            raise CheckpointError(f"it names the file {shown(name)}, which is not there", index)
        promised.setdefault(name, set()).add(tensor)
    problems: list[str] = []
    placed: set[str] = set()
    for name, wanted in promised.items():
        shard = read_file(index.parent / name, budget)
        opened.append(shard)
        found = set(shard.tensors)
        problems += [f"{name} lacks {shown(tensor)}" for tensor in sorted(wanted - found)]
        problems += [f"{shown(tensor)} is in two files" for tensor in sorted(placed & found)]
        placed |= found
    if problems:
        more = f" and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(f"it does not describe its files: {'; '.join(problems[:20])}{more}", index)


def _configs(path: pathlib.Path, listings: dict[str, set[str]], budget: Budget) -> dict[str, dict[str, Any]]:
    """Returns the JSON configurations in these folders by their path below `path`, with forward slashes."""
    out = {}
    for folder, names in listings.items():
        for name in sorted(names):
            if name.startswith(".") or not (name in _NEEDED or name.endswith("_config.json")):
                continue
            if not folder and name not in ("model_index.json", OWN_SETTINGS) and "model_index.json" in names:
                continue  # the index and what it names is all of a pipeline
            try:
                out[f"{folder}/{name}" if folder else name] = _json(path / folder / name, budget)
            except CheckpointError:
                if name in _NEEDED:
                    raise
    return out


_NEEDED = (
    "config.json", "model_index.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json",
    OWN_SETTINGS,
)  # fmt: skip


def _json(path: pathlib.Path, budget: Budget) -> dict[str, Any]:
    file = MappedFile(path)
    try:
        budget.spend("bytes of JSON", file.size, file.path)
        return read_json(file.bytes(0, file.size).removeprefix(b"\xef\xbb\xbf"), file.error)
    finally:
        file.close()


def _nothing(names: set[str], listings: dict[str, set[str]], path: pathlib.Path) -> CheckpointError:
    """Returns the error for a folder without weights: what it is, where that is known, or what was looked for."""
    every = {name for listing in listings.values() for name in listing}
    for pattern, what, advice in _FOLDERS:
        if re.search(pattern, path.name) or any(re.search(pattern, name) for name in every):
            return OtherKindError(what, advice, f"it is {what}; {advice}", path)
    files = [shown(name) for name in sorted(names) if name.endswith((".ckpt", ".safetensors", ".pt", ".pth"))]
    hint = f"; to read a single file, name it: {', '.join(files[:5])}" if files else ""
    stems = " or ".join(
        f"{stem}.{suffix}" for stem, suffix in (("diffusion_pytorch_model", SUFFIXES[0]), ("model", SUFFIXES[0]))
    )
    return CheckpointError(
        f"the folder has no weights of diffusers' names ({stems}) in it or one level below{hint}", path
    )


_CONVERTED = "name the folder with PyTorch's weights that it was made of"
_FOLDERS = (
    (r"^pytorch_lora_weights\.|^adapter_model\.|^adapter_config\.json$", "a folder of LoRA weights",
     "merge them into their model with the tool that they are from, and name the merged model"),
    (r"^learned_embeds", "a folder of a textual inversion", "name the whole model that it goes with"),
    (r"\.ml(package|modelc)$|^Manifest\.json$|^coremldata\.bin$|\.mlmodel$", "a folder of Core ML models", _CONVERTED),
    (r"\.onnx(_data)?$", "a folder of ONNX models", _CONVERTED),
    (r"\.msgpack$", "a folder of Flax weights of diffusers (msgpack)", _CONVERTED),
    (r"^openvino_", "a folder of OpenVINO models", _CONVERTED),
    (r"\.(engine|plan|trt)$", "a folder of TensorRT engines", _CONVERTED),
    (r"^tf_model\.h5$", "a folder of Keras or TensorFlow weights", _CONVERTED),
    (r"^optimizer\.bin$|^random_states_\d+\.pkl$|^scheduler\.bin$", "a training's folder of another tool, with the "
     "state of its optimizer", "name the model that it wrote beside"),
)  # fmt: skip
