"""Reads an adapter of the LoRA family from a file or folder: every tensor is used, or the adapter is refused."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from sdjax import configs
from sdjax.adapters.delta import Adapter
from sdjax.config import ModelConfig
from sdjax.convert.adapters.info import AdapterInfo, info_of
from sdjax.convert.adapters.kinds import Change, Dora, Misfit, Scaling, changes_of
from sdjax.convert.adapters.peft_settings import FILE, PeftSettings, header_of
from sdjax.convert.adapters.spelling import Layer, find_layer, layers_by_name, split_name
from sdjax.convert.adapters.write_names import FOLDERS, HEADER
from sdjax.convert.containers.lazy import is_finite, is_floating
from sdjax.convert.containers.local_models import local_path
from sdjax.convert.containers.reading import read
from sdjax.convert.containers.strict_json import read_json
from sdjax.convert.containers.webui_hashes import file_hashes, short_hash
from sdjax.convert.errors import CheckpointError, listed, printable

Alpha0 = Literal["none", "rank"]

FAMILIES = ("sd1", "sd2_base")  # descriptions of the released models that adapters are for
LONGEST = 200  # characters of a tensor's name that a message repeats
_LARGEST_CONFIG = 2**20  # bytes
_PEFT = "base_model.model."
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors",
            "pytorch_lora_weights.bin")  # fmt: skip
_EMBEDDING = re.compile(r"bundle_emb\.(?P<word>.+)\.(?P<kind>string_to_param\.\*|emb_params|clip_l|clip_g|clip_h)$")
# Names that only adapters of other models have
_OTHERS = (
    ("Stable Diffusion XL", r"^lora_te2_|text_encoder_2\.|clip_g\b|transformer_blocks[._]9[._]|add_embedding"
                            r"|input_blocks[._][78][._]1[._]transformer_blocks[._][4-9]"),
    ("Flux", r"(double|single)_blocks[._]\d|single_transformer_blocks"),
    ("Stable Diffusion 3", r"joint_blocks[._]\d|add_[qkv]_proj|context_block"),
    ("a video or another transformer model",
     r"^(diffusion_model\.|transformer\.)?(blocks|layers|transformer_blocks)[._]\d|lora_te3_|t5xxl"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LoadedAdapter:
    """An adapter as it was read: its changes by the model's parameters, and what came with it.

    Attributes:
        adapter: the change of each parameter by its path, "unet/down_blocks_0/.../to_q/kernel".
        info: what is told of it.
        embeddings: vectors [n, d] of words that are bundled with it.
        metadata: text by key, from the file's header.
        notices: decisions made while reading.
        name: the file's name without its ending.
    """

    adapter: Adapter
    info: AdapterInfo
    embeddings: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    notices: tuple[str, ...] = ()
    name: str = ""

    @property
    def short_hash(self) -> str:
        """The 12 digits that A1111 writes of it beside a picture, "" if it came from no single file."""
        return short_hash(self.metadata, self.info.hashes)

    def __repr__(self) -> str:
        return f"<LoadedAdapter {self.name}: {'; '.join(self.info.lines())}>"


def load_adapter(
    source: str | os.PathLike[str] | Mapping[str, np.ndarray],
    config: ModelConfig,
    *,
    metadata: Mapping[str, str] | None = None,
    peft_config: Mapping[str, Any] | None = None,
    alpha_0: Alpha0 = "none",
    dora: Dora = "linear",
) -> LoadedAdapter:
    """Returns the adapter in a file or folder, for models of this description.

    LoRA (LoCon), DoRA, LoHa, LoKr, (IA)^3, GLoRA, OFT, BOFT and differences are read, in the names of kohya, LyCORIS,
    diffusers, PEFT, OneTrainer and ComfyUI, from safetensors, torch.save and PEFT's folders. Nothing is executed.

    Args:
        source: a path; or the tensors by name, with `metadata` (the header's texts) and `peft_config` (what
            adapter_config.json holds) beside them.
        alpha_0: what an alpha of 0 means: "none" is no change, as in A1111 and ComfyUI; "rank" is a scale of 1, as
            where it was trained with LyCORIS or sd-scripts.
        dora: what DoRA does at weights s other than 1: "linear" is W + s (W' - W), "trainer" is what PEFT (magnitude
            vectors) or LyCORIS (dora_scale) compute, which differ from it and from each other.

    Raises:
        ValueError: for another `alpha_0` or `dora`.
        CheckpointError: for a file that cannot be read or is no adapter; and, naming all tensors concerned, for
            layers that the model does not have, unknown pieces, pieces that are missing or do not fit, and numbers
            that are not finite. An adapter of another model is named as such.
    """
    for given, known, what in (alpha_0, get_args(Alpha0), "alpha_0"), (dora, get_args(Dora), "dora"):
        if given not in known:
            raise ValueError(f"{what} is one of {', '.join(known)}; got {given!r}")
    if isinstance(source, Mapping):
        settings = PeftSettings(peft_config, header_of(metadata or {}))
        return _placed(source, metadata or {}, settings, config, alpha_0, dora, None)
    named = pathlib.Path(source)
    path = named if named.is_dir() else local_path(source)  # which would choose one file of a folder
    tensors: dict[str, np.ndarray] = {}
    told: dict[str, str] = {}
    alone: Mapping[str, Any] | None = None
    described: dict[str, Any] = {}  # of several networks, as a header has it
    for part, weights in _files(path):
        with read(weights) as file:
            own = {name: np.array(stored.array()) for name, stored in file.tensors.items()}
            told |= file.metadata
        description = _description(weights.parent) if path.is_dir() else None
        if part is None:
            alone = description
        elif description is not None:
            described |= {f"{part}.{name}": value for name, value in description.items()}
            own = {f"{_PEFT}{part}.{name.removeprefix(_PEFT)}": array for name, array in own.items()}
        tensors |= own
    settings = PeftSettings(alone, described or header_of(told, path))
    loaded = _placed(tensors, told, settings, config, alpha_0, dora, path)
    if path.is_dir():
        return loaded
    return dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, hashes=file_hashes(path).named))


def load_for_released(*paths: str | os.PathLike[str]) -> tuple[ModelConfig, list[LoadedAdapter]]:
    """Returns the model that all these adapters are for, Stable Diffusion 1 or 2, and the adapters.

    Raises CheckpointError, as for Stable Diffusion 1, if they fit neither.
    """
    refused: list[CheckpointError] = []
    for name in FAMILIES:
        config = configs.get(name)
        try:
            return config, [load_adapter(path, config) for path in paths]
        except CheckpointError as error:
            refused.append(error)
    raise refused[0]


def _files(path: pathlib.Path) -> list[tuple[str | None, pathlib.Path]]:
    """Returns the files with tensors; those of a folder with one for each network with the network's name."""
    if not path.is_dir():
        return [(None, path)]
    alone = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if alone is not None:
        return [(None, alone)]
    found: list[tuple[str | None, pathlib.Path]] = [
        (part, file) for part in FOLDERS.values() for name in _WEIGHTS if (file := path / part / name).is_file()
    ]
    if not found:
        raise CheckpointError(f"it is a folder without an adapter: expected one of {', '.join(_WEIGHTS)}", path)
    return found


def _description(folder: pathlib.Path) -> Mapping[str, Any] | None:
    """Returns what adapter_config.json says, None if there is none."""
    config = folder / FILE
    if not config.is_file():
        return None
    if config.stat().st_size > _LARGEST_CONFIG:
        raise CheckpointError(f"it has more than {_LARGEST_CONFIG} bytes", config)
    return read_json(config.read_bytes(), lambda reason: CheckpointError(reason, config))


def _placed(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], settings: PeftSettings,
    config: ModelConfig, alpha_0: Alpha0, dora: Dora, path: pathlib.Path | None,
) -> LoadedAdapter:  # fmt: skip
    embeddings, misplaced = _bundled(tensors, config)
    grouped, problems = _grouped({k: v for k, v in tensors.items() if not k.startswith("bundle_emb.")}, config)
    problems = misplaced + problems
    changes: list[Change] = []
    alphas, empty = [], 0
    for layer, pieces in grouped.items():
        names = ", ".join(_shown(one) for one, _ in pieces.values())
        arrays = {piece: array for piece, (_, array) in pieces.items()}
        try:
            _check_numbers(arrays)
            scaling = _scaling(arrays.pop("alpha", None), layer, settings, names)
            scaling = dataclasses.replace(scaling, rotation=settings.rotation(layer.part))
            if scaling.alpha is not None:
                alphas.append(scaling.alpha)
            orthogonal = "oft_blocks" in arrays
            if scaling.alpha == 0 and not orthogonal:
                empty += 1
                scaling = dataclasses.replace(scaling, alpha=None if alpha_0 == "rank" else 0.0)
            changes += changes_of(arrays, layer, scaling, dora)
        except Misfit as error:
            problems.append(f"{names}: {error}")
        except CheckpointError as error:  # of the settings
            raise CheckpointError(str(error), path) from None
    if problems:
        raise CheckpointError(_refusal(problems, tensors, grouped, config), path)
    if not changes and not embeddings:
        raise CheckpointError("it holds no tensors of an adapter", path)
    what = "change nothing" if alpha_0 == "none" else "count as alpha = rank"
    notices = (f"{empty} layers have alpha 0 and {what}",) if empty else ()
    return LoadedAdapter(
        {change.parameter.path: change.delta for change in changes},
        info_of(changes, alphas, metadata, path), embeddings,
        {key: text for key, text in metadata.items() if key not in (HEADER, "format")}, notices,
        "" if path is None else path.stem,
    )  # fmt: skip


def _bundled(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the vectors of the words that are bundled, and what is wrong with the others."""
    width, found, problems = config.text.width, {}, []
    for name, tensor in tensors.items():
        if not name.startswith("bundle_emb."):
            continue
        bundled = _EMBEDDING.match(name)
        vectors = np.atleast_2d(tensor)
        if bundled is None:
            problems.append(f"{_shown(name)} is no known piece of an adapter")
        elif bundled["kind"] == "clip_g":
            problems.append(f"{_shown(name)} is a word of Stable Diffusion XL")
        elif vectors.ndim != 2 or vectors.shape[1] != width or not is_floating(tensor.dtype):
            problems.append(f"{_shown(name)} is {tensor.dtype} {list(tensor.shape)}, and a word is vectors of {width}")
        elif not is_finite(vectors):
            problems.append(f"{_shown(name)} has numbers that are not finite")
        elif bundled["word"] in found:
            problems.append(f"{_shown(name)} gives a word that it has already")
        else:
            found[bundled["word"]] = vectors
    return found, problems


def _grouped(
    tensors: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[dict[Layer, dict[str, tuple[str, np.ndarray]]], list[str]]:
    """Returns for each layer its pieces, with the names that they have in the file; and what is wrong with the rest."""
    layers = layers_by_name(config)
    grouped: dict[Layer, dict[str, tuple[str, np.ndarray]]] = {}
    problems = []
    for name, array in tensors.items():
        split = split_name(name)
        layer = None if split is None else find_layer(layers, split[0])
        if split is None:
            problems.append(f"{_shown(name)} is no known piece of an adapter")
        elif layer is None:
            problems.append(f"{_shown(name)}: the model has no such layer")
        elif split[1] in grouped.setdefault(layer, {}):
            problems.append(f"{_shown(name)} and {_shown(grouped[layer][split[1]][0])} are the same piece")
        else:
            grouped[layer][split[1]] = name, array
    return grouped, problems


def _shown(name: str) -> str:
    return printable(name, limit=LONGEST)


def _scaling(alpha: np.ndarray | None, layer: Layer, settings: PeftSettings, names: str) -> Scaling:
    limited = "oft_unet_" in names or "oft_te_" in names
    if alpha is not None:
        if alpha.size != 1:
            raise Misfit(f"alpha is one number; it is {list(alpha.shape)}")
        return Scaling(float(alpha.reshape(())), always_limited=limited)
    return settings.scaling(layer.part, layer.name) or Scaling(always_limited=limited)


def _check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    for piece, array in arrays.items():
        if piece == "on_input":
            continue
        if not is_floating(array.dtype) and not (piece == "alpha" and np.issubdtype(array.dtype, np.integer)):
            raise Misfit(f"{piece} holds {array.dtype}, not floating-point numbers")
        if not is_finite(array):
            raise Misfit(f"{piece} has numbers that are not finite")


def _refusal(
    problems: list[str], tensors: Mapping[str, np.ndarray], grouped: Mapping[Layer, Any], config: ModelConfig
) -> str:
    for model, pattern in _OTHERS:
        if any(re.search(pattern, name) for name in tensors):
            return f"it is an adapter for {model}, and this model is {config.name}: {listed(problems)}"
    for layer, pieces in grouped.items():
        own = next((pieces[one][1].shape[1] for one in _READS_INPUT if one in pieces and pieces[one][1].ndim > 1), None)
        if layer.name.endswith("attn2.to_k"):
            width = config.unet.context_dim
        elif layer.name.endswith("self_attn.q_proj"):
            width = config.text.width
        else:
            continue
        if own != width and own in _WIDTHS:
            return (
                f"it is an adapter for {_WIDTHS[own]}, whose texts are vectors of {own} numbers, and {config.name} "
                f"takes {width}: {listed(problems)}"
            )
    return f"it does not fit this model ({config.name}): {listed(problems)}"


_READS_INPUT = ("down", "hada_w1_b", "diff")  # pieces whose second axis is the inputs of a linear layer
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
