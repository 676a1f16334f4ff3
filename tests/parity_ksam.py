"""Samplers of k-diffusion, ComfyUI and A1111's Restart by sdjax's, in the form in which the parity kit calls them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import samplers
from sdjax.samplers.tools import recipe
from sdjax.schedule import NoiseSchedule

CHUNK, MOST_ROWS = 16, 128  # of one compiled scan, and of a run: so one program serves all samplers
OPTIONS = {"ge_gamma": "gamma", "max_order": "order", "simple_order_2": "simple"}  # keywords that are not our fields


@dataclasses.dataclass(frozen=True, eq=False)
class Formula:
    """The kit's denoiser: (x, sigma) to x0, or to x0 and the unconditional x0."""

    function: object

    def init(self, x):
        return ()

    def __call__(self, x, row, memory):
        out = self.function(x, row.sigma)
        x0, unconditional = out if isinstance(out, tuple) else (out, out)
        return samplers.Denoised(x0, x0, unconditional), memory


@functools.partial(jax.jit, static_argnums=(0, 1))
def scan(rule, denoiser, state, rows, noise):
    return samplers.scan_rows(rule, denoiser, state, rows, noise)


def ksampler(tool, name, sigmas, x, denoise, noises, options):
    """Returns what the sampler makes of x."""
    return run(tool, name, sigmas, x, Formula(denoise), noises, options)


def run(tool, name, sigmas, x, denoiser, noises, options):
    """Returns what the sampler makes of x."""
    fields = {OPTIONS.get(key, key): value for key, value in options.items() if key != "n"}
    how, schedule = recipe(tool, name, settings=fields), NoiseSchedule()
    sigmas = np.asarray(sigmas, np.float64)
    if len(sigmas) == 2:
        sigmas = np.geomspace(*sigmas, options.get("n", 1) + 1)
    timesteps = np.append(schedule.timestep(sigmas[:-1], "log_sigma"), 0.0)
    rows = how.rows(schedule, samplers.Grid(timesteps, sigmas))
    noise = np.zeros((MOST_ROWS, *x.shape), np.float32)
    if noises is not None:
        # An adaptive run draws by itself, one after the other
        which = np.flatnonzero(samplers.draws(rows, idle=tool == "k_diffusion")) if len(rows.index) > 1 else slice(None)
        count = len(noises[: len(noise[which])])
        noise[np.arange(MOST_ROWS)[which][:count]] = noises[:count]
    state = how.sampler.rule.init(jnp.asarray(x))
    for part in samplers.chunks(rows, CHUNK if len(rows.index) > 1 else 1):
        state = scan(how.sampler.rule, denoiser, state, samplers.repeat(part, len(x)), noise)
    return np.asarray(state.x)
