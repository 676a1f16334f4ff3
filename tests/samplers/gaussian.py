"""Data whose denoiser and probability flow are known exactly: every pixel is normal, with a mean and a deviation.

With x0 ~ N(m, s^2) and x = x0 + sigma noise: E[x0 | x] = (s^2 x + sigma^2 m) / (s^2 + sigma^2), and the probability
flow keeps (x - m) / sqrt(s^2 + sigma^2).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.denoiser import Conditioning, make_denoiser
from sdjax.samplers import base
from sdjax.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
MOST_ROWS = 400  # all runs are filled up to as many, so that one program serves them
MODULES = ("ancestral", "dpm_solver", "multistep", "sde", "two_stage", "unipc")


@dataclasses.dataclass(frozen=True)
class Gaussian:
    mean: float = 0.3
    deviation: float = 0.8

    def denoise(self, x, row):
        sigma = base_shape(row.sigma)
        s = self.deviation
        return (s**2 * x + sigma**2 * self.mean) / (s**2 + sigma**2)

    def flow(self, x, sigma, sigma_next):
        """Returns where the probability flow leads from x at noise sigma."""
        s = self.deviation
        return self.mean + (x - self.mean) * np.sqrt((s**2 + sigma_next**2) / (s**2 + sigma**2))

    def start(self, sigma, count=4):
        """Returns [count, 1, 1, 1] typical points at noise sigma."""
        spread = np.sqrt(self.deviation**2 + sigma**2)
        return (self.mean + spread * np.linspace(-1.5, 1.2, count)).reshape(-1, 1, 1, 1)


def base_shape(value):
    return value[:, None, None, None] if jnp.ndim(value) else value


def networks(gaussian, rows):
    """Returns {prediction: apply} of networks that know the Gaussian and predict epsilon, v or x0.

    A network is told timesteps; which sigma a row means by one, the rows say (references interpolate differently).
    """
    timesteps, sigmas = np.asarray(rows.timestep), np.asarray(rows.sigma)
    if len(timesteps) == 1:  # adaptive: log alpha is linear between whole timesteps
        timesteps = np.linspace(0, 999, 20_000, dtype=np.float32)
        sigmas = SCHEDULE.sigma(timesteps).astype(np.float32)

    def make(prediction):
        def apply(x, t, context, label):
            if len(timesteps) == 20_000:
                sigma = jnp.interp(t, timesteps, sigmas)[:, None, None, None]
            else:
                sigma = jnp.asarray(sigmas)[jnp.argmin(jnp.abs(timesteps - t[0]))]
            x = x * jnp.sqrt(1 + sigma**2)
            x0 = (gaussian.deviation**2 * x + sigma**2 * gaussian.mean) / (gaussian.deviation**2 + sigma**2)
            epsilon = (x - x0) / sigma
            return {"x0": x0, "epsilon": epsilon, "v": (epsilon - sigma * x0) / jnp.sqrt(1 + sigma**2)}[prediction]

        return apply

    return {name: make(name) for name in ("epsilon", "v", "x0")}


def run(sampler, rows, x, apply, prediction, noise=None):
    """Returns the latent that the sampler makes with a network."""
    denoise = make_denoiser(apply, prediction, Conditioning(context=None))
    noise = jnp.zeros((1, *x.shape)) if noise is None else noise
    return np.asarray(jax.jit(lambda x, rows, noise: samplers.sample(sampler, denoise, x, rows, noise))(x, rows, noise))


def exact_rows(monkeypatch, sampler, schedule, num_steps):
    """Returns the sampler's rows as they are before they are rounded to float32, as a list."""
    kept = []

    def keep(rows):
        kept.extend(rows)
        return base.stack(rows)

    for module in MODULES:
        monkeypatch.setattr(f"sdjax.samplers.{module}.stack", keep)
    sampler.steps(schedule, num_steps)
    return kept


def float64_end(gaussian, rows, first=0):
    """Returns the relative error after all rows, in float64, from the exact state before row `first`.

    That state holds the exact x and what exact calls at the rows before it would have left behind, so that with
    `first` above a multistep method's order its warm-up takes no part.
    """
    with jax.enable_x64(True):
        top = rows[0].sigma
        at = lambda sigma: np.asarray(gaussian.flow(gaussian.start(top), top, sigma), np.float64)  # noqa: E731

        def remembered(row):
            x = at(row.sigma)
            return row.coef.remember[0] * x + row.coef.remember[1] * gaussian.denoise(x, row)

        past = [remembered(row) for row in rows[max(0, first - base.MEMORY) : first]][::-1]
        past += [np.zeros_like(at(top))] * (base.MEMORY - len(past))
        run = rows[first:] + [rows[-1]._replace(active=False)] * (MOST_ROWS - len(rows) + first)
        run = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *run)
        x = _run(gaussian, at(rows[first].sigma), tuple(past), run._replace(active=run.active > 0))
        assert x.dtype == jnp.float64
        return float(np.abs(x - at(rows[-1].sigma_next)).max())


@functools.partial(jax.jit, static_argnums=0)
def _run(gaussian, x, past, rows):
    rule = base.Linear()

    def step(state, row):
        update = lambda: rule.update(state, row, gaussian.denoise(state.x, row), 0.0)  # noqa: E731
        return jax.lax.cond(row.active, update, lambda: state), None

    return jax.lax.scan(step, rule.init(x).replace(past=past), rows)[0].x
