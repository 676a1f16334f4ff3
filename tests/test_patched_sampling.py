"""Additions of a network to sampling: patches with arrays of each image, and a memory from call to call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters import FreeU, FreeUNumbers
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.denoiser import make_denoiser
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.pipeline import placement
from sdjax.pipeline.model import make_keys
from sdjax.samplers import DDIM, Linear, chunks, repeat, scan_rows
from sdjax.schedule import NoiseSchedule

import models

SLOW = pytest.mark.slow  # compiles the same network again


@pytest.mark.parametrize(
    ("count", "parallel"), [(1, "jit"), pytest.param(2, "jit", marks=SLOW), pytest.param(2, "pmap", marks=SLOW)]
)
def test_a_patch_has_numbers_of_each_image_and_one_image_may_go_without(count, parallel):
    pipe, mesh = models.pipeline(), placement.make_mesh(jax.devices()[:count])
    where = {"mesh": mesh, "parallel": parallel}
    keys = placement.split(make_keys([1, 2]), mesh)
    contexts = [pipe.encode_prompt([prompt] * 2, **where) for prompt in ("", "a cat")]
    numbers = FreeUNumbers(*(jnp.array([1.0, factor]) for factor in (1.5, 1.6, 0.9, 0.2)))
    noise = pipe.noise(keys, 64, 64, **where)
    rows = repeat(DDIM().steps(pipe.schedule, 3), 2)

    def run(own, **patches):
        branches = [Conditioning(context, patches=own) for context in contexts]
        return pipe.sample(Linear(), rows, 14.6 * noise, keys, branches, ClassifierFree(4.0), **patches, **where).x

    plain, patched = run(()), run((numbers,), patches=[FreeU()])
    np.testing.assert_allclose(patched[0], plain[0], atol=1e-4)  # float32 rounding of a program of its own
    assert np.abs(patched[1] - plain[1]).max() > 1e-2


@dataclasses.dataclass(frozen=True)
class Remembering:
    """A network that puts out the mean of all inputs so far: as one that uses features again would keep them."""

    def init(self, params, x):
        return {"sum": jnp.zeros_like(x), "calls": jnp.zeros(len(x))}

    def __call__(self, params, x, t, conditioning, memory):
        memory = {"sum": memory["sum"] + x + conditioning.label[:, None, None, None], "calls": memory["calls"] + 1}
        return memory["sum"] / memory["calls"][:, None, None, None], memory


def test_a_network_keeps_a_memory_of_each_branch():
    labels = [jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])]
    branches = [Conditioning(label=label) for label in labels]
    denoiser = make_denoiser(Remembering(), {}, "x0", branches, ClassifierFree(2.0))
    sampler, x = DDIM(), jnp.array([1.0, -2.0]).reshape(2, 1, 1, 1)
    rows = repeat(sampler.steps(NoiseSchedule(), 7), 2)
    state = Linear().init(x).replace(memory=denoiser.init(x))
    for part in chunks(rows, 3):
        state = scan_rows(Linear(), denoiser, state, part, make_keys([0, 0]))
    _, sigma = sampler.grid(NoiseSchedule(), 7)
    x, sums = np.array([1.0, -2.0]), np.zeros((2, 2))
    for i in range(7):
        sums = sums + x / np.sqrt(1 + sigma[i] ** 2) + np.array(labels)
        unconditional, conditional = sums / (i + 1)
        x0 = unconditional + 2 * (conditional - unconditional)
        x = x0 + sigma[i + 1] / sigma[i] * (x - x0)
    np.testing.assert_allclose(state.x.ravel(), x, rtol=1e-4)
