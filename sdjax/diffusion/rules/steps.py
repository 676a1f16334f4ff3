"""Rules about time: in which steps there is guidance, and how its scale changes from step to step."""

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from sdjax.diffusion.guidance import Call, Rule
from sdjax.diffusion.rules.options import choice, numbers, option, switch
from sdjax.samplers.rows import Numbers

# (share of the run that is over, power) -> factor of the scale. "Half Cosine" is the cosine of 0 to 1, as in
# mcmonkey4eva/sd-dynamic-thresholding, whose names these are; its pi / 2 and 2 pi have a few digits
CURVES: dict[str, Callable[[Array, Array], Array]] = {
    "Constant": lambda share, power: jnp.ones_like(share),
    "Linear Down": lambda share, power: 1 - share,
    "Cosine Down": lambda share, power: jnp.cos(share * 1.5707),
    "Half Cosine Down": lambda share, power: jnp.cos(share),
    "Linear Up": lambda share, power: share,
    "Cosine Up": lambda share, power: 1 - jnp.cos(share * 1.5707),
    "Half Cosine Up": lambda share, power: 1 - jnp.cos(share),
    "Power Up": lambda share, power: share**power,
    "Power Down": lambda share, power: 1 - share**power,
    "Linear Repeating": lambda share, power: abs(1 - 2 * (share * power % 1)),
    "Cosine Repeating": lambda share, power: jnp.cos(share * 6.28318 * power) * 0.5 + 0.5,
    "Sawtooth": lambda share, power: share * power % 1,
}


def share_of_steps(call: Call) -> Float[Array, "b"]:
    """Returns the share of the run that is over, from 0 in the first step to 1 in the last one."""
    step, total = (jnp.asarray(number, jnp.float32) for number in (call.row.step, call.row.num_steps))
    return jnp.broadcast_to(step / jnp.maximum(total - 1, 1), call.x.shape[:1])


def on_curve(scale: Array, lowest: Array, curve: str, share: Array, power: Array) -> Array:
    """Returns lowest + (scale - lowest) times the curve's factor."""
    return lowest + (scale - lowest) * CURVES[curve](share, power)


@struct.dataclass
class Interval(Rule):
    """Guidance only in some steps; in the others the answer is the conditional one, and the other passes are skipped.

    A step counts if it is at or after step int(start * steps), before step int(stop * steps), and if
    sigma_low < sigma <= sigma_high.

    Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724) for sigma; diffusers' guiders for the shares.
    """

    start: Numbers | float = option(0.0, "share of the steps before guidance begins", 0, 1)
    stop: Numbers | float = option(1.0, "share of the steps after which guidance ends", 0, 1)
    sigma_low: Numbers | float = option(0.0, "no guidance at this noise level and below", 0)
    sigma_high: Numbers | float = option(1e9, "no guidance above this noise level", 0)
    rests: ClassVar[bool] = True

    @property
    def counts_steps(self) -> bool:
        """Whether shares of the steps are set."""
        return bool(self.start != 0 or self.stop != 1)

    def on(self, call: Call) -> Bool[Array, "b"]:
        """Returns which pictures are guided in this step."""
        step, total, sigma = (jnp.asarray(a, jnp.float32) for a in (call.row.step, call.row.num_steps, call.row.sigma))
        inside = (step >= jnp.floor(self.start * total)) & (step < jnp.floor(self.stop * total))
        return inside & (sigma > self.sigma_low) & (sigma <= self.sigma_high)


@struct.dataclass
class SkipUnconditional(Rule):
    """AUTOMATIC1111's savings: no negative prompt in early steps, and in every second call below a noise level.

    Source: A1111's settings "Negative Guidance minimum sigma" (for all steps too) and "Ignore negative prompt during
    early sampling", modules/sd_samplers_cfg_denoiser.py.
    """

    sigma: Numbers | float = option(0.0, "below this noise level every second call skips; 0: none", 0)
    all_steps: Numbers | float = switch(False, "below it every call skips")
    early: Numbers | float = option(0.0, "share of the steps at the beginning that skip; 0: none", 0, 1)
    rests: ClassVar[bool] = True

    @property
    def counts_steps(self) -> bool:
        """Whether it skips early steps or every second call."""
        return bool(self.early != 0 or self.sigma != 0)

    def on(self, call: Call) -> Bool[Array, "b"]:
        """Returns which pictures are guided in this call."""
        row = call.row
        # A1111 counts two calls a step for samplers of second order
        calls = jnp.asarray(row.step, jnp.float32) + jnp.where(jnp.asarray(row.starts_step), 0, 0.5)
        early = (self.early > 0) & (calls / jnp.asarray(row.num_steps, jnp.float32) <= self.early)
        second = (jnp.asarray(row.index) % 2 == 1) | (self.all_steps > 0)
        return jnp.asarray(~early & ~(second & (jnp.asarray(row.sigma) < self.sigma)))


@struct.dataclass
class ScaleCurve(Rule):
    """The scale along a curve: lowest + (scale - lowest) times a factor that depends on the share of steps made.

    Source: mcmonkey4eva/sd-dynamic-thresholding, whose curves and names these are.
    """

    curve: str = choice("Cosine Down", "shape of the curve", tuple(CURVES))
    lowest: Numbers | float = option(1.0, "the scale where the factor is 0")
    power: Numbers | float = option(2.0, "exponent or number of repetitions of a curve", 0)
    needs_unconditional: ClassVar[bool] = True

    @property
    def counts_steps(self) -> bool:
        """It always does."""
        return True

    def scale_of(self, scale: Float[Array, "b"], call: Call) -> Float[Array, "b"]:
        """Returns this step's scale."""
        lowest, power = jnp.asarray(self.lowest), jnp.asarray(self.power)
        return on_curve(scale, lowest, self.curve, share_of_steps(call), power)


@struct.dataclass
class ScaleList(Rule):
    """A scale for each step; the last one stays for the rest. They replace the guidance scale.

    Source: Wang et al. 2024 (arXiv 2404.13040) compares such schedules.
    """

    scales: Numbers = numbers("the scales, step by step")
    needs_unconditional: ClassVar[bool] = True

    @property
    def counts_steps(self) -> bool:
        """It always does."""
        return True

    def scale_of(self, scale: Float[Array, "b"], call: Call) -> Float[Array, "b"]:
        """Returns this step's scale."""
        scales = jnp.asarray(self.scales)
        step = jnp.broadcast_to(jnp.asarray(call.row.step, jnp.int32), scales.shape[:1])
        at = jnp.minimum(step, scales.shape[-1] - 1)
        return jnp.take_along_axis(scales, at[:, None], axis=1)[:, 0]
