"""Data whose denoiser and probability flow are known exactly: every pixel is normal, with a mean and a deviation.

With x0 ~ N(m, s^2) and x = x0 + sigma noise: E[x0 | x] = (s^2 x + sigma^2 m) / (s^2 + sigma^2), and the probability
flow keeps (x - m) / sqrt(s^2 + sigma^2).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import Unguided
from sdjax.diffusion.network import FunctionNetwork
from sdjax.samplers import Denoised, Linear, Stateless, chunks, repeat, scan_rows, stack
from sdjax.samplers.rows import MEMORY
from sdjax.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
MOST_ROWS = 400  # all runs are filled up to as many, so that one program serves them
MODULES = ("adams", "ancestral", "dpm_fast", "dpm_solver", "er_sde", "heun", "multistep", "sa_solver", "sde",
           "second_order", "seeds", "two_stage", "unipc")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Gaussian:
    mean: float = 0.3
    deviation: float = 0.8

    def denoise(self, x, row):
        sigma = row.sigma[:, None, None, None] if jnp.ndim(row.sigma) else row.sigma
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def scan(rule, gaussian, state, rows, keys):
    """Returns the state after the rows, for the Gaussian's denoiser; one program for all samplers of one rule."""
    return scan_rows(rule, Stateless(gaussian.denoise), state, repeat(rows, len(state.x)), keys)


def run(sampler, rows, x, keys, gaussian=None, size=16):
    """Returns the latent that the sampler makes of x, `size` rows a call."""
    gaussian = gaussian or Gaussian()
    state = sampler.rule.init(jnp.asarray(x, jnp.float32))
    for part in chunks(rows, 1 if len(rows.timestep) == 1 else size):
        state = scan(sampler.rule, gaussian, state, part, keys)
    return np.asarray(sampler.final(state, rows))


@functools.partial(jax.jit, static_argnums=(0, 1))
def scan_network(rule, prediction, state, rows, keys, timesteps, sigmas):
    """Returns the state after the rows, for a network that knows the default Gaussian and predicts `prediction`.

    A network is told timesteps; which sigma one means, the tables say: the nearest one's, or for an adaptive rule
    what lies between.
    """
    s, m = Gaussian().deviation, Gaussian().mean

    def apply(x, t, conditioning):
        if rule == Linear():
            sigma = sigmas[jnp.argmin(jnp.abs(timesteps - t[0]))]
        else:
            sigma = jnp.interp(t, timesteps, sigmas)[:, None, None, None]
        x = x * jnp.sqrt(1 + sigma**2)
        x0 = (s**2 * x + sigma**2 * m) / (s**2 + sigma**2)
        epsilon = (x - x0) / sigma
        return {"x0": x0, "epsilon": epsilon, "v": (epsilon - sigma * x0) / jnp.sqrt(1 + sigma**2)}[prediction]

    denoiser = make_denoiser(FunctionNetwork(apply), {}, prediction, [Conditioning()], Unguided())
    state = state.replace(memory=denoiser.init(state.x))
    return scan_rows(rule, denoiser, state, repeat(rows, len(state.x)), keys)


def run_network(sampler, rows, x, keys, prediction):
    """Returns the latent that the sampler makes of x with a network that predicts `prediction`."""
    (part,) = chunks(rows, 32 if sampler.rule == Linear() else 1)
    timesteps, sigmas = part.timestep, part.sigma
    if len(timesteps) == 1:  # adaptive: log alpha is linear between whole timesteps
        timesteps = np.linspace(0, 999, 20_000, dtype=np.float32)
        sigmas = SCHEDULE.sigma(timesteps).astype(np.float32)
    state = scan_network(sampler.rule, prediction, sampler.rule.init(x), part, keys, timesteps, sigmas)
    return np.asarray(sampler.final(state, rows))


def exact_rows(monkeypatch, sampler, schedule, num_steps):
    """Returns the sampler's rows as they are before they are rounded to float32, as a list."""
    kept = []

    def keep(rows):
        kept.extend(rows)
        return stack(rows)

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
            of_x, *of_x0 = row.coef.remember
            return of_x * x + sum(of_x0) * gaussian.denoise(x, row)

        past = [remembered(row) for row in rows[max(0, first - MEMORY) : first]][::-1]
        past += [np.zeros_like(at(top))] * (MEMORY - len(past))
        run = rows[first:] + [rows[-1]._replace(active=False)] * (MOST_ROWS - len(rows) + first)
        run = jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *run)
        x = _run(gaussian, at(rows[first].sigma), tuple(past), run._replace(active=run.active > 0))
        assert x.dtype == jnp.float64
        return float(np.abs(x - at(rows[-1].sigma_next)).max())


@functools.partial(jax.jit, static_argnums=0)
def _run(gaussian, x, past, rows):
    rule = Linear()

    def step(state, row):
        x0 = gaussian.denoise(state.x, row)
        update = lambda: rule.update(state, row, Denoised(x0, x0, x0), 0.0)  # noqa: E731
        return jax.lax.cond(row.active.any(), update, lambda: state), None

    return jax.lax.scan(step, rule.init(x).replace(past=past), repeat(rows, len(x)))[0].x
