"""Training of ControlNets: a copy of the UNet's encoder that sees a hint, beside a UNet that stays as it is."""

import dataclasses
from typing import Any, Literal

from sdjax.config import ConfigError, ModelConfig
from sdjax.loading.trainable.protocol import Addition, lay_over
from sdjax.nn.controlnet import copy_encoder, of_unet
from sdjax.nn.networks import NETWORKS
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Key, Params

NETWORK = "controlnet"  # its name among the parameters of a run


@dataclasses.dataclass(frozen=True)
class ControlTraining(Addition):
    """Learns a ControlNet for hints (`data.hints`). Its encoder starts as the UNet's, and its last layers as zero.

    - `pooled`: its residuals are averaged over the picture, so that it sees what is in a hint but not where.

    Source: Zhang et al. 2023 (arXiv 2302.05543), section 3.
    """

    pooled: bool = False
    kind: Literal["controlnet"] = "controlnet"

    def prepared(self, model: ModelConfig, tokenizer: Tokenizer | None = None) -> "ControlTraining":
        """See Addition."""
        return _ForModel(self.pooled, model=model)

    def init(self, base: Params, key: Key) -> Params:
        """Returns the ControlNet's parameters. It must be `prepared`."""
        raise AssertionError("prepare it with the model")

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns `frozen` with the ControlNet beside the UNet."""
        return lay_over(trained, frozen)


@dataclasses.dataclass(frozen=True)
class _ForModel(ControlTraining):
    model: Any = None

    def init(self, base: Params, key: Key) -> Params:
        """Returns the ControlNet's parameters. Raises ConfigError unless the UNet is the part to train."""
        if set(base) != {"unet"}:
            raise ConfigError('a ControlNet is trained beside the UNet alone: set train to ("unet",)')
        net = of_unet(self.model.unet, factor=self.model.vae.factor, pooled=self.pooled)
        return {NETWORK: copy_encoder(net, NETWORKS["controlnet"].init(net, key), base["unet"])}
