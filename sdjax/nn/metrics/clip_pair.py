"""CLIP's two towers as one network, as pictures are compared with texts.

The towers have the names that transformers' CLIPModel has. Source: openai/CLIP, clip/model.py; mlfoundations/open_clip,
src/open_clip/model.py.
"""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from sdjax.config import TextConfig, VisionConfig
from sdjax.nn.clip_vision import VisionEncoder
from sdjax.nn.prior import ProjectedTextEncoder
from sdjax.typing import Embedding, Image, TokenIds


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The two towers. Both embeddings are as wide as the text's tower, as in all released ones."""

    vision: VisionConfig
    text: TextConfig

    def __post_init__(self) -> None:
        if self.vision.projection != self.text.width:
            raise ValueError(f"CLIP's embeddings have one width; got {self.vision.projection} and {self.text.width}")


VIT_L14 = ClipConfig(VisionConfig(), TextConfig())
VIT_L14_336 = ClipConfig(VisionConfig(image_size=336), TextConfig())
VIT_H14 = ClipConfig(
    VisionConfig(width=1280, layers=32, heads=16, projection=1024, activation="gelu"),
    TextConfig(width=1024, layers=24, heads=16, activation="gelu", pad_token_id=0),
)


class ClipPair(nn.Module):
    """Returns the embeddings of pictures and of texts, [b, d] both, float32 and not normalised, and the logits' scale.

    Pixels are as `VisionEncoder` takes them; token ids have start and end. The scale is a logarithm, as stored.
    """

    config: ClipConfig

    @nn.compact
    def __call__(self, pixels: Image, ids: TokenIds) -> tuple[Embedding, Embedding, Float[Array, ""]]:
        image = VisionEncoder(self.config.vision, name="vision")(pixels)
        text, _ = ProjectedTextEncoder(self.config.text, name="text")(ids)
        return image, text, self.param("logit_scale", nn.initializers.zeros, ())
