"""Rules that project one answer on another: APG, TCFG, CFG-Zero*, perpendicular negative prompts.

All sums are over one picture, also where another tool takes them over the whole batch.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from sdjax.diffusion.guidance import Answers, Call, Rule
from sdjax.diffusion.rules.options import choice, option
from sdjax.samplers.rows import Numbers, per_image
from sdjax.samplers.rule import Memory, Noisy, choose_images

SPACES = ("output", "x0", "epsilon", "v")
SPACE = "what the formula is applied to: the network's own output, or its answer as x0, epsilon or v"
AXES = {"picture": (-3, -2, -1), "channel": (-3, -2), "pixel": (-1,)}  # of [b, h, w, c]


def dot(a: Noisy, b: Noisy) -> Float[Array, "b ..."]:
    """Returns the dot product of each picture, [b, 1, ...]."""
    return jnp.sum(a * b, tuple(range(1, a.ndim)), keepdims=True)


@struct.dataclass
class APG(Rule):
    """Adaptive projected guidance: the part of the update along the conditional answer is scaled by eta.

    The update is conditional - unconditional. With momentum it is a running sum, update + momentum * sum. Its norm is
    limited to `threshold`. Large scales then oversaturate less. `form` says to what scale * update is added:
    "diffusers" to the unconditional answer, "comfyui" to the conditional one; "paper" adds (scale - 1) * update to the
    conditional one. ComfyUI's node is form=comfyui, space=x0, threshold=5. diffusers' guiders with
    use_original_formulation and scale s are form=paper with scale s + 1.

    Source: Sadat et al. 2024 (arXiv 2410.02416), algorithm 1; diffusers' AdaptiveProjectedGuidance; ComfyUI's APG.
    """

    eta: Numbers | float = option(1.0, "share of the update along the conditional answer that stays")
    threshold: Numbers | float = option(15.0, "largest norm of the update; 0: no limit", 0)
    momentum: Numbers | float = option(0.0, "weight of the earlier updates; usually from -0.75 to 0")
    form: str = choice("diffusers", "to what the update is added", ("diffusers", "comfyui", "paper"))
    space: str = choice("output", SPACE, SPACES)
    norm_over: str = choice("picture", "over what norms and products are taken", tuple(AXES))

    def init(self, x: Noisy) -> Memory:
        """Returns the running sum and the sigma of the last call."""
        return {"sum": jnp.zeros_like(x), "sigma": jnp.full(x.shape[0], jnp.inf, jnp.float32)}

    def before(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the projected update between origin and target."""
        target, origin = (call.seen(output, self.space) for output in (answers.target, answers.origin))
        sigma = jnp.broadcast_to(jnp.asarray(call.row.sigma, jnp.float32), target.shape[:1])
        # A sampler that goes back to more noise starts again
        old = choose_images(sigma > memory["sigma"], jnp.zeros_like(target), memory["sum"])
        update = total = target - origin + per_image(self.momentum, target) * old
        axes = AXES[self.norm_over] if target.ndim == 4 else tuple(range(1, target.ndim))
        norm = jnp.sqrt(jnp.sum(update**2, axes, keepdims=True))
        limit = per_image(self.threshold, target)
        update = update * jnp.where(limit > 0, jnp.minimum(1, limit / jnp.maximum(norm, 1e-12)), 1)
        length = jnp.sqrt(jnp.sum(target**2, axes, keepdims=True))
        direction = target / jnp.maximum(length, 1e-12)
        along = jnp.sum(update * direction, axes, keepdims=True) * direction
        update = update - along + per_image(self.eta, target) * along
        scale = answers.scale
        if self.form == "diffusers":
            target = origin + update
        else:
            origin = target - update
            scale = scale + (self.form == "comfyui")
        target, origin = (call.output(value, self.space) for value in (target, origin))
        return answers._replace(target=target, origin=origin, scale=scale), {"sum": total, "sigma": sigma}


@struct.dataclass
class CFGZeroStar(Rule):
    """CFG-Zero*: the unconditional answer is scaled to fit the conditional one best; the first steps answer 0.

    The factor is <conditional, unconditional> / |unconditional|^2. It is applied in `space` and computed in `fitted`.
    ComfyUI's node is space=x0, fitted=epsilon, zero_steps=0.

    Source: Fan et al. 2025 (arXiv 2503.18886), eq. 13 and algorithm 1; diffusers' ClassifierFreeZeroStarGuidance.
    """

    zero_steps: Numbers | float = option(1.0, "number of first steps in which the network's output counts as 0", 0)
    space: str = choice("output", SPACE, SPACES)
    fitted: str = choice("output", "where the factor is computed", SPACES)

    @property
    def counts_steps(self) -> bool:
        """Whether the first steps answer 0."""
        return bool(self.zero_steps != 0)

    def before(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the scaled origin."""
        conditional, unconditional = (call.seen(output, self.fitted) for output in (answers.target, answers.origin))
        factor = dot(conditional, unconditional) / (dot(unconditional, unconditional) + 1e-8)
        origin = call.output(factor * call.seen(answers.origin, self.space), self.space)
        return answers._replace(origin=origin), memory

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with 0 in the first steps."""
        first = jnp.broadcast_to(jnp.asarray(call.row.step) < self.zero_steps, answers.scale.shape)
        return answers._replace(guided=choose_images(first, jnp.zeros_like(answers.guided), answers.guided)), memory


@struct.dataclass
class TCFG(Rule):
    """Tangential damping: the unconditional answer keeps only its part along the main direction of both answers.

    This direction is the first right singular vector of the matrix with the two answers as rows.

    Source: Kwon et al. 2025 (arXiv 2503.18137), algorithm 1; ComfyUI's node uses space=epsilon.
    """

    space: str = choice("output", SPACE, SPACES)

    def before(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the damped origin."""
        c, u = (call.seen(output, self.space) for output in (answers.target, answers.origin))
        cc, cu, uu = dot(c, c), dot(c, u), dot(u, u)
        # The larger eigenvalue of [[cc, cu], [cu, uu]] is m + r; its eigenvector is (r + d, cu) or (cu, r - d)
        d = (cc - uu) / 2
        r = jnp.sqrt(d**2 + cu**2)
        of_c, of_u = jnp.where(d > 0, r + d, cu), jnp.where(d > 0, cu, r - d)
        main = of_c * c + of_u * u
        damped = dot(main, u) / jnp.maximum(dot(main, main), 1e-30) * main
        return answers._replace(origin=call.output(damped, self.space)), memory


@struct.dataclass
class PerpNeg(Rule):
    """Perpendicular negative prompt: only the part of the negative prompt that is perpendicular to the prompt counts.

    Both are seen from the answer for the empty prompt, which is a third pass of the network.

    Source: Armandpour et al. 2023 (arXiv 2304.04968), eq. 8; ComfyUI's PerpNegGuider, but for each picture alone.
    """

    negative: Numbers | float = option(1.0, "weight of the negative prompt")
    needs_unconditional: ClassVar[bool] = True
    applies = "on"

    @property
    def branches(self) -> tuple[str, ...]:
        """The empty prompt's branch."""
        return ("empty",)

    def before(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with the empty prompt's as origin."""
        empty = answers.outputs["empty"]
        positive, negative = answers.target - empty, answers.unconditional - empty
        along = dot(negative, positive) / jnp.maximum(dot(positive, positive), 1e-30) * positive
        target = empty + positive - per_image(self.negative, empty) * (negative - along)
        return answers._replace(target=target, origin=empty), memory
