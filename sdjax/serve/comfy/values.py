"""What the links of a graph carry: models, text encoders, autoencoders, conditionings, latents."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from sdjax.adapters.table import Setting
from sdjax.diffusion.guidance import Rule
from sdjax.pipeline.model import Pipeline
from sdjax.samplers.tools import Recipe
from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.hypernetworks import HypernetworkUse

Images: TypeAlias = Float[np.ndarray, "b h w 3"]  # in [0, 1]
Masks: TypeAlias = Float[np.ndarray, "b h w"]  # in [0, 1]; 1 is what is changed
Sigmas: TypeAlias = Float[np.ndarray, "n"]  # falling


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A MODEL: the UNet of a pipeline and its noise schedule, and what nodes add to it.

    `rules` change guidance, in order; `empty` is the conditioning of their "empty" branch.
    `zero_terminal_snr`: the schedule is rescaled so that it ends without signal.
    """

    pipe: Pipeline
    adapters: tuple[AdapterUse, ...] = ()
    hypernetworks: tuple[HypernetworkUse, ...] = ()
    rules: tuple[Rule, ...] = ()
    patches: tuple[Setting, ...] = ()
    zero_terminal_snr: bool = False
    empty: "Conditioning | None" = None


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP: the text encoder of a pipeline, adapters on it, and the block that is used (ComfyUI's counting)."""

    pipe: Pipeline
    adapters: tuple[AdapterUse, ...] = ()
    layer: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Vae:
    """A VAE: the autoencoder of a pipeline."""

    of: Pipeline


class Area(NamedTuple):
    """A rectangle: (height, width, top, left), in entries of the latent, or in shares of it."""

    height: float
    width: float
    top: float
    left: float
    in_shares: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet or T2I-Adapter by its file, with its hint, [b, h, w, 3] in [0, 1].

    `start` and `end` are shares of the schedule. `both`: it is applied to a negative conditioning without controls too.
    """

    network: str
    hint: Images
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    both: bool = False


class ImageNote(NamedTuple):
    """An image embedding for unCLIP models: [1, d], its strength, and the level of noise from 0 to 1."""

    embedding: np.ndarray
    strength: float
    noise: float


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One entry of a CONDITIONING. `start` and `end` are shares of the schedule between which it works.

    `mask` is in [0, 1], of any size. `bounds`: the network sees only the rectangle around the mask. `concat` are the
    latent and the mask of a model for inpainting.
    """

    context: Float[np.ndarray, "1 n d"]
    area: Area | None = None
    strength: float = 1.0
    mask: Masks | None = None
    mask_strength: float = 1.0
    bounds: bool = False
    start: float = 0.0
    end: float = 1.0
    controls: tuple[Control, ...] = ()
    concat: tuple[np.ndarray, Masks] | None = None
    images: tuple[ImageNote, ...] = ()


Conditioning: TypeAlias = tuple[Entry, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Latent:
    """A LATENT: [b, h, w, c], scaled as the network sees it. `mask` is the noise mask, in the picture's size.

    `numbers`: which pictures of a larger batch these are, for their noise.
    """

    samples: Float[np.ndarray, "b h w c"]
    mask: Masks | None = None
    numbers: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Noise:
    """A NOISE: that of a seed; None is no noise."""

    seed: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class SamplerChoice:
    """A SAMPLER: a name of ComfyUI's, with other fields of our sampler."""

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def recipe(self, schedule: str = "normal") -> Recipe:
        """Returns how ComfyUI runs it."""
        from sdjax.samplers.tools import recipe

        return recipe("comfyui", self.name, schedule, settings=self.settings)


@dataclasses.dataclass(frozen=True, eq=False)
class Guider:
    """A GUIDER: a model with conditionings and the scale of guidance."""

    model: Model
    positive: Conditioning
    negative: Conditioning | None = None
    scale: float = 1.0
