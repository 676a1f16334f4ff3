"""Few-step distillation: a network learns to go in one call from any point of its teacher's path to the path's end.

Sources: consistency models, Song et al. 2023 (arXiv 2303.01469); latent consistency, Luo et al. 2023 (arXiv
2310.04378), and as LoRA (arXiv 2311.05556); phased consistency, Wang et al. 2024 (arXiv 2405.18407).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.checks.effects import needs
from sdjax.config import ConfigError, ModelConfig
from sdjax.nn import UNet
from sdjax.purpose import KINDS, kind_of
from sdjax.samplers.ancestral import boundary
from sdjax.schedule import PREDICTIONS, NoiseSchedule, of_table
from sdjax.train.objectives import draws, inputs
from sdjax.train.objectives.objective import Batch, Loss, Metrics, Objective, RunFacts
from sdjax.train.objectives.weighting import bend
from sdjax.typing import Context, Keys, Latent, Params

TEACHER = "teacher"  # the UNet as it was at the start, among the fixed parameters

Network = Callable[[Params, Latent, jax.Array, Context], Latent]


@dataclasses.dataclass(frozen=True)
class ConsistencyObjective(Objective):
    """Settings of the consistency loss: f(x_t, t) shall equal f(x_s, s), where s is the teacher's DDIM step below t.

    The teacher is the model at the start, with classifier-free guidance at a scale drawn for each example. So the
    student needs no guidance: sample with scale 1.

    - `steps`: the number of the teacher's DDIM steps, over all timesteps.
    - `scales`: (least, greatest) guidance scale, uniform.
    - `phases`: None is latent consistency, f goes to the picture: f(x, t) = c_skip x + c_out x0. A number p is phased
      consistency: the timesteps are cut into p parts, and f goes by DDIM to the lower end of t's part; sample with DDIM
      or Euler in p steps.
    - `target`: whose f(x_s, s) is aimed at: the student's own ("student"), or the moving average's ("average").
    - `loss`: "huber" is sqrt(d^2 + c^2) - c with c = `huber_delta`; "l2" is d^2.
    """

    captions: ClassVar[bool] = True
    without_effect: ClassVar[Mapping[str, str]] = {}

    steps: int = 50
    scales: tuple[float, float] = (5.0, 15.0)
    phases: int | None = None
    target: Literal["student", "average"] = "student"
    loss: Literal["huber", "l2"] = "huber"
    huber_delta: float = needs(0.001, lambda o: o.loss == "huber", 'but with loss "huber"')
    kind: Literal["consistency"] = "consistency"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is at least 1; got {self.steps}")
        if len(self.scales) != 2 or not 1 <= self.scales[0] <= self.scales[1] < np.inf:
            raise ValueError(f"scales are the least and the greatest guidance scale, from 1 up; got {self.scales}")
        if self.phases is not None and not 1 <= self.phases <= self.steps:
            raise ValueError(f"phases is a number from 1 to steps ({self.steps}); got {self.phases}")
        if self.target not in ("student", "average"):
            raise ValueError(f'target is "student" or "average"; got {self.target!r}')
        if self.loss not in ("huber", "l2"):
            raise ValueError(f'loss is "huber" or "l2"; got {self.loss!r}')
        if not 0 < self.huber_delta < np.inf:
            raise ValueError(f"huber_delta is positive; got {self.huber_delta}")

    def check_parts(self, train: tuple[str, ...]) -> None:
        """See Objective."""
        if train != ("unet",):
            raise ValueError(f'a consistency objective trains the UNet: train = ("unet",); got {", ".join(train)}')

    def check(self, facts: RunFacts) -> None:
        """See Objective."""
        kind = kind_of(facts.model)
        if kind != "text":
            raise ConfigError(f"consistency is for text-to-image models; {facts.model.name} is for {KINDS[kind]}")
        if self.target == "average" and not facts.average:
            raise ConfigError('target "average" needs a moving average: set ema.decay, or target "student"')
        if self.steps > facts.model.schedule.num_timesteps:
            raise ConfigError(
                f"steps is at most the model's {facts.model.schedule.num_timesteps} timesteps; got {self.steps}"
            )

    def reads(self, facts: RunFacts) -> tuple[str, ...]:
        """See Objective."""
        return ("unet", *([] if all(facts.cached) else ["vae"]), *(["text"] if "ids" in facts.captions else []))

    def copies(self) -> Mapping[str, str]:
        """See Objective."""
        return {TEACHER: "unet"}

    def make_loss(self, facts: RunFacts, empty: np.ndarray, axis: str | None = None) -> Loss:
        """See Objective."""
        network, dtype = unet_of(facts.model, jnp.dtype(facts.dtype), facts.remat), jnp.dtype(facts.dtype)

        def loss(
            whole: Params, average: Params | None, batch: Batch, keys: Keys, step: jax.Array
        ) -> tuple[jax.Array, Metrics]:
            x0 = inputs.latents(facts.model, whole, batch, keys, dtype)
            contexts = (
                inputs.contexts(facts.model, whole, batch, dtype),
                inputs.empty_contexts(facts.model, whole, empty, len(x0), dtype),
            )
            aimed = whole if average is None or self.target == "student" else average
            error = consistency_error(
                NoiseSchedule(facts.model.schedule), self, network,
                (whole["unet"], aimed["unet"], whole[TEACHER]), x0, contexts, keys,
            )  # fmt: skip
            total = error.mean()
            return total, {"loss": total}

        return loss


def unet_of(config: ModelConfig, dtype: DTypeLike, remat: str) -> Network:
    """Returns the UNet as a function of (parameters, x, t [b], context)."""
    unet = UNet(config.unet, dtype, remat)
    return lambda params, x, t, context: unet.bind({"params": params})(x, t.astype(jnp.float32), context, None)


def consistency_error(
    schedule: NoiseSchedule,
    objective: ConsistencyObjective,
    network: Network,
    params: tuple[Params, Params, Params],
    x0: Latent,
    contexts: tuple[Context, Context],
    keys: Keys,
) -> jax.Array:
    """Returns each example's error [b] between f(x_t, t) of the student and f(x_s, s) of the network that it aims at.

    `params` are those of the student, of the aimed-at network and of the teacher. `contexts` are that of the caption
    and that of the empty caption. Source: Luo et al. 2023 (arXiv 2310.04378), algorithm 1.
    """
    student, aimed, teacher = params
    context, empty = contexts
    later, earlier = solver_timesteps(schedule.num_timesteps, objective.steps)
    step = draws.integers(keys, draws.TIMESTEP, 0, objective.steps)
    t, s = jnp.asarray(later)[step], jnp.asarray(earlier)[step]
    low, high = objective.scales
    scale = (low + (high - low) * draws.uniform(keys, draws.SCALE))[:, None, None, None]
    x = schedule.add_noise(x0, draws.normal(keys, draws.NOISE, x0.shape[1:]), t)

    told = both(schedule, network(teacher, x, t, context), x, t)
    untold = both(schedule, network(teacher, x, t, empty), x, t)
    picture, noise = (none + scale * (some - none) for some, none in zip(told, untold))
    below = jax.lax.stop_gradient(schedule.add_noise(picture, noise, s))  # DDIM (Song et al. 2021, equation 12)

    ends = phase_ends(schedule.num_timesteps, objective.phases, earlier)[step]

    def consistent(params: Params, x: Latent, t: jax.Array) -> Latent:
        clean, noise = both(schedule, network(params, x, t, context), x, t)
        if objective.phases is not None:
            return schedule.add_noise(clean, noise, ends)
        skip, out = (of_table(table, t, x) for table in boundary(np.arange(schedule.num_timesteps)))
        return skip * x + out * clean

    difference = consistent(student, x, t) - jax.lax.stop_gradient(consistent(aimed, below, s))
    delta = jnp.float32(objective.huber_delta)
    return (jnp.square(difference) if objective.loss == "l2" else bend(difference, delta)).mean((1, 2, 3))


def solver_timesteps(total: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the teacher's steps begin and end, int32 [steps]; with 1000 and 50: 19, 39, ... and 0, 19, ..."""
    later = (np.arange(1, steps + 1) * total / steps).round().astype(np.int32) - 1
    return later, np.maximum(np.concatenate([[0], later[:-1]]), 0).astype(np.int32)


def phase_ends(total: int, phases: int | None, earlier: np.ndarray) -> jax.Array:
    """Returns the lower end of the phase of each timestep. The ends of p phases are 0, T / p - 1, 2 T / p - 1, ..."""
    edges = np.array([0]) if phases is None else solver_timesteps(total, phases)[1]
    return jnp.asarray(edges[np.searchsorted(edges, earlier, side="right") - 1])


def both(schedule: NoiseSchedule, output: Latent, x: Latent, t: jax.Array) -> tuple[Latent, Latent]:
    """Returns the picture and the noise in x_t, [b, h, w, c] each, from what the network predicts.

    They satisfy x = sqrt(a) picture + sqrt(1 - a) noise.
    """
    signal, hidden = (np.sqrt(share) for share in (schedule.alphas_cumprod, 1 - schedule.alphas_cumprod))
    of_x, of_output = PREDICTIONS[schedule.config.prediction].x0(schedule.sigmas)  # of x / sqrt(a)
    first, second = (np.broadcast_to(weight, signal.shape) for weight in (of_x / signal, of_output))
    picture = of_table(first, t, x) * x + of_table(second, t, x) * output
    return picture, (x - of_table(signal, t, x) * picture) / of_table(hidden, t, x)
