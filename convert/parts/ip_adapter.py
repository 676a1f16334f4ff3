"""Reads IP-Adapters: plain, light, plus, plus-face, full-face, and FaceID.

The original files hold two dictionaries, `image_proj` and `ip_adapter`. Training scripts write one, with the names
`image_proj_model` and `adapter_modules`.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from sdjax import configs
from sdjax.adapters.delta import LowRank
from sdjax.config import ModelConfig, UNetConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.other_kinds import kind_of_folder, kind_of_tensors
from sdjax.convert.errors import listed
from sdjax.convert.names import axes
from sdjax.convert.names.naming import torch_name
from sdjax.convert.names.tables import Entry, Table, parameters_of
from sdjax.convert.parts.lone import leaves_in, read_whole
from sdjax.nn.ip_adapter import HEAD, IPAdapterConfig, attention_paths
from sdjax.typing import Params

MOST_ATTENTIONS, MOST_LAYERS = 256, 64
_OTHER_NAMES = {"image_proj_model.": "image_proj.", "adapter_modules.": "ip_adapter."}
_RULES = (  # from our names in torch's spelling to the files'
    (re.compile(r"^attention_(\d+)\."), lambda found: f"ip_adapter.{2 * int(found[1]) + 1}."),
    (re.compile(r"^image_proj\.attention_(\d+)\."), r"image_proj.layers.\1.0."),
    (re.compile(r"^image_proj\.feed_forward_(\d+)\.norm\."), r"image_proj.layers.\1.1.0."),
    (re.compile(r"^image_proj\.feed_forward_(\d+)\.up\."), r"image_proj.layers.\1.1.1."),
    (re.compile(r"^image_proj\.feed_forward_(\d+)\.down\."), r"image_proj.layers.\1.1.3."),
    (re.compile(r"^image_proj\.proj_(\d)\."), r"image_proj.proj.\1."),
)
_ATTENTION = re.compile(r"ip_adapter\.(\d{1,4})\.to_([kv])_ip\.weight")
_LORA = re.compile(r"ip_adapter\.(\d{1,4})\.to_(q|k|v|out)_lora\.(down|up)\.weight")  # of FaceID
_LAYER = re.compile(r"image_proj\.layers\.(\d{1,4})\.")
_WORDS = {
    "linear": "an IP-Adapter, plain or light: it takes the embedding of a picture",
    "resampler": "an IP-Adapter plus: it takes the tokens of a picture",
    "mlp": "an IP-Adapter full-face: it takes the tokens of a picture",
    "face": "an IP-Adapter FaceID: it takes the embedding of a face",
}


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedIPAdapter:
    """An IP-Adapter: description, parameters, and the file's name without its ending.

    `lora` are the low-rank changes of the UNet's attention that a FaceID adapter was trained with, by their paths.
    """

    config: IPAdapterConfig
    params: Params
    name: str = "IP-Adapter"
    lora: Mapping[str, LowRank] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class FoundIPAdapter:
    """An IP-Adapter in a file, not read."""

    checkpoint: Checkpoint
    config: IPAdapterConfig
    tensors: Mapping[str, LazyTensor]
    lora: Mapping[str, LazyTensor] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        c = self.config
        tokens = f"{c.tokens} tokens" if c.tokens else "one token for each of the encoder's"
        return [
            _WORDS[c.kind],
            f"input of {c.embedding} numbers, {tokens} of {c.context} numbers, {len(c.attentions)} cross-attentions",
        ]

    def leaves(self, dtype: np.dtype | None) -> dict[str, LazyTensor]:
        """Returns the parameters by path. Raises CheckpointError, naming every difference."""
        table = ip_adapter_table(self.config)
        return leaves_in(self.checkpoint, self.tensors, table, _WORDS[self.config.kind], dtype, complete=True)


def load_ip_adapter(
    source: CheckpointLike, model: ModelConfig | None = None, *, dtype: DTypeLike | None = None
) -> LoadedIPAdapter:
    """Returns the IP-Adapter in a file. `model` is the description of the model that it is for.

    Nothing in a file is executed. Raises CheckpointError, naming the tensors, ValueError for an unknown dtype.
    """
    kind = float_type(dtype)
    found = find_ip_adapter(source, model)
    path = found.checkpoint.path
    params = read_whole(found.leaves(kind), kind, "ip_adapter")
    lora = _changes(found, None if model is None else model.unet)
    return LoadedIPAdapter(found.config, params, "IP-Adapter" if path is None else path.stem, lora)


def find_ip_adapter(source: CheckpointLike, model: ModelConfig | None = None) -> FoundIPAdapter:
    """Returns the IP-Adapter in a file without reading its numbers. Raises CheckpointError."""
    checkpoint = open_checkpoint(source)
    tensors = {_canonical(tensor.name): tensor for tensor in checkpoint.tensors.values()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("unet.")}  # a training's
    lora = {name: tensor for name, tensor in tensors.items() if _LORA.fullmatch(name)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in lora}
    if not any(_ATTENTION.match(name) for name in tensors):
        kind = kind_of_folder(checkpoint.configs) or kind_of_tensors(checkpoint.shapes)
        known = "" if kind is None else f" (it is {kind.what})"
        raise checkpoint.error(f"it holds no IP-Adapter{known}: none of its tensors is named ip_adapter.1.to_k_ip")
    config = _described({name: tensor.shape for name, tensor in tensors.items()}, checkpoint)
    if model is not None:
        wanted = tuple(width for _, width in attention_paths(model.unet))
        if config.attentions != wanted:
            raise checkpoint.error(
                f"this IP-Adapter is for a UNet of {len(config.attentions)} cross-attentions "
                f"({_some(config.attentions)} channels), and the model ({model.name}) has {len(wanted)} "
                f"({_some(wanted)})"
            )
    return FoundIPAdapter(checkpoint, config, tensors, lora)


def _changes(found: FoundIPAdapter, unet: UNetConfig | None) -> dict[str, LowRank]:
    """Returns the changes of the UNet's attention by path. Attentions are counted with self-attention: 0, 1, 2, ...

    Raises CheckpointError for half of a pair, factors that do not fit, and attentions that the UNet does not have.
    """
    paths = attention_paths(configs.get("sd1").unet if unet is None else unet)
    out, problems = {}, []
    for name in found.lora:
        number, layer, factor = _LORA.fullmatch(name).groups()  # type: ignore[union-attr]
        stem = name.removesuffix(f"{factor}.weight")
        down, up = (found.lora.get(f"{stem}{one}.weight") for one in ("down", "up"))
        if down is None or up is None:
            problems.append(f"{name} has no counterpart")
        elif len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
            problems.append(f"{stem}down {list(down.shape)} and up {list(up.shape)} do not fit each other")
        elif int(number) // 2 >= len(paths):
            problems.append(f"{name} is for attention {number}, and the UNet has {2 * len(paths)}")
        elif factor == "down":
            block = paths[int(number) // 2][0].rpartition("/")[0]
            path = f"unet/{block}/attn{1 + int(number) % 2}/{'to_out_0' if layer == 'out' else f'to_{layer}'}/kernel"
            inward, outward = (np.asarray(one.read(), np.float32).T for one in (down, up))
            out[path] = LowRank(inward, outward, 1.0)
    if problems:
        raise found.checkpoint.error(f"the LoRA in this IP-Adapter cannot be used: {listed(problems)}")
    return out


def ip_adapter_table(config: IPAdapterConfig) -> Table:
    """Returns the table of an IP-Adapter's file."""
    from sdjax.nn.networks import NETWORKS  # all networks: pictures without an image prompt do not need them

    entries = []
    for parameter in parameters_of("ip_adapter", NETWORKS["ip_adapter"].shapes(config)):
        name = torch_name(parameter.path.partition("/")[2])
        for pattern, change in _RULES:
            name = pattern.sub(change, name)
        entries.append(Entry(name, axes.stored_shape(parameter.kind, parameter.shape), (parameter,)))
    return Table(tuple(entries), ("ip_adapter",))


def _canonical(name: str) -> str:
    for theirs, ours in _OTHER_NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _described(shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> IPAdapterConfig:
    """Returns the description that names and shapes give."""

    def size(name: str, axis: int, rank: int = 2) -> int:
        shape = shapes.get(f"image_proj.{name}", ())
        return shape[axis] if len(shape) == rank else 0

    if any(name.startswith("image_proj.perceiver_resampler.") for name in shapes):
        raise checkpoint.error(
            "it is an IP-Adapter FaceID Plus, which takes a face's embedding and a picture together; sdjax runs FaceID "
            "without Plus, and plus-face"
        )
    widths: dict[int, int] = {}
    for name, shape in shapes.items():
        found = _ATTENTION.fullmatch(name)
        if found and len(shape) == 2 and int(found[1]) % 2 and int(found[1]) < 2 * MOST_ATTENTIONS:
            widths.setdefault(int(found[1]) // 2, shape[0])
    attentions = tuple(widths.get(i, widths[max(widths)]) for i in range(1 + max(widths, default=-1)))
    depth = 1 + max((int(found[1]) for found in map(_LAYER.match, shapes) if found), default=-1)
    context = size("norm.weight", 0, 1)
    if depth:
        config = IPAdapterConfig(
            "resampler", size("proj_in.weight", 1), size("proj_out.weight", 0), attentions,
            tokens=size("latents", 1, 3), width=size("latents", 2, 3), depth=min(depth, MOST_LAYERS),
            heads=size("layers.0.0.to_q.weight", 0) // HEAD or size("layers.1.0.to_q.weight", 0) // HEAD,
        )  # fmt: skip
        known = min(config.tokens, config.width, config.heads)
    elif "image_proj.proj.3.weight" in shapes or "image_proj.proj.3.bias" in shapes:
        config = IPAdapterConfig("mlp", size("proj.2.weight", 1), size("proj.2.weight", 0), attentions)
        known = 1
    else:
        two = "image_proj.proj.0.weight" in shapes
        outputs = size("proj.2.weight", 0) if two else size("proj.weight", 0) or size("proj.bias", 0, 1)
        inputs = size("proj.0.weight", 1) if two else size("proj.weight", 1)
        config = IPAdapterConfig("face" if two else "linear", inputs, context, attentions, outputs // max(context, 1))
        known = config.tokens
    if not known or not config.embedding or not config.context or not attentions or min(attentions) < 1:
        raise checkpoint.error(
            "it holds no IP-Adapter of a known kind: the tensors image_proj.* are not those of a plain, light, plus, "
            "full-face or FaceID adapter"
        )
    return config


def _some(widths: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(set(widths))))
