"""Reads TAESD, the tiny autoencoder, from diffusers' AutoencoderTiny or from the original's two files.

The original numbers layers from 0 in each file, and the decoder's first layer, a limit, has no parameters: `0.weight`
is the encoder's, `1.weight` the decoder's. diffusers writes `encoder.layers.0.weight` and `decoder.layers.0.weight`.
ComfyUI joins the two files under `taesd_encoder.` and `taesd_decoder.`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from sdjax.config import ConfigError, VAEConfig
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.errors import CheckpointError
from sdjax.convert.parts.lone import read_whole
from sdjax.convert.parts.networks import every_leaf
from sdjax.nn.parts import PARTS
from sdjax.typing import Params

HALVES = ("encoder", "decoder")
LEVELS, BLOCKS = 4, 3  # of every released one
_NAME = re.compile(
    r"(?:vae/|first_stage_model\.)?(?:taesd_)?(?:(encoder|decoder)\.)?(layers\.)?(\d{1,3})\.((?:conv\.\d{1,3}\.)?\w+)"
)
_XL = re.compile(r"(?i)taesd[-_ ]?(xl|3)|taef")
WHAT = "a TAESD"


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTAESD:
    """A tiny autoencoder: its description, and the parameters {"encoder", "decoder"} or one of these halves."""

    config: VAEConfig
    params: Params
    notices: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns its facts as lines."""
        return [f"TAESD, {' and '.join(self.params)}; latents of {self.config.latent_channels} channels"]


def load_taesd(source: CheckpointLike, dtype: DTypeLike | None = None) -> LoadedTAESD:
    """Returns the tiny autoencoder of a file or folder, in the names of diffusers, the original or ComfyUI.

    For a file with one half of the original, such as taesd_decoder.pth, the other half is read from the file of the
    corresponding name beside it, if there is one. Raises CheckpointError, naming every tensor that is missing, unknown
    or of another shape, and ValueError for an unknown dtype.
    """
    kind = float_type(dtype)
    config, leaves, notices = taesd_leaves(source, kind)
    return LoadedTAESD(config, read_whole(leaves, kind, "vae"), notices)


def taesd_leaves(
    source: CheckpointLike, dtype: np.dtype | None
) -> tuple[VAEConfig, dict[str, LazyTensor], tuple[str, ...]]:
    """Returns description, parameters by path ("vae/encoder/...") and notices. See `load_taesd`."""
    checkpoint = open_checkpoint(source)
    halves = _halves(checkpoint)
    if halves is None:
        raise checkpoint.error("it holds no TAESD: none of its tensors is named encoder.layers.0.weight or 0.weight")
    notices: list[str] = list(checkpoint.notices)
    if len(halves) == 1 and (other := _other_file(checkpoint, *halves)) is not None:
        beside = open_checkpoint(other)
        more = _halves(beside)
        if more is not None and not halves.keys() & more.keys():
            halves |= more
            notices.append(f"its {' and '.join(more)} is read from {other.name}")
    config = _described(checkpoint, halves)
    shapes = {half: PARTS["vae"].shapes(config)[half] for half in HALVES if half in halves}
    tensors = {name: tensor for half in halves.values() for name, tensor in half.items()}
    return config, every_leaf(checkpoint, tensors, shapes, "vae", WHAT, dtype), tuple(notices)


def holds_taesd(tensors: Mapping[str, ArrayLike | LazyTensor]) -> bool:
    """Returns whether tensors of these names are a TAESD's."""
    return any((found := _NAME.fullmatch(name)) is not None and "conv." in found[4] for name in tensors)


def _halves(checkpoint: Checkpoint) -> dict[str, dict[str, LazyTensor]] | None:
    """Returns the tensors of each half, by diffusers' names; None if there are none. Raises CheckpointError."""
    if not holds_taesd(checkpoint.tensors):
        return None
    alone = "encoder" if "0.weight" in checkpoint.tensors else "decoder"
    halves: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        found = _NAME.fullmatch(name)
        half = alone if found is None or found[1] is None else found[1]
        if found is None:
            own = name
        else:
            number = int(found[3]) - (1 if half == "decoder" and found[2] is None else 0)
            own = f"{half}.layers.{number}.{found[4]}"
        if own in halves.setdefault(half, {}):
            raise checkpoint.error(f"two of its tensors are named {own}")
        halves[half][own] = tensor
    return halves


def _other_file(checkpoint: Checkpoint, half: str) -> pathlib.Path | None:
    """Returns the file with the other half, beside that of a half; None if there is none."""
    if checkpoint.path is None or half not in checkpoint.path.name:
        return None
    other = checkpoint.path.with_name(checkpoint.path.name.replace(half, HALVES[1 - HALVES.index(half)]))
    return other if os.path.isfile(other) else None


def _described(checkpoint: Checkpoint, halves: Mapping[str, Mapping[str, LazyTensor]]) -> VAEConfig:
    """Returns the description that the shapes give. Raises CheckpointError for latents of other models."""
    if checkpoint.path is not None and _XL.search(checkpoint.path.name):
        raise checkpoint.error(
            "its name says that it is for Stable Diffusion XL, 3 or Flux, whose latents are others: name the TAESD of "
            "Stable Diffusion 1 and 2 (madebyollin/taesd)"
        )
    first = {half: halves[half].get(f"{half}.layers.0.weight") for half in halves}
    shape = next((tensor.shape for tensor in first.values() if tensor is not None), ())
    if len(shape) != 4:
        raise checkpoint.error("it does not hold a whole TAESD: the first layer's weight is missing or no convolution")
    decoder = first.get("decoder")
    latents = 4 if decoder is None or len(decoder.shape) != 4 else decoder.shape[1]
    if latents != 4:
        raise checkpoint.error(
            f"its latents have {latents} channels (Stable Diffusion 3's and Flux's have 16), those of Stable Diffusion "
            "1 and 2 have 4: name the TAESD of these (madebyollin/taesd)"
        )
    try:
        return VAEConfig(
            channels=(shape[0],) * LEVELS, num_res_blocks=BLOCKS, scale_factor=1.0, norm_groups=1, kind="tiny"
        )
    except ConfigError as error:
        raise checkpoint.error(str(error)) from error


def both_halves(
    source: CheckpointLike, dtype: np.dtype | None
) -> tuple[VAEConfig, dict[str, LazyTensor], tuple[str, ...]]:
    """Returns a TAESD that can replace an autoencoder. Raises CheckpointError if a half is missing."""
    config, leaves, notices = taesd_leaves(source, dtype)
    missing = [half for half in HALVES if not any(path.startswith(f"vae/{half}/") for path in leaves)]
    if missing:
        raise CheckpointError(
            f"it holds no {missing[0]}, which an autoencoder needs: put the file taesd_{missing[0]} beside it, or name "
            "diffusers' folder or file, which hold both",
            source if isinstance(source, str | os.PathLike) else None,
        )
    return config, leaves, notices
