"""LPIPS's weights, and a trained discriminator's, from the files that they are published in.

LPIPS is VGG16 as torchvision trained it, and a weight for each channel of five of its layers. CompVis's training
checkpoints of autoencoders (kl-f8's model.ckpt) hold both, and the discriminator.
"""

import os
import re

import jax.numpy as jnp

from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.errors import CheckpointError
from sdjax.convert.parts.networks import network_params
from sdjax.nn.networks import NETWORKS
from sdjax.storage.addresses import remote
from sdjax.typing import Params

NEEDED = (
    "LPIPS needs the weights of VGG16 (torchvision's vgg16-397923af.pth) and its own (weights/v0.1/vgg.pth of the "
    "lpips package, or taming-transformers' vgg.pth): name the files, .pth or .safetensors, in autoencoder.lpips, or "
    "set autoencoder.perceptual_weight to 0"
)
_PLACES = ("", "loss.perceptual_loss.")  # what stands before the names, in files of their own and in checkpoints
_SLICED = re.compile(r"net\.slice\d\.(?=\d)")  # how LPIPS's modules call what is `features.` in torchvision's
_PLAIN = re.compile(r"(lin\d)\.model\.0\.")  # of an LPIPS made without dropout, which is layer 0 else

_VGG, _LINES = r"features\.\d+\.(weight|bias)", r"lin\d\.model\.1\.weight"
_CONSTANTS = r"scaling_layer\.(shift|scale)|lins\.\d\.model\.[01]\.weight"  # `lins` are the weights once more
_CLASSIFIER = r"(classifier|pre_logits|head)\..+"
_AVERAGES = r"main\.\d+\.(running_mean|running_var|num_batches_tracked)"


def load_lpips(*sources: CheckpointLike) -> Params:
    """Returns LPIPS's parameters {"vgg", "lin0", ...}, float32, from one or two files with its two sets of weights.

    They are found by their names, VGG16's `features.0.weight` and so on, LPIPS's `lin0.model.1.weight` and so on, in
    files of their own, in one of a whole LPIPS, and in an autoencoder's training checkpoint. VGG16's classifier is left
    where it is. Raises CheckpointError, naming every missing, unknown and misshapen tensor of all files.
    """
    if not sources:
        raise CheckpointError(NEEDED)
    for path in sources:
        if isinstance(path, str | os.PathLike) and not remote(path) and not os.path.exists(path):
            raise CheckpointError(f"there is no such file; {NEEDED}", path)
    lines = dict(NETWORKS["lpips"].shapes())
    parts = (
        (lines.pop("vgg"), _VGG, f"{_CLASSIFIER}|{_LINES}|{_CONSTANTS}", "VGG16's convolutions"),
        (lines, _LINES, f"{_VGG}|{_CLASSIFIER}|{_CONSTANTS}", "LPIPS's own weights"),
    )
    opened = [open_checkpoint(source) for source in sources]
    idle = [one for one in opened if all(_place(one, own) is None for _, own, _, _ in parts)]
    read, problems = [], [str(one.error("it holds nothing of LPIPS")) for one in idle]
    for shapes, own, others, what in parts:
        holding = [(one, place) for one in opened if (place := _place(one, own)) is not None]
        if not holding:
            problems.append(f"{what} are in none of the files given; {NEEDED}")
        elif len(holding) > 1:
            problems.append(f"{what} are in {len(holding)} of the files given, and are needed once")
        else:
            try:
                read.append(_params(*holding[0], shapes, what, others))
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
    return {"vgg": read[0], **read[1]}


def load_discriminator(source: CheckpointLike) -> Params:
    """Returns a discriminator's parameters, float32, from an autoencoder's training checkpoint or a separate file.

    Its norms' running averages are not taken: they were of use to nobody. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(source)
    place = next((p for p in ("", "loss.discriminator.") if f"{p}main.0.weight" in checkpoint.tensors), None)
    if place is None:
        raise checkpoint.error(
            "it holds no discriminator: none of its tensors is named loss.discriminator.main.0.weight"
        )
    shapes = NETWORKS["discriminator"].shapes()
    return _params(checkpoint, place, shapes, "a PatchGAN discriminator of three layers", _AVERAGES)


def _params(checkpoint: Checkpoint, place: str, shapes: Params, what: str, unused: str) -> Params:
    float32 = jnp.dtype("float32")
    return network_params(checkpoint, shapes, place, what, dtype=float32, canonical=_canonical, unused=unused)


def _canonical(name: str) -> str:
    return _PLAIN.sub(r"\1.model.1.", _SLICED.sub("features.", name))


def _place(checkpoint: Checkpoint, own: str) -> str | None:
    """Returns the prefix of a part of LPIPS in a checkpoint's names; None if the part is missing."""
    tensors = checkpoint.tensors
    for place in _PLACES:
        if any(re.fullmatch(own, _canonical(name[len(place) :])) for name in tensors if name.startswith(place)):
            return place
    return None
