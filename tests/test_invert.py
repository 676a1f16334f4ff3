"""Inversion: from a picture to noise, and back."""

import numpy as np
import pytest

import sdjax
from sdjax.pictures.image import to_float

import models


@pytest.mark.slow
def test_refined_inversion_comes_closer_to_the_picture() -> None:
    """Random weights are far from a model's, so that the way back is long; the built-in model's is below."""
    pipe = models.pipeline()
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    want = np.asarray(pipe.encode_image(to_float(picture)[None]))
    errors = []
    for refinements in (0, 4):
        noise = sdjax.invert(pipe, picture, "a cat", num_steps=40, refinements=refinements)
        assert (noise.shape, noise.dtype) == (want.shape, np.float32)
        again = sdjax.text_to_image(
            pipe, "a cat", latents=list(noise), num_steps=40, guidance_scale=1, output="latent", height=64, width=64
        )
        errors.append(np.linalg.norm(again - want))
    assert errors[1] < errors[0] / 2


@pytest.mark.slow  # compiles the built-in model
def test_the_built_in_model_makes_its_picture_again() -> None:
    pipe, prompt = sdjax.load(), "a rocket on a green background"
    how = {"num_steps": 20, "guidance_scale": 1}
    picture = sdjax.text_to_image(pipe, prompt, seed=1, **how)[0]
    errors = []
    for refinements in (0, 2):
        noise = sdjax.invert(pipe, picture, prompt, num_steps=20, refinements=refinements)
        again = sdjax.text_to_image(pipe, prompt, latents=noise, **how)[0]
        errors.append(np.abs(again.astype(int) - picture).mean())
    assert errors[0] < 12  # measured: 8.4 levels of 255
    assert errors[1] < 2.2  # measured: 1.7, of which the autoencoder alone makes 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "inversion is DDIM's without fresh noise, and ends in noise: leave out sampler"),
        ({"eta": 1.0}, "leave out eta"),
        ({"refinements": 1.5}, "refinements is a whole number"),
        ({"num_steps": 0}, "num_steps is a whole number from 1 up"),
        ({"spacing": "nosuch"}, "unknown spacing 'nosuch'"),
    ],
)
def test_what_inversion_cannot_use_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        sdjax.invert(models.pipeline(), np.zeros((64, 64, 3), np.uint8), **options)
