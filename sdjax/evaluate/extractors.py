"""Networks that judge pictures, each as a function from pictures and captions to features."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

Picture = UInt8[np.ndarray, "h w 3"]


class Extractor(Protocol):
    """Returns the features of pictures of any sizes, by name, float32, one row a picture. Every picture has a caption.

    A row depends on its picture and caption alone. Raises ValueError if there are more or fewer captions.
    """

    @property
    def name(self) -> str:
        """The name in EXTRACTORS."""

    def __call__(self, pictures: Sequence[Picture], captions: Sequence[str]) -> Mapping[str, Float[np.ndarray, "n d"]]:
        """Returns {"pool": [n, 2048], "logits": [n, 1008]} and so on."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of extractor: its title, and the files that it needs, by the names of the flags that give them."""

    title: str
    files: tuple[str, ...]


EXTRACTORS: Mapping[str, Kind] = {
    "inception": Kind("FID's Inception v3, with TensorFlow 1's resizing", ("inception",)),
    "inception-clean": Kind("FID's Inception v3, with clean-fid's resizing", ("inception",)),
    "dinov2": Kind("DINOv2", ("dinov2",)),
    "clip-l14": Kind("OpenAI's CLIP ViT-L/14", ("clip",)),
    "clip-l14-336": Kind("OpenAI's CLIP ViT-L/14@336px", ("clip336",)),
    "openclip-h14": Kind("OpenCLIP's ViT-H/14", ("openclip",)),
    "aesthetic": Kind("LAION's aesthetic predictor on CLIP ViT-L/14", ("aesthetic", "clip")),
    "pickscore": Kind("PickScore", ("pickscore",)),
}
"""By name. `load_extractor` makes one from its files; the command line has a flag for each file (--inception FILE)."""
