"""FID's Inception v3 from pytorch-fid's file."""

from sdjax.convert.checkpoint import CheckpointLike, open_checkpoint
from sdjax.convert.parts.networks import every_tensor, kind_given
from sdjax.nn.metrics.inception import InceptionConfig
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

_STEM, _UNUSED = "Conv2d_1a_3x3.conv.weight", r".*\.num_batches_tracked"
_WIDTH = 32  # of the stem


def load_inception(source: CheckpointLike) -> tuple[InceptionConfig, Params]:
    """Returns FID's Inception v3, description and float32 parameters.

    The file is pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or the same tensors as .safetensors. torchvision's
    has other weights, and an auxiliary classifier: it is refused. Raises CheckpointError, naming every missing, unknown
    and misshapen tensor.
    """
    checkpoint = open_checkpoint(source)
    shapes = checkpoint.shapes
    if _STEM not in shapes:
        raise checkpoint.error(
            f"it was given for FID's Inception v3{kind_given(checkpoint)}; expected pytorch-fid's "
            "pt_inception-2015-12-05-6726825d.pth"
        )
    width, classes = (shapes.get(name, ())[:1] for name in (_STEM, "fc.weight"))
    if not classes or not width or width[0] < 2 or _WIDTH % width[0]:
        raise checkpoint.error(f"its {_STEM} and fc.weight are not those of FID's Inception v3")
    config = InceptionConfig(classes[0], _WIDTH // width[0])
    if "AuxLogits.fc.weight" in shapes or (config.divisor == 1 and config.num_classes != 1008):
        raise checkpoint.error(
            "it is Inception v3 of torchvision, with which FID is another number; expected pytorch-fid's "
            "pt_inception-2015-12-05-6726825d.pth"
        )
    tree = every_tensor(checkpoint, NETWORKS["inception"].shapes(config), str, "FID's Inception v3", unused=_UNUSED)
    return config, tree
