"""Rules that change the guided answer's size and frequencies, so that large scales do not burn out.

All sums are over one picture, also where another tool takes them over the whole batch.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from sdjax.diffusion.guidance import Answers, Call, Rule, extrapolated, rescaled
from sdjax.diffusion.rules.options import choice, option
from sdjax.diffusion.rules.projections import SPACE, SPACES
from sdjax.diffusion.rules.steps import CURVES, on_curve, share_of_steps
from sdjax.samplers.rows import Numbers, per_image
from sdjax.samplers.rule import Memory, Noisy

PLANE = (1, 2)  # height and width of [b, h, w, c]


@struct.dataclass
class Rescale(Rule):
    """Moves the guided answer's standard deviation back to the conditional one's, by a share.

    `guidance_rescale` does the same to the network's output, after all rules. ComfyUI's RescaleCFG is space=v.

    Source: Lin et al. 2023 (arXiv 2305.08891), eq. 15 and 16; ComfyUI's RescaleCFG.
    """

    share: Numbers | float = option(0.7, "share of the result that is rescaled", 0, 1)
    space: str = choice("v", SPACE, SPACES)

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the rescaled one."""
        guided, conditional = (call.seen(output, self.space) for output in (answers.guided, answers.conditional))
        guided = call.output(rescaled(guided, conditional, self.share), self.space)
        return answers._replace(guided=guided), memory


@struct.dataclass
class DynamicThresholding(Rule):
    """Dynamic thresholding: guides with the large scale, then squeezes the values to the range of a smaller one.

    Each scale may follow a curve over the steps. "AD" compares the largest deviation at the smaller scale with the
    `percentile` of the deviations at the large one, "STD" compares standard deviations. `clock` says how far the run
    is: "steps" (A1111's extension) or "timesteps" (ComfyUI's node).

    Source: mcmonkey4eva/sd-dynamic-thresholding, dynthres_core.py; after Imagen (arXiv 2205.11487), section 2.3.
    """

    mimic_scale: Numbers | float = option(7.0, "the smaller scale, whose range of values is kept")
    percentile: Numbers | float = option(1.0, "share of the values that stay below the limit", 0, 1)
    mimic_curve: str = choice("Constant", "how mimic_scale changes over the steps", tuple(CURVES))
    mimic_lowest: Numbers | float = option(0.0, "the smallest mimic_scale of the curve")
    curve: str = choice("Constant", "how the guidance scale changes over the steps", tuple(CURVES))
    lowest: Numbers | float = option(0.0, "the smallest guidance scale of the curve")
    power: Numbers | float = option(1.0, "exponent or number of repetitions of the curves", 0)
    separate: str = choice("channels", "channels one by one, or all together", ("channels", "no"))
    start: str = choice("MEAN", "from where values are squeezed", ("MEAN", "ZERO"))
    measure: str = choice("AD", "what is compared", ("AD", "STD"))
    mix: Numbers | float = option(1.0, "share of the result; the rest is plain guidance", 0, 1)
    clock: str = choice("steps", "how the progress of the run is measured", ("steps", "timesteps"))

    @property
    def counts_steps(self) -> bool:
        """Whether a scale follows a curve over the steps."""
        return self.clock == "steps" and (self.curve, self.mimic_curve) != ("Constant", "Constant")

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the squeezed one in place of the guided one."""
        ends = answers._replace(target=call.x0(answers.target), origin=call.x0(answers.origin))
        share, power = share_of_steps(call), jnp.asarray(self.power)
        if self.clock == "timesteps":
            share = jnp.broadcast_to((999 - jnp.asarray(call.row.timestep)) / 998, share.shape)
        mimic = on_curve(jnp.asarray(self.mimic_scale), jnp.asarray(self.mimic_lowest), self.mimic_curve, share, power)
        scale = on_curve(answers.scale, jnp.asarray(self.lowest), self.curve, share, power)
        small, large = (extrapolated(ends._replace(scale=each)) for each in (mimic, scale))
        mix = per_image(self.mix, large)
        guided = mix * self._squeezed(small, large) + (1 - mix) * large
        return answers._replace(guided=call.output(guided, "x0")), memory

    def _squeezed(self, small: Noisy, large: Noisy) -> Noisy:
        """Returns the large scale's values in the range of the small scale's."""
        mean = large.mean(PLANE, keepdims=True)
        deviation, least = large - mean, small - small.mean(PLANE, keepdims=True)
        axes = PLANE if self.separate == "channels" else (*PLANE, 3)
        if self.measure == "STD":
            limit = jnp.std(deviation, axes, ddof=1, keepdims=True)
            goal = jnp.std(least, axes, ddof=1, keepdims=True)
        else:
            limit = jax.vmap(lambda a, q: jnp.quantile(a, q, tuple(i - 1 for i in axes), keepdims=True))(
                abs(deviation), jnp.asarray(self.percentile)
            )
            goal = abs(least).max(axes, keepdims=True)
        if self.start == "ZERO":
            return large * (goal / limit)
        if self.measure == "AD":
            limit = jnp.maximum(limit, goal)
            deviation = jnp.clip(deviation, -limit, limit)
        return mean + deviation / limit * goal


@struct.dataclass
class Mahiro(Rule):
    """Mahiro: mixes the guided answer with scale * conditional, by how alike guided and unconditional answers are.

    The likeness is the mean over the pixels of the cosine between the channels' signed square roots, in x0.

    Source: ComfyUI's Mahiro (comfy_extras/nodes_mahiro.py), but for each picture alone.
    """

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the mixture."""
        guided, target, origin = map(call.x0, (answers.guided, answers.target, answers.origin))
        scale = per_image(answers.scale, guided)
        leap = target * scale
        likeness = 2 * (1 + cosine(signed_root(origin * scale), signed_root((leap + guided) / 2)))
        mixed = (likeness * guided + (4 - likeness) * leap) / 4
        return answers._replace(guided=call.output(mixed, "x0")), memory


def signed_root(x: Noisy) -> Noisy:
    """Returns the square root of the size, with the sign."""
    return jnp.sqrt(abs(x)) * jnp.sign(x)


def cosine(a: Noisy, b: Noisy) -> Float[Array, "b ..."]:
    """Returns the mean cosine between the channels of two maps, for each picture, [b, 1, ...]."""
    norms = [jnp.maximum(jnp.sqrt(jnp.sum(x**2, -1)), 1e-8) for x in (a, b)]
    each = jnp.sum(a * b, -1) / (norms[0] * norms[1])
    return each.mean(tuple(range(1, each.ndim)), keepdims=True)[..., None]


@struct.dataclass
class CFGNorm(Rule):
    """No pixel's channels get a larger norm than in the conditional answer, in x0.

    Source: ComfyUI's CFGNorm (comfy_extras/nodes_cfg.py).
    """

    strength: Numbers | float = option(1.0, "factor of the result", 0)

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the limited one."""
        guided, target = call.x0(answers.guided), call.x0(answers.target)
        norms = [jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)) for x in (target, guided)]
        factor = jnp.clip(norms[0] / (norms[1] + 1e-8), 0, 1) * per_image(self.strength, guided)
        return answers._replace(guided=call.output(guided * factor, "x0")), memory


@struct.dataclass
class FreSca(Rule):
    """FreSca: low and high frequencies of the update, conditional - unconditional, get factors of their own.

    Low frequencies are a square in the middle of the shifted spectrum, `cutoff` to each side; at most half of a side.

    Source: Huang et al. 2025 (arXiv 2504.02154), section 3.2; ComfyUI's FreSca.
    """

    low: Numbers | float = option(1.0, "factor of low frequencies")
    high: Numbers | float = option(1.25, "factor of high frequencies")
    cutoff: Numbers | float = option(20.0, "half of the square's side, in frequencies", 0)

    def before(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the filtered update."""
        spectrum = jnp.fft.fftshift(jnp.fft.fft2(answers.target - answers.origin, axes=PLANE), axes=PLANE)
        inside = jnp.ones(1, bool)
        for axis in PLANE:
            middle = spectrum.shape[axis] // 2
            far = jnp.minimum(per_image(self.cutoff, spectrum), middle)
            at = jnp.arange(spectrum.shape[axis]).reshape([-1 if i == axis else 1 for i in range(spectrum.ndim)])
            inside = inside & (at >= middle - far) & (at < middle + far)
        factor = jnp.where(inside, per_image(self.low, spectrum), per_image(self.high, spectrum))
        update = jnp.fft.ifft2(jnp.fft.ifftshift(spectrum * factor, axes=PLANE), axes=PLANE).real
        return answers._replace(target=answers.origin + update), memory


@struct.dataclass
class EpsilonScaling(Rule):
    """Divides the predicted noise by a factor, against the growing error of a long run.

    Source: Ning et al. 2024 (arXiv 2308.15321), section 4.2; ComfyUI's EpsilonScaling.
    """

    factor: Numbers | float = option(1.005, "what the noise is divided by", 0.5, 2)
    applies: ClassVar = "always"

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with less noise."""
        noise = call.seen(answers.guided, "epsilon") / per_image(self.factor, call.x)
        return answers._replace(guided=call.output(noise, "epsilon")), memory
