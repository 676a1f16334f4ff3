"""Masked DDIM twice: by sdjax, and in plain numpy as CompVis's sampler does it, on a formula in place of a network."""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion.constraint import Known
from sdjax.samplers import DDIM, Stateless, draw_noise, repeat, scan_rows
from sdjax.samplers.noise import MASK
from sdjax.schedule import NoiseSchedule


def denoise(x, row):
    """Data around each picture's own mean: what is made depends on what is kept."""
    sigma = row.sigma.reshape(-1, 1, 1, 1)
    return (0.6 * x + sigma**2 * (0.3 + 0.5 * x.mean((1, 2), keepdims=True))) / (0.6 + sigma**2)


def both():
    """Returns sdjax's end, numpy's, and where they were free to move."""
    schedule, sampler = NoiseSchedule(), DDIM()
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 2, 4, 6, 3)).astype(np.float32)
    keep = rng.random((2, 4, 6, 1)) < 0.5
    rows, keys = sampler.steps(schedule, 10), jax.random.split(jax.random.key(3), 2)
    known = Known(jnp.asarray(x0), jnp.asarray(keep))
    x = sampler.initial(jnp.asarray(noise), rows)
    state = sampler.rule.init(jnp.asarray(x))
    got = scan_rows(
        sampler.rule, known.answer(Stateless(denoise)), state, repeat(rows, 2), keys, known.constrain(keys)
    ).x

    t, sigma = sampler.grid(schedule, 10)
    for i in range(10):
        fresh = np.asarray(draw_noise(keys, MASK, i, x0.shape[1:]))
        x = keep * (x0 + sigma[i] * fresh) + (1 - keep) * x
        pred = denoise(x, type("Row", (), {"sigma": sigma[i]}))
        x = pred + sigma[i + 1] / sigma[i] * (x - pred)
    return np.asarray(got), x, np.broadcast_to(~keep, x.shape)
