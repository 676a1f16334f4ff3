"""LAION's aesthetic predictor from its file."""

from sdjax.convert.checkpoint import CheckpointLike, open_checkpoint
from sdjax.convert.parts.networks import every_tensor, kind_given
from sdjax.nn.metrics.aesthetic import AestheticConfig
from sdjax.nn.networks import NETWORKS
from sdjax.typing import Params

_FIRST = "layers.0.weight"


def load_aesthetic(source: CheckpointLike) -> tuple[AestheticConfig, Params]:
    """Returns LAION's improved aesthetic predictor, description and float32 parameters.

    The file is sac+logos+ava1-l14-linearMSE.pth or ava+logos-l14-linearMSE.pth, or the same tensors as .safetensors.
    Raises CheckpointError, naming every missing, unknown and misshapen tensor.
    """
    checkpoint = open_checkpoint(source)
    first = checkpoint.shapes.get(_FIRST, ())
    if len(first) != 2 or 0 in first:
        raise checkpoint.error(
            f"it was given for the aesthetic predictor{kind_given(checkpoint)}; expected "
            "sac+logos+ava1-l14-linearMSE.pth of improved-aesthetic-predictor"
        )
    config = AestheticConfig(first[1])
    shapes = NETWORKS["aesthetic"].shapes(config)
    return config, every_tensor(checkpoint, shapes, str, "LAION's aesthetic predictor")
