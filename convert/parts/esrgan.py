"""Reads upscalers of the ESRGAN family from every layout of their files.

RRDBNet has three: the oldest numbers the layers (`model.1.sub.0.RDB1.conv1.0.weight`), the newer ESRGAN names them
(`RRDB_trunk.0.RDB1.conv1.weight`), and so does Real-ESRGAN (`body.0.rdb1.conv1.weight`). The compact network's are
numbered (`body.0.weight`). Nothing in RRDBNet's files tells three times from two, so their names decide (`3x_...`,
`..._x3`). All may stand below `params_ema.` or `params.`; the average is taken if both are there. The
shapes say what a file holds.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from numpy.typing import DTypeLike

from sdjax.config import ConfigError
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.other_kinds import kind_of_tensors
from sdjax.convert.parts.lone import read_whole
from sdjax.convert.parts.networks import every_leaf
from sdjax.nn.esrgan import CompactConfig, RRDBConfig
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

MOST_BLOCKS, WIDEST = 100, 1024  # of a network that is read
_PREFIXES = ("params_ema.", "params.", "state_dict.", "module.", "generator.", "")
_UNSHUFFLES = {3: 1, 12: 2, 48: 4}  # input channels -> side of the squares
_THREE = re.compile(r"(?i)(?<![a-z0-9])(3x|x3)(?![0-9])")  # in the name of a file that enlarges three times
_NEW = {"trunk_conv": "conv_body", "HRconv": "conv_hr", "upconv": "conv_up"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedESRGAN:
    """An upscaler: its description, parameters, and the name of its file without the ending."""

    config: RRDBConfig | CompactConfig
    params: Params
    name: str = "upscaler"
    notices: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        c = self.config
        if isinstance(c, CompactConfig):
            return [f"Real-ESRGAN's compact network, {c.num_convs} convolutions of {c.channels} channels, x{c.times}"]
        squares = f", takes squares of {c.unshuffle} pixels" if c.unshuffle > 1 else ""
        return [f"RRDBNet of {c.num_blocks} blocks, {c.channels} channels, x{c.times}{squares}"]


def load_esrgan(source: CheckpointLike, dtype: DTypeLike | None = None) -> LoadedESRGAN:
    """Returns the upscaler of a file (.pth or .safetensors), which is read as data and never executed.

    Raises CheckpointError, naming every tensor that is missing, unknown or of another shape, and ValueError for an
    unknown dtype.
    """
    kind, checkpoint = float_type(dtype), open_checkpoint(source)
    tensors = _tensors(checkpoint)
    compact = "body.0.weight" in tensors
    try:
        config = (_compact if compact else _rrdb)(checkpoint, {name: one.shape for name, one in tensors.items()})
    except ConfigError as error:
        raise checkpoint.error(f"it is no upscaler that is known: {error}") from error
    entry = "compact" if compact else "rrdb"
    leaves = every_leaf(checkpoint, tensors, NETWORKS[entry].shapes(config), entry, "an upscaler", kind)
    return LoadedESRGAN(config, read_whole(leaves, kind, entry), _name(checkpoint), checkpoint.notices)


def _name(checkpoint: Checkpoint) -> str:
    return "upscaler" if checkpoint.path is None else checkpoint.path.stem


def _tensors(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """Returns the network's tensors by Real-ESRGAN's names. Raises CheckpointError if there are none."""
    for prefix in _PREFIXES:
        own = {name.removeprefix(prefix): one for name, one in checkpoint.tensors.items() if name.startswith(prefix)}
        for first, canonical in _LAYOUTS.items():
            if first in own:
                rename = canonical(own)
                return {rename(name): tensor for name, tensor in own.items()}
    kind = kind_of_tensors(checkpoint.shapes)
    known = "" if kind is None else f" (it is {kind.what})"
    raise checkpoint.error(
        f"it holds no upscaler of the ESRGAN family{known}: name a file such as RealESRGAN_x4plus.pth"
    )


def _by_number(own: Mapping[str, LazyTensor]) -> Callable[[str], str]:
    """Returns the function from the oldest names. The upscaling convolutions are those before the last two."""
    numbers = {int(found[1]) for name in own if (found := re.fullmatch(r"model\.(\d{1,3})\.weight", name))}
    after = sorted(numbers - {0})
    named = {0: "conv_first"} | {number: f"conv_up{i + 1}" for i, number in enumerate(after[:-2])}
    if len(after) >= 2:
        named |= {after[-2]: "conv_hr", after[-1]: "conv_last"}
    blocks = {int(found[1]) for name in own if (found := re.match(r"model\.1\.sub\.(\d{1,3})\.RDB", name))}
    trunk = f"model.1.sub.{len(blocks)}."

    def canonical(name: str) -> str:
        if name.startswith(trunk):
            return f"conv_body.{name.removeprefix(trunk)}"
        if found := re.fullmatch(r"model\.(\d{1,3})\.(weight|bias)", name):
            return f"{named.get(int(found[1]), name)}.{found[2]}"
        name = re.sub(r"^model\.1\.sub\.", "body.", name)
        return re.sub(
            r"\.RDB(\d)\.(conv\d)\.0\.", r".rdb\1.\2.", re.sub(r"\.RDB(\d)\.conv1x1\.", r".rdb\1.conv1x1.", name)
        )

    return canonical


def _by_name(own: Mapping[str, LazyTensor]) -> Callable[[str], str]:
    """Returns the function from the newer names of ESRGAN."""

    def canonical(name: str) -> str:
        name = re.sub(r"^RRDB_trunk\.(\d{1,3})\.RDB(\d)\.", r"body.\1.rdb\2.", name)
        return re.sub(r"^(trunk_conv|HRconv|upconv)", lambda found: _NEW[found[1]], name)

    return canonical


_LAYOUTS: Mapping[str, Callable[[Mapping[str, LazyTensor]], Callable[[str], str]]] = {  # by the first block's tensor
    "model.1.sub.0.RDB1.conv1.0.weight": _by_number,
    "RRDB_trunk.0.RDB1.conv1.weight": _by_name,
    "body.0.rdb1.conv1.weight": lambda own: str,
    "body.0.weight": lambda own: str,
}


def _rrdb(checkpoint: Checkpoint, shapes: Shapes) -> RRDBConfig:
    """Returns the description that the shapes give. Raises CheckpointError for a network of another kind."""
    first, grown = shapes.get("conv_first.weight", ()), shapes["body.0.rdb1.conv1.weight"]
    last = shapes.get("conv_last.weight", ())
    if len(first) != 4 or len(grown) != 4 or max(first[0], grown[0]) > WIDEST:
        raise checkpoint.error("it is no upscaler that is known: its first layers are no convolutions of usual size")
    if first[1] not in _UNSHUFFLES or (len(last) == 4 and last[0] != 3):
        raise checkpoint.error(
            f"its upscaler takes {first[1]} channels; those for colour pictures take 3, or 12 or 48 (squares of pixels)"
        )
    numbers = {int(found[1]) for name in shapes if (found := re.match(r"body\.(\d{1,3})\.", name))}
    ups = {int(found[1]) for name in shapes if (found := re.match(r"conv_up(\d)\.", name))}
    if max(numbers) >= MOST_BLOCKS:
        raise checkpoint.error(f"it has a block of number {max(numbers)}; upscalers have up to {MOST_BLOCKS}")
    doublings = max(ups, default=0)
    three = doublings == 1 and first[1] == 3 and _THREE.search(_name(checkpoint)) is not None
    return RRDBConfig(
        channels=first[0], growth=grown[0], num_blocks=max(numbers) + 1, doublings=doublings, factor=3 if three else 2,
        unshuffle=_UNSHUFFLES[first[1]], shortcuts="body.0.rdb1.conv1x1.weight" in shapes,
    )  # fmt: skip


def _compact(checkpoint: Checkpoint, shapes: Shapes) -> CompactConfig:
    """Returns the description that the shapes give. Raises CheckpointError for a network of another kind."""
    first = shapes["body.0.weight"]
    numbers = {int(found[1]) for name in shapes if (found := re.fullmatch(r"body\.(\d{1,4})\.weight", name))}
    last = max(numbers)
    colours = shapes[f"body.{last}.weight"]
    if len(first) != 4 or first[1] != 3 or first[0] > WIDEST or len(colours) != 4 or last > 4 * MOST_BLOCKS:
        raise checkpoint.error("it is no upscaler that is known: its convolutions do not take and make colour pictures")
    times = round((colours[0] / 3) ** 0.5)
    if 3 * times**2 != colours[0]:
        raise checkpoint.error(f"its last layer has {colours[0]} channels, which are no squares of three colours")
    if last % 2 or last < 2:
        raise checkpoint.error(
            f"its last layer is body.{last}; in the compact network with PReLU it has an even number"
        )
    return CompactConfig(channels=first[0], num_convs=last // 2 - 1, times=times)
