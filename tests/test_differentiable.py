"""Gradients through the sampler: against finite differences, with memory that does not grow with the steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.config import ScheduleConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.guidance import make_guidance
from sdjax.diffusion.network import FunctionNetwork
from sdjax.pipeline.model import make_keys
from sdjax.pipeline.programs import SampleProgram, VAEProgram
from sdjax.samplers import SAMPLERS, repeat
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.differentiable import Differentiable

import models
from checks import near

OPTIONS = {"seed": 3, "guidance_scale": 3.0, "devices": jax.devices()[:1]}
WIDTH = 64  # of the small network's activations, in latents


@FunctionNetwork
def network(x: jax.Array, t: jax.Array, conditioning: Conditioning) -> jax.Array:
    """A smooth function of x and context with large activations, but cheap to compile."""
    several = jnp.tanh(
        x[..., None] * jnp.linspace(0.5, 1.5, WIDTH) + conditioning.context.mean((1, 2))[:, None, None, None, None]
    )
    return several.mean(-1) * jnp.cos(t / 1000)[:, None, None, None]


def small(sampler: str = "ddim", num_steps: int = 4, seed: int = 0) -> Differentiable:
    """Returns two latents of the small network."""
    made = SAMPLERS[sampler]()
    rows = made.steps(NoiseSchedule(ScheduleConfig()), num_steps)
    contexts = [jax.random.normal(jax.random.key(seed + i), (2, 3, 5)) for i in range(2)]
    return Differentiable(
        noise=jax.random.normal(jax.random.key(seed), (2, 8, 8, 4)),
        branches=tuple(Conditioning(context) for context in contexts),
        guidance=make_guidance([3.0, 2.0], [0.0, 0.5]),
        rows=jax.tree.map(jnp.asarray, repeat(rows, 2)),
        of_noise=jnp.full(2, made.initial(jnp.ones(1), rows)[0]), of_result=jnp.ones(2),
        keys=make_keys([1, 2]), made=None, params={"network": {}, "vae": {}},
        program=SampleProgram(network, "epsilon", made.rule), sampler=made,
        decoder=VAEProgram(models.TINY.vae, "float32"),
    )  # fmt: skip


@jax.jit
def of_noise(noise: jax.Array, run: Differentiable) -> jax.Array:
    return jnp.mean(run.replace(noise=noise).latent() ** 2)


@jax.jit
def of_context(context: jax.Array, run: Differentiable) -> jax.Array:
    return jnp.mean(run.with_context(context).latent() ** 2)


def check_gradient(loss, gradient, x: jax.Array, run: Differentiable, step: float = 1e-2, within: float = 1e-2) -> None:
    """Checks the slope along the gradient, where it is the gradient's norm, by central differences."""
    assert np.isfinite(gradient).all()
    direction = gradient / jnp.linalg.norm(gradient)
    slope = (loss(x + step * direction, run) - loss(x - step * direction, run)) / (2 * step)
    assert slope == pytest.approx(float(jnp.linalg.norm(gradient)), rel=within)


@pytest.mark.few(1)
@pytest.mark.parametrize(("loss", "name"), [(of_noise, "noise"), (of_context, "context")], ids=["noise", "context"])
def test_gradients_are_those_of_finite_differences(loss, name):
    run = small()
    x = getattr(run, name)
    check_gradient(loss, jax.jit(jax.grad(loss))(x, run), x, run)


def test_one_program_serves_other_samplers_seeds_prompts_and_scales():
    gradient = jax.jit(jax.grad(of_noise))
    run, other = small(), small("euler", seed=7)
    gradient(run.noise, run)
    other = dataclasses.replace(other, sampler=run.sampler, guidance=make_guidance([5.0, 4.0], [0.1, 0.2]))
    before = gradient._cache_size()
    gradient(other.noise, other)
    assert gradient._cache_size() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    """Between 10 and 40 steps only the states of 30 more rows are stored, not the network's activations."""

    def memory(num_steps: int) -> int:
        run = small("ddim", num_steps)
        return jax.jit(jax.grad(of_noise)).lower(run.noise, run).compile().memory_analysis().temp_size_in_bytes

    few, many = memory(10), memory(40)
    latent = small().noise.nbytes
    assert many - few <= 2 * 30 * 7 * latent  # a state has seven latents; XLA may keep a copy
    assert many - few < 0.5 * 30 * 2 * WIDTH * latent  # what 30 rows of activations of two branches would take


@functools.cache
def whole() -> Differentiable:
    return sdjax.differentiable(models.pipeline(), "a cat", sampler="euler_ancestral", num_steps=3, **OPTIONS)


@jax.jit
def redness(noise: jax.Array, run: Differentiable) -> jax.Array:
    return jnp.mean(run.replace(noise=noise).image()[..., 0])


@pytest.mark.slow
def test_the_picture_is_that_of_text_to_image_and_has_gradients():
    made = np.asarray(jax.jit(Differentiable.image)(whole())[0])
    expected = sdjax.text_to_image(models.pipeline(), "a cat", sampler="euler_ancestral", num_steps=3, **OPTIONS)[0]
    assert near(np.clip((made + 1) * 127.5, 0, 255).astype(np.uint8), expected)
    gradient = jax.jit(jax.grad(redness))(whole().noise, whole())
    check_gradient(redness, gradient, whole().noise, whole(), step=2e-2, within=2e-2)


def test_pictures_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="one size and one kind of sampler"):
        sdjax.differentiable(models.pipeline(), "a", height=[64, 128], devices=OPTIONS["devices"])
