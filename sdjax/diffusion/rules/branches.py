"""Rules with further branches of the network: several prompts (AND), a given picture (edit), a weaker model."""

from typing import ClassVar

import jax.numpy as jnp
from flax import struct

from sdjax.config import UNetConfig
from sdjax.diffusion.guidance import WEAK, Answers, Call, Rule
from sdjax.diffusion.rules.options import option
from sdjax.samplers.rows import Numbers, per_image
from sdjax.samplers.rule import Memory


@struct.dataclass
class And(Rule):
    """Several prompts with weights: the update is the sum of weight (conditional - unconditional) over the prompts.

    `weights` are [k] for one picture and [b, k] for a batch; `count` is k. The first prompt's branch is "conditional",
    the others' are "conditional 2" to "conditional k". Pictures with fewer prompts have weights of 0. It applies at
    scale 1 too.

    Source: Liu et al. 2022 (arXiv 2206.01714), eq. 11; A1111's combine_denoised (modules/sd_samplers_cfg_denoiser.py).
    """

    weights: Numbers
    count: int = struct.field(pytree_node=False)
    needs_unconditional: ClassVar[bool] = True
    applies: ClassVar = "always"

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of the further prompts."""
        return tuple(f"conditional {i}" for i in range(2, self.count + 1))

    def before(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the weighted target."""
        each = [answers.conditional, *(answers.outputs[name] for name in self.branches)]
        weights = jnp.asarray(self.weights)
        target = answers.origin
        for i, answer in enumerate(each):
            target = target + per_image(weights[:, i], answer) * (answer - answers.origin)
        return answers._replace(target=target), memory


@struct.dataclass
class Edit(Rule):
    """Two scales, for models that are given a picture: one for the prompt and one for the picture.

    unconditional + scale (conditional - unconditional) + (strength - 1) (unconditional - nothing). The unconditional
    pass is given the picture; `nothing` is given neither picture nor prompt.

    Source: Brooks et al. 2022 (arXiv 2211.09800), eq. 3; A1111's combine_denoised_for_edit_model.
    """

    strength: Numbers | float = option(1.5, "image guidance scale: how much the result keeps to the picture")
    needs_unconditional: ClassVar[bool] = True
    applies: ClassVar = "on"

    @property
    def branches(self) -> tuple[str, ...]:
        """The branch without prompt and picture."""
        return ("nothing",)

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if the UNet is not given a picture."""
        if config.in_channels <= config.out_channels:
            raise ValueError("edit needs a model that is given a picture: for inpainting, depth or upscaling")

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the picture's part added."""
        update = answers.unconditional - answers.outputs["nothing"]
        weight = per_image(jnp.asarray(self.strength) - 1, update)
        return answers._replace(guided=answers.guided + weight * update), memory


@struct.dataclass
class Autoguidance(Rule):
    """Autoguidance: away from the answer of a weaker model for the same prompt. Works at scale 1.

    Adds (strength - 1) (conditional - weak) in x0, which at scale 1 is weak + strength (conditional - weak). The weaker
    model is a smaller or less trained one with the same latents and contexts: `pipe.guided_by(weak)`.

    Source: Karras et al. 2024 (arXiv 2406.02507), eq. 5.
    """

    strength: Numbers | float = option(2.0, "how far away from the weaker model; 1: not at all")
    needs_weak: ClassVar[bool] = True
    applies: ClassVar = "on"

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the difference added."""
        assert call.again is not None
        update = call.x0(answers.conditional) - call.again(WEAK, call.x)
        guided = call.x0(answers.guided) + per_image(jnp.asarray(self.strength) - 1, update) * update
        return answers._replace(guided=call.output(guided, "x0")), memory
