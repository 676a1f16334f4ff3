"""Rules that change the network's layers: PAG, SEG, SAG, FreeU and NAG."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, PyTree

from sdjax.adapters.freeu import FreeU as FreeUPatch
from sdjax.adapters.freeu import FreeUNumbers
from sdjax.adapters.nag import NAG as NAGPatch
from sdjax.adapters.nag import NAGArrays
from sdjax.adapters.patch import Patch
from sdjax.adapters.perturbed import (
    MIDDLE,
    AttentionMap,
    PerturbedAttention,
    blurred,
    chosen,
    diffusers_name,
    mask_of,
    self_attentions,
)
from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.guidance import Answers, Call, Rule, from_x0
from sdjax.diffusion.rules.options import choice, layers, option
from sdjax.samplers.rows import Numbers, per_image
from sdjax.samplers.rule import Memory

LAYERS = "self-attentions, by parts of their names in diffusers"


def check_layers(chosen_layers: str, config: UNetConfig) -> None:
    """Raises ValueError unless every pattern is found in the name of a self-attention of this UNet."""
    known = self_attentions(config)
    for one in chosen_layers.split(","):
        if not any(chosen(one, path) for path in known):
            names = sorted({diffusers_name(path).split(".transformer_blocks")[0] for path in known})
            raise ValueError(f"this model has no self-attention {one}; it has {', '.join(names) or 'none'}")


class Perturbing(Rule):
    """The base of rules with a pass in which some self-attentions are perturbed. `branch` is the name of this pass."""

    applies: ClassVar = "on"
    branch: ClassVar[str]
    layers: str

    @property
    def branches(self) -> tuple[str, ...]:
        """The perturbed branch."""
        return (self.branch,)

    def of_patch(self) -> Numbers | None:
        """Returns the patch's numbers."""
        return None

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if the UNet does not have the layers."""
        check_layers(self.layers, config)

    def patches(
        self, branches: Sequence[str], aside: Mapping[str, Conditioning], on: Bool[Array, "b"]
    ) -> Sequence[tuple[Patch, PyTree]]:
        """Returns the patch of the perturbed branch."""
        if self.branch not in branches:
            return ()
        return [(PerturbedAttention(self.layers, len(branches), branches.index(self.branch)), self.of_patch())]


@struct.dataclass
class PAG(Perturbing):
    """Perturbed-attention guidance: away from a pass in which some self-attentions are switched off. Works at scale 1.

    Adds s (conditional - perturbed); s is `strength` less `adaptive` for each timestep below 1000, at least 0. In the
    perturbed pass every token of the chosen layers attends to itself alone.

    Source: Ahn et al. 2024 (arXiv 2403.17377), eq. 15; diffusers' StableDiffusionPAGPipeline.
    """

    strength: Numbers | float = option(3.0, "weight of the difference")
    adaptive: Numbers | float = option(0.0, "how much the weight falls with each timestep", 0)
    layers: str = layers("mid", LAYERS)
    branch: ClassVar = "perturbed"

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the difference added."""
        weight = jnp.asarray(self.strength) - jnp.asarray(self.adaptive) * (1000 - jnp.asarray(call.row.timestep))
        weight = jnp.where(jnp.asarray(self.adaptive) > 0, jnp.maximum(weight, 0), jnp.asarray(self.strength))
        update = answers.conditional - answers.outputs["perturbed"]
        return answers._replace(guided=answers.guided + per_image(weight, update) * update), memory


@struct.dataclass
class SEG(Perturbing):
    """Smoothed energy guidance: away from a pass in which some self-attentions have blurred queries. Works at scale 1.

    Adds strength (conditional - perturbed). Queries are blurred over the map by a Gaussian.

    Source: Hong 2024 (arXiv 2408.00760), eq. 11 and algorithm 1.
    """

    strength: Numbers | float = option(3.0, "weight of the difference")
    blur: Numbers | float = option(9999.0, "standard deviation in places of the layer's map; from 9999: the mean", 0)
    layers: str = layers("mid", LAYERS)
    branch: ClassVar = "smoothed"

    def of_patch(self) -> Numbers:
        """Returns the standard deviation of the blur."""
        return jnp.asarray(self.blur)

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the difference added."""
        update = answers.conditional - answers.outputs["smoothed"]
        return answers._replace(guided=answers.guided + per_image(self.strength, update) * update), memory


@struct.dataclass
class SAG(Rule):
    """Self-attention guidance: away from the answer for an x that is blurred where the network looks. Works at scale 1.

    The unconditional answer (at scale 1 the conditional one) is blurred where the middle block's self-attention is
    above average, gets its noise back, and goes through the network again. Adds strength (answer - answer again).
    ComfyUI's node is blur=2 and space=epsilon, with strength 0.5.

    Source: Hong et al. 2022 (arXiv 2210.00939), eq. 17 and algorithm 2; diffusers' StableDiffusionSAGPipeline.
    """

    strength: Numbers | float = option(0.75, "weight of the difference")
    blur: Numbers | float = option(1.0, "standard deviation of the blur, in places of the latent", 0)
    space: str = choice("output", "where the difference is taken", ("output", "epsilon"))
    applies: ClassVar = "on"

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if the UNet has no self-attention in the middle."""
        if not any(MIDDLE.startswith(path) for path in self_attentions(config)):
            raise ValueError("sag needs a model with self-attention in its middle block")

    def patches(
        self, branches: Sequence[str], aside: Mapping[str, Conditioning], on: Bool[Array, "b"]
    ) -> Sequence[tuple[Patch, PyTree]]:
        """Returns the patch that reports the attention of the first branch."""
        return [(AttentionMap(len(branches), 0), None)]

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the difference added."""
        assert call.again is not None
        first = next(iter(answers.outputs))
        sharp = answers.outputs[first]
        x0, noise = call.x0(sharp), call.seen(sharp, "epsilon")
        mask = mask_of(call.reports["attention"], *x0.shape[1:3])
        degraded = jnp.where(mask > 0, blurred(x0, jnp.asarray(self.blur), half=4), x0)
        x = degraded + per_image(call.row.sigma, x0) * noise
        space = call.prediction if self.space == "output" else self.space
        update = call.seen(sharp, space) - from_x0(call.again(first, x), x, call.row.sigma, space)
        guided = call.seen(answers.guided, space) + per_image(self.strength, update) * update
        return answers._replace(guided=call.output(guided, space)), memory


@struct.dataclass
class FreeU(Rule):
    """FreeU: stronger features and weaker low frequencies of the skips in the UNet's first up blocks, in all passes.

    `blocks` "diffusers": b1 and s1 for up block 0, b2 and s2 for 1. "comfyui" (and the original): b1 and s1 where
    features have 4 times the channels of the finest level, b2 and s2 where they have 2 times as many. Other tools use
    b1 1.5, b2 1.6, s1 0.9, s2 0.2 for Stable Diffusion 1.5 and b1 1.4 for 2.1.

    Source: Si et al. 2023 (arXiv 2309.11497), section 3.2; ComfyUI's FreeU and FreeU_V2.
    """

    b1: Numbers | float = option(1.5, "factor of the features in the first blocks")
    b2: Numbers | float = option(1.6, "factor of the features in the next blocks")
    s1: Numbers | float = option(0.9, "factor of the skips' low frequencies in the first blocks")
    s2: Numbers | float = option(0.2, "factor of the skips' low frequencies in the next blocks")
    version: str = choice("1", "2: features are amplified where their mean over the channels is large", ("1", "2"))
    blocks: str = choice("diffusers", "which blocks", ("diffusers", "comfyui"))
    applies: ClassVar = "always"

    def patches(
        self, branches: Sequence[str], aside: Mapping[str, Conditioning], on: Bool[Array, "b"]
    ) -> Sequence[tuple[Patch, PyTree]]:
        """Returns the patch of all branches."""
        each = (jnp.repeat(jnp.asarray(number), len(branches)) for number in (self.b1, self.b2, self.s1, self.s2))
        return [
            (
                FreeUPatch(2 if self.version == "2" else 1, "comfyui" if self.blocks == "comfyui" else "diffusers"),
                FreeUNumbers(*each),
            )
        ]


@struct.dataclass
class NAG(Rule):
    """Normalised attention guidance: a negative prompt without a second pass, at scale 1 too, as few-step models need.

    In the cross-attentions of the conditional pass, results move away from those for the negative prompt:
    Z = scale Z+ - (scale - 1) Z-, with an L1 norm of at most tau |Z+|, mixed with Z+ by alpha.

    Source: Chen et al. 2025 (arXiv 2505.21179), eq. 7 to 10.
    """

    strength: Numbers | float = option(5.0, "how far away from the negative prompt; 1: not at all", 1)
    tau: Numbers | float = option(2.5, "largest growth of the norm", 0)
    alpha: Numbers | float = option(0.5, "share of the guided result", 0, 1)
    applies: ClassVar = "on"

    @property
    def aside(self) -> tuple[str, ...]:
        """The negative prompt's conditioning."""
        return ("unconditional",)

    def patches(
        self, branches: Sequence[str], aside: Mapping[str, Conditioning], on: Bool[Array, "b"]
    ) -> Sequence[tuple[Patch, PyTree]]:
        """Returns the patch of the conditional branch."""
        if "conditional" not in branches:
            return ()
        told = aside["unconditional"]
        assert told.context is not None
        strength = jnp.where(on, jnp.asarray(self.strength), 1)
        numbers = (strength, jnp.asarray(self.tau), jnp.asarray(self.alpha))
        own = NAGArrays(*numbers, told.context, told.context_length)
        return [(NAGPatch(len(branches), branches.index("conditional")), own)]
