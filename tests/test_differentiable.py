"""Gradients through the sampler: against finite differences, with memory that does not grow with the steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.tasks.differentiable import Differentiable

import models
from checks import near

OPTIONS = {"seed": 3, "guidance_scale": 3.0, "devices": jax.devices()[:1]}


@functools.cache
def run(sampler: str = "ddim", num_steps: int = 3) -> Differentiable:
    return sdjax.differentiable(models.pipeline(), "a cat", sampler=sampler, num_steps=num_steps, **OPTIONS)


@jax.jit
def loss_of_noise(noise: jax.Array, run: Differentiable) -> jax.Array:
    return jnp.mean(run.replace(noise=noise).image()[..., 0])  # redness


@jax.jit
def loss_of_context(context: jax.Array, run: Differentiable) -> jax.Array:
    return jnp.mean(run.with_context(context).image()[..., 0])


gradient_of_noise = jax.jit(jax.grad(loss_of_noise))
gradient_of_context = jax.jit(jax.grad(loss_of_context))


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_the_picture_is_that_of_text_to_image(sampler):
    made = np.asarray(jax.jit(Differentiable.image)(run(sampler))[0])
    expected = sdjax.text_to_image(models.pipeline(), "a cat", sampler=sampler, num_steps=3, **OPTIONS)[0]
    assert near(np.clip((made + 1) * 127.5, 0, 255).astype(np.uint8), expected)


@pytest.mark.parametrize(
    ("loss", "gradient", "at"),
    [(loss_of_noise, gradient_of_noise, "noise"), (loss_of_context, gradient_of_context, "context")],
    ids=["noise", "context"],
)
def test_gradients_are_those_of_finite_differences(loss, gradient, at):
    x = jnp.asarray(getattr(run(), at))
    found = gradient(x, run())
    assert np.isfinite(found).all()
    direction = found / jnp.linalg.norm(found)
    # Along the gradient, where the slope is its norm. Central differences; 2 % for float32 and the curvature
    step = 0.02
    slope = (loss(x + step * direction, run()) - loss(x - step * direction, run())) / (2 * step)
    assert slope == pytest.approx(float(jnp.linalg.norm(found)), rel=0.02)
    # And along some other direction
    other = jax.random.normal(jax.random.key(1), x.shape)
    other = other / jnp.linalg.norm(other) + direction
    slope = (loss(x + step * other, run()) - loss(x - step * other, run())) / (2 * step)
    assert slope == pytest.approx(float(jnp.vdot(found, other)), rel=0.03)


def test_one_program_serves_other_seeds_prompts_and_scales():
    gradient_of_noise(run().noise, run())
    before = gradient_of_noise._cache_size()
    other = sdjax.differentiable(
        models.pipeline(), "a dog", num_steps=3, seed=9, guidance_scale=7.0, sampler="heun", devices=OPTIONS["devices"]
    )
    if other.rows.index.shape == run().rows.index.shape:
        gradient_of_noise(other.noise, other)
        assert gradient_of_noise._cache_size() == before


def test_memory_does_not_grow_with_the_number_of_steps():
    """Only the states between rows are stored: for 30 more rows less than the activations of one call."""

    def memory(num_steps: int) -> int:
        made = run("ddim", num_steps)
        compiled = gradient_of_noise.lower(made.noise, made).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = memory(10), memory(40)
    state = 7 * run().noise.nbytes  # x, base, four remembered calls, x0
    assert many - few <= 1.5 * 30 * state
    assert many < 1.2 * few


def test_pictures_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="one size and one kind of sampler"):
        sdjax.differentiable(models.pipeline(), "a", height=[64, 128], devices=OPTIONS["devices"])
