"""The training objectives by name."""

from sdjax.train.objectives.autoencoder import AutoencoderObjective
from sdjax.train.objectives.consistency import ConsistencyObjective
from sdjax.train.objectives.diffusion import DiffusionObjective

# Each an Objective
OBJECTIVES: dict[str, type] = {
    "denoising": DiffusionObjective,
    "consistency": ConsistencyObjective,
    "autoencoder": AutoencoderObjective,
}
