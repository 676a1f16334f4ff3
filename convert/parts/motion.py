"""AnimateDiff's motion modules, under AnimateDiff's names or diffusers'.

`down_blocks.0.motion_modules.0.temporal_transformer.` + `transformer_blocks.0.attention_blocks.0.to_q.weight` in
AnimateDiff is `down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.weight` in diffusers. Source: diffusers'
scripts/convert_animatediff_motion_module_to_diffusers.py, which says which name is which.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ConfigError, UNetConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.errors import listed, printable
from sdjax.convert.names.tables import network_table
from sdjax.convert.parts.lone import leaves_in, read_whole
from sdjax.nn.motion import MotionConfig, sinusoid
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

_RENAMED = (
    (re.compile(r"^(module|unet)\."), ""),
    (re.compile(r"\.temporal_transformer\."), "."),
    (re.compile(r"\.attention_blocks\.([01])\."), lambda found: f".attn{int(found[1]) + 1}."),
    (re.compile(r"\.norms\.([01])\."), lambda found: f".norm{int(found[1]) + 1}."),
    (re.compile(r"\.ff_norm\."), ".norm3."),
)  # fmt: skip
_ANIMATEDIFF = (  # the other way round
    (re.compile(r"(\.motion_modules\.\d+\.)"), r"\1temporal_transformer."),
    (re.compile(r"\.attn([12])\."), lambda found: f".attention_blocks.{int(found[1]) - 1}."),
    (re.compile(r"\.norm([12])\."), lambda found: f".norms.{int(found[1]) - 1}."),
    (re.compile(r"\.norm3\."), ".ff_norm."),
)
MODULE = re.compile(r"(down_blocks|up_blocks|mid_block)(?:\.(\d{1,2}))?\.motion_modules\.(\d{1,2})\.(.+)")
_BLOCK = re.compile(r"transformer_blocks\.(\d{1,2})\.")
_POSITIONS = re.compile(r"(.+)\.attn([12])\.pos_encoder\.pe")
_IN_LORA = re.compile(r"[._]lora[._](down|up|A|B)\b")
SPARSE = "controlnet_cond_embedding."  # what SparseCtrl has beside motion modules


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedMotion:
    """Motion modules: their description and parameters, the file's name without its ending, and what was decided."""

    config: MotionConfig
    params: Params
    name: str = "motion"
    notices: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<LoadedMotion {self.name}: {'; '.join(lines_of_modules(self.config))}>"


def load_motion(
    source: CheckpointLike, config: UNetConfig | None = None, dtype: DTypeLike | None = None, *, name: str = ""
) -> LoadedMotion:
    """Returns the motion modules in a file, a folder of diffusers' MotionAdapter, or a mapping of arrays.

    With `config` they must fit this UNet. Positions are read if they are there; otherwise they are sines and cosines,
    for as many frames as config.json says, or 32. Raises CheckpointError, naming every tensor that is missing, unknown
    or misshapen, and ValueError for an unknown dtype.
    """
    kind, checkpoint = float_type(dtype), open_checkpoint(source)
    described = _described(checkpoint)
    reason = None if config is None else described.misfit(config)
    if reason is not None:
        raise checkpoint.error(f"its motion modules do not fit this model: {reason}")
    params = read_whole(motion_leaves(checkpoint, described, kind), kind, "motion")
    places = {_position_path(name): one for name, one in checkpoint.tensors.items() if is_position(name)}
    _put_positions(checkpoint, params, described, places)
    own = checkpoint.path.stem if checkpoint.path is not None else "motion"
    unsaid = described.version != "v2" and not places and _stated(checkpoint) is None
    notices = ("nothing says whether the motion modules are v1 or v3: they are taken as v3, for up to 32 frames",)
    return LoadedMotion(described, params, name or own, notices if unsaid else ())


def motion_leaves(
    source: Checkpoint | CheckpointLike, config: MotionConfig | None = None, dtype: np.dtype | None = None
) -> dict[str, LazyTensor]:
    """Returns the learned parameters of motion modules by path, not read yet.

    `config` describes the modules; None means that names and shapes do. Raises CheckpointError as `load_motion`.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    config = _described(checkpoint) if config is None else config
    rest = {tensor.name: tensor for name, tensor in checkpoint.tensors.items() if not is_position(name)}
    table = network_table("motion", NETWORKS["motion"].shapes(config), "", str, "$^")
    spell = _spelling(list(rest))
    learned = tuple(
        dataclasses.replace(entry, name=spell(entry.name)) for entry in table.entries if "pos_encoder" not in entry.name
    )
    what = f"AnimateDiff's motion modules ({config.version})"
    return leaves_in(checkpoint, rest, dataclasses.replace(table, entries=learned), what, dtype)


def _spelling(names: Sequence[str]) -> Callable[[str], str]:
    """Returns the function that turns diffusers' name of a tensor into the one in a file with these names."""
    prefix = next((one for one in ("module.", "unet.") if all(name.startswith(one) for name in names)), "")
    if not any(".temporal_transformer." in name for name in names):
        return lambda name: prefix + name

    def animatediff(name: str) -> str:
        for pattern, instead in _ANIMATEDIFF:
            name = pattern.sub(instead, name)
        return prefix + name

    return animatediff


def is_position(name: str) -> bool:
    """Returns whether a tensor holds positions, which are not learned."""
    return _POSITIONS.fullmatch(canonical(name)) is not None


def canonical(name: str) -> str:
    """Returns diffusers' name of a tensor."""
    for pattern, instead in _RENAMED:
        name = pattern.sub(instead, name)
    return name


def motion_lines(source: CheckpointLike) -> list[str]:
    """Returns the facts of the motion modules in a file as lines, without reading them. Raises CheckpointError."""
    checkpoint = open_checkpoint(source)
    config = _described(checkpoint)
    motion_leaves(checkpoint, config)  # raises if they are not complete
    return lines_of_modules(config)


def lines_of_modules(config: MotionConfig) -> list[str]:
    """Returns the facts of motion modules as lines."""
    return [
        f"AnimateDiff's motion modules {config.version}",
        f"for a UNet with {' '.join(map(str, config.channels))} channels, up to {config.positions} frames at once",
    ]


def _described(checkpoint: Checkpoint) -> MotionConfig:
    """Returns the description that names and shapes say. Raises CheckpointError if there are no motion modules."""
    names = {canonical(name): tensor for name, tensor in checkpoint.tensors.items()}
    if any(name.startswith(SPARSE) for name in names):
        raise checkpoint.error(
            "it is a SparseCtrl, a ControlNet with motion modules, which sdjax does not run; name a file of motion "
            "modules, such as v3_sd15_mm.ckpt"
        )
    if any(_IN_LORA.search(name) for name in names):
        raise checkpoint.error("it is a motion LoRA: name motion modules here, and this file as their LoRA")
    found = [match for name in names if (match := MODULE.fullmatch(name))]
    if not found:
        raise checkpoint.error(
            "it holds no motion modules: none of its tensors is named down_blocks.0.motion_modules.0..."
        )
    downs = [match for match in found if match[1] == "down_blocks" and match[2] is not None]
    levels = 1 + max((int(match[2]) for match in downs), default=0)
    layers = 1 + max((int(match[3]) for match in downs), default=0)
    depth = 1 + max((int(block[1]) for match in found if (block := _BLOCK.match(match[4]))), default=0)
    if levels == 3 and not any(match[1] == "up_blocks" and match[2] == "3" for match in found):
        raise checkpoint.error(
            "its motion modules are for a UNet of three levels, such as Stable Diffusion XL's; name modules for Stable "
            "Diffusion 1, such as mm_sd_v15_v2.ckpt"
        )
    try:
        return MotionConfig(
            channels=tuple(_width(names.items(), f"down_blocks.{i}.") for i in range(levels)),
            layers=layers,
            middle=any(match[1] == "mid_block" for match in found),
            positions=_positions(checkpoint, names),
            depth=depth,
        )
    except ConfigError as error:
        raise checkpoint.error(f"its motion modules are of no known size: {error}") from error


def _width(tensors: Iterable[tuple[str, LazyTensor]], block: str) -> int:
    """Returns the number of channels of a block: the length of the first norm in it; 0 without one."""
    norms = (tensor.shape for name, tensor in tensors if name.startswith(block) and ".norm" in name)
    return next((shape[0] for shape in norms if len(shape) == 1), 0)


def _positions(checkpoint: Checkpoint, names: Mapping[str, LazyTensor]) -> int:
    lengths = [
        tensor.shape[1] for name, tensor in names.items() if _POSITIONS.fullmatch(name) and len(tensor.shape) == 3
    ]
    return lengths[0] if lengths else _stated(checkpoint) or 32


def _stated(checkpoint: Checkpoint) -> int | None:
    """Returns the number of positions that a folder's config.json states."""
    stated = checkpoint.configs.get("config.json", {}).get("motion_max_seq_length")
    return stated if type(stated) is int else None


def _put_positions(
    checkpoint: Checkpoint, params: Params, config: MotionConfig, places: Mapping[str, LazyTensor]
) -> None:
    """Puts the positions into the parameters: those of the file, or sines and cosines.

    Positions are not learned, and some tools leave zeros in their place: such positions are computed too. Raises
    CheckpointError for positions of blocks that the modules do not have, or of another shape.
    """
    wanted = {
        f"{block}/motion_modules_{i}/transformer_blocks_{j}/pos_encoder{k}": width
        for block, width, count in config.places() for i in range(count) for j in range(config.depth) for k in (1, 2)
    }  # fmt: skip
    problems = [f"{printable(tensor.name)} is unknown" for path, tensor in places.items() if path not in wanted]
    for path, width in wanted.items():
        values = sinusoid(config.positions, width)
        if path in places:
            array, name = np.asarray(places[path].read(), np.float32), printable(places[path].name)
            if array.shape != values.shape:
                problems.append(f"{name} has the shape {list(array.shape)} instead of {list(values.shape)}")
            elif not np.isfinite(array).all():
                problems.append(f"{name} has numbers that are not finite")
            elif array.any():
                values = array
        *modules, leaf = path.split("/")
        node: Any = functools.reduce(lambda node, module: node[module], modules, params)
        node[leaf] = values
    if problems:
        raise checkpoint.error(f"its motion modules have other positions: {listed(problems)}")


def _position_path(name: str) -> str:
    found = _POSITIONS.fullmatch(canonical(name))
    assert found is not None
    return f"{path_of(found[1])}/pos_encoder{found[2]}"


def path_of(name: str) -> str:
    """Returns the path in Flax's tree of a module that files name with dots, "down_blocks_0/motion_modules_1"."""
    return re.sub(r"\.(?=\d)", "_", name).replace(".", "/")
