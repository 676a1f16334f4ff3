"""Training of IP-Adapters: projections that let a UNet, which stays as it is, attend to pictures."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sdjax.checks.arguments import number, whole
from sdjax.config import ConfigError, ModelConfig, VisionConfig
from sdjax.convert.parts.tower import load_vision
from sdjax.loading.trainable.protocol import Addition, lay_over
from sdjax.nn.ip_adapter import IPAdapterConfig, attention_paths
from sdjax.nn.networks import NETWORKS
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.typing import Key, Params

NETWORK, ENCODER = "ip_adapter", "image_encoder"  # their names among the parameters of a run
MOST_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class ImagePromptTraining(Addition):
    """Learns a plain IP-Adapter. Its keys and values start as those that the UNet makes of texts.

    - `encoder`: file or folder of the CLIP image encoder, which stays as it is (`sdjax.convert.load_vision`).
    - `tokens`: how many tokens it makes of a picture; IP-Adapter's have 4.
    - `dropout`: the share of examples whose picture is replaced by zeros, so that guidance works.

    Source: Ye et al. 2023 (arXiv 2308.06721), section 3.2; tencent-ailab/IP-Adapter, tutorial_train.py.
    """

    encoder: str | None = None
    tokens: int = 4
    dropout: float = 0.05
    kind: Literal["image_prompt"] = "image_prompt"

    def __post_init__(self) -> None:
        whole("trainable.tokens", self.tokens, 1, MOST_TOKENS)
        number("trainable.dropout", self.dropout, 0, 1)

    def vision(self) -> tuple[VisionConfig, Params]:
        """Returns the image encoder. Raises ConfigError if none is named, CheckpointError for a file that is none."""
        if self.encoder is None:
            raise ConfigError("an IP-Adapter learns from encoded pictures: name the image encoder by trainable.encoder")
        return _vision(self.encoder)

    def network(self, model: ModelConfig) -> IPAdapterConfig:
        """Returns the description of the adapter of a model."""
        widths = tuple(width for _, width in attention_paths(model.unet))
        return IPAdapterConfig("linear", self.vision()[0].projection, model.unet.context_dim, widths, self.tokens)

    def prepared(self, model: ModelConfig, tokenizer: Tokenizer | None = None) -> "ImagePromptTraining":
        """See Addition."""
        return _ForModel(self.encoder, self.tokens, self.dropout, model=model)

    def init(self, base: Params, key: Key) -> Params:
        """Returns the adapter's parameters. It must be `prepared`."""
        raise AssertionError("prepare it with the model")

    def fixed(self, base: Params) -> Params:
        """Returns the base and the image encoder."""
        return {**base, ENCODER: self.vision()[1]}

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns `frozen` with the adapter beside the UNet."""
        return lay_over(trained, frozen)


@dataclasses.dataclass(frozen=True)
class _ForModel(ImagePromptTraining):
    model: Any = None

    def init(self, base: Params, key: Key) -> Params:
        """Returns the adapter's parameters. Raises ConfigError unless the UNet is the part to train."""
        if set(base) != {"unet"}:
            raise ConfigError('an IP-Adapter is trained beside the UNet alone: set train to ("unet",)')
        made = dict(NETWORKS["ip_adapter"].init(self.network(self.model), key))
        for i, (path, _) in enumerate(attention_paths(self.model.unet)):
            layer: Any = base["unet"]
            for name in path.split("/"):
                assert isinstance(layer, Mapping)
                layer = layer[name]
            # A copy, because the train step gives its arrays away
            made[f"attention_{i}"] = {
                f"to_{one}_ip": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), layer[f"to_{one}"])
                for one in "kv"
            }
        return {NETWORK: made}


@functools.lru_cache(maxsize=1)
def _vision(path: str) -> tuple[VisionConfig, Params]:
    return load_vision(path, dtype="float32")
