"""Batches in which each image has its own sampler, number of steps and settings, and additions from outside sdjax."""

import dataclasses
import functools

import flax
import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.network import FunctionNetwork
from sdjax.samplers import (
    SAMPLERS,
    Denoised,
    DPMSolverAdaptive,
    Linear,
    Sampler,
    Stateless,
    batch,
    chunks,
    repeat,
    row,
    sample,
    scan_rows,
    stack,
)
from sdjax.samplers.rows import per_image

MODEL = gaussian.Gaussian()
COUNTS = {"ddim": 20, "dpmpp_2m": 12, "heun": 9, "euler_ancestral": 16}
KEYS = jax.random.split(jax.random.key(1), 4)

TRACED = []  # a rule for each time that `scan` is traced, to be compiled


@functools.partial(jax.jit, static_argnums=0)
def scan(rule, state, rows, keys):
    TRACED.append(rule)
    return scan_rows(rule, Stateless(MODEL.denoise), state, rows, keys)


def together(samplers_and_steps, keys, size=8, noise=1.5):
    """Returns what each sampler makes of its image, all in one batch, as an array [b, 1, 1, 1]."""
    chosen = [sampler for sampler, _ in samplers_and_steps]
    rows = batch([sampler.steps(gaussian.SCHEDULE, n) for sampler, n in samplers_and_steps])
    state = chosen[0].rule.init(jnp.asarray(noise * rows.sigma[0].reshape(-1, 1, 1, 1)))
    for part in chunks(rows, 1 if len(rows.index) == 1 else size):
        state = scan(chosen[0].rule, state, part, keys)
    return np.asarray(chosen[0].final(state, rows))


def mixture():
    return [(SAMPLERS[name](), n) for name, n in COUNTS.items()]


def test_each_image_of_a_mixed_batch_is_what_it_is_alone():
    got = together(mixture(), KEYS)
    for i, one in enumerate(mixture()):
        alone = together([one] * 4, KEYS)[i]  # with its like, so that one program serves all
        np.testing.assert_array_equal(got[i], alone)


@pytest.mark.slow
def test_every_sampler_of_known_steps_shares_a_batch():
    names = [name for name in SAMPLERS if SAMPLERS[name]().rule == Linear()]
    keys = jax.random.split(jax.random.key(0), len(names))
    got = together([(SAMPLERS[name](), 5 + i) for i, name in enumerate(names)], keys)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(got[i], together([(SAMPLERS[name](), 5 + i)] * len(names), keys)[i], name)


def test_another_mixture_of_the_same_size_compiles_nothing():
    together(mixture(), KEYS)
    before = len(TRACED)
    together(
        [(SAMPLERS["plms"](), 3), (SAMPLERS["ddpm"](), 31), (SAMPLERS["unipc"](), 7), (SAMPLERS["lcm"](), 4)], KEYS
    )
    assert len(TRACED) == before


def test_the_network_is_called_only_while_an_image_is_active_and_noise_drawn_only_where_one_wants_some():
    rows = batch(
        [SAMPLERS["ddim"]().steps(gaussian.SCHEDULE, 3), SAMPLERS["euler_ancestral"]().steps(gaussian.SCHEDULE, 5)]
    )
    seen = []

    def denoise(x, row):
        jax.debug.callback(lambda active: seen.append(active.tolist()), row.active)
        return MODEL.denoise(x, row)

    state = Linear().init(jnp.ones((2, 1, 1, 1)))
    for part in chunks(rows, 4):
        jax.block_until_ready(scan_rows(Linear(), Stateless(denoise), state, part, KEYS[:2]))
    jax.effects_barrier()
    assert sorted(seen) == sorted([[True, True]] * 3 + [[False, True]] * 2)


def test_adaptive_images_have_their_own_tolerance_attempts_and_end():
    solvers = [
        (DPMSolverAdaptive(atol=1e-2, rtol=1e-2), 100),
        (DPMSolverAdaptive(atol=1e-4, rtol=1e-3, theta=0.8), 100),
        (DPMSolverAdaptive(atol=1e-4, rtol=1e-4), 3),  # made up for by one last step
        (DPMSolverAdaptive(denoise_to_zero=True), 100),
    ]
    got = together(solvers, KEYS)
    for i, one in enumerate(solvers):
        np.testing.assert_allclose(got[i], together([one] * 4, KEYS)[i], rtol=1e-6)
    assert len({float(x) for x in got.ravel()}) == 4


def test_images_of_different_rules_share_no_batch():
    with pytest.raises(ValueError, match="rows for one rule"):
        batch([SAMPLERS["ddim"]().steps(gaussian.SCHEDULE, 3),
               SAMPLERS["dpm_solver_adaptive"]().steps(gaussian.SCHEDULE, 3)])  # fmt: skip


def test_constrained_images_are_set_where_their_own_steps_start():
    rows = batch([SAMPLERS["heun"]().steps(gaussian.SCHEDULE, 2), SAMPLERS["ddim"]().steps(gaussian.SCHEDULE, 3)])
    state = Linear().init(jnp.ones((2, 1, 1, 1)))
    still = Stateless(lambda x, row: x)  # no noise is seen, so that no method moves x
    got = scan_rows(Linear(), still, state, rows, KEYS[:2], lambda x, row: x + 1)
    np.testing.assert_allclose(got.x.ravel(), [1 + 2, 1 + 3], rtol=1e-5)


# Written as from outside sdjax


@dataclasses.dataclass(frozen=True)
class PlusPlus(Sampler):
    """CFG++ on DDIM: the noise that is kept is the unconditional branch's (Chung et al. 2024, arXiv 2406.08070)."""

    def steps(self, schedule, num_steps, *, skip=0):
        t, sigma = self.grid(schedule, num_steps, skip=skip)
        share = sigma[1:] / sigma[:-1]
        return stack([
            row(t[i], sigma[i], sigma[i + 1], base=share[i], calls=[1.0], remember=(0.0, 1.0, -share[i]))
            for i in range(len(share))
        ])  # fmt: skip


@flax.struct.dataclass
class Momentum:
    """Guidance along a running mean of the branches' differences."""

    scale: jax.Array
    decay: jax.Array

    @property
    def branches(self):
        return ("unconditional", "conditional")

    def init(self, x):
        return jnp.zeros_like(x)

    def combine(self, outputs, call, memory):
        u, c = (call.x0(outputs[name]) for name in self.branches)
        memory = per_image(self.decay, u) * memory + c - u
        return Denoised(u + per_image(self.scale, u) * memory, c, u), memory


def branches(b):
    return [Conditioning(context=jnp.full((b, 1, 1), value)) for value in (-0.5, 0.5)]


def network(x, t, conditioning):
    return 0.3 * x + conditioning.context[..., None]


def test_a_sampler_from_outside_may_use_the_unconditional_branch():
    guidance = Momentum(jnp.float32(2), jnp.float32(0))
    denoiser = make_denoiser(FunctionNetwork(network), {}, "x0", branches(3), guidance)
    sampler, x = PlusPlus(end="zero"), jnp.linspace(-3, 3, 3).reshape(3, 1, 1, 1)
    rows = sampler.steps(gaussian.SCHEDULE, 6)
    got = sample(sampler, denoiser, x, rows, KEYS[:3])
    _, sigma = sampler.grid(gaussian.SCHEDULE, 6)
    x = np.asarray(x, np.float64)
    for i in range(6):
        u, c = (0.3 * x / np.sqrt(1 + sigma[i] ** 2) + value for value in (-0.5, 0.5))
        x = u + 2 * (c - u) + sigma[i + 1] * (x - u) / sigma[i]
    np.testing.assert_allclose(got, x, rtol=1e-4)


def test_guidance_from_outside_keeps_its_memory_from_row_to_row_and_from_chunk_to_chunk():
    scale, decay = jnp.array([2.0, 3.0]), jnp.array([0.5, 0.0])
    denoiser = make_denoiser(FunctionNetwork(network), {}, "x0", branches(2), Momentum(scale, decay))
    sampler, x = SAMPLERS["ddim"](), jnp.array([1.0, -2.0]).reshape(2, 1, 1, 1)
    rows = repeat(sampler.steps(gaussian.SCHEDULE, 7), 2)
    state = sampler.rule.init(x).replace(memory=denoiser.init(x))
    for part in chunks(rows, 3):
        state = scan_rows(sampler.rule, denoiser, state, part, KEYS[:2])
    _, sigma = sampler.grid(gaussian.SCHEDULE, 7)
    x, mean = np.asarray(x, np.float64), np.zeros((2, 1, 1, 1))
    for i in range(7):
        u, c = (0.3 * x / np.sqrt(1 + sigma[i] ** 2) + value for value in (-0.5, 0.5))
        mean = np.array([0.5, 0.0]).reshape(2, 1, 1, 1) * mean + c - u
        x0 = u + np.array([2.0, 3.0]).reshape(2, 1, 1, 1) * mean
        x = x0 + sigma[i + 1] / sigma[i] * (x - x0)
    np.testing.assert_allclose(state.x, x, rtol=1e-4)
