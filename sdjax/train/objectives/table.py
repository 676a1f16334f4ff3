"""The objectives of a training by name."""

from sdjax.train.objectives.autoencoder import AutoencoderObjective
from sdjax.train.objectives.diffusion import DiffusionObjective
from sdjax.train.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {"denoising": DiffusionObjective, "autoencoder": AutoencoderObjective}
