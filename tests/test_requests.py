"""Requests: options of each picture, mixtures in one batch, starting noise, encoded prompts, latents as output."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.pictures.image import to_uint8
from sdjax.samplers import SAMPLERS
from sdjax.tasks import request as module
from sdjax.tasks.computing import Computing, ComputingOptions
from sdjax.tasks.expand import expand
from sdjax.tasks.make_batch import batch_of
from sdjax.tasks.request import Request

import models
from checks import count_compilations, near

ONE = {"devices": jax.devices()[:1]}
MIXED = [
    Request("a cat", seed=1, sampler="ddim", num_steps=7, guidance_scale=4.0),
    Request("a dog", negative_prompt="blurry", seed=2**40, sampler="dpmpp_2m", num_steps=4, guidance_scale=7.0),
    Request("a fox", seed=3, sampler="heun", num_steps=3, guidance_scale=1.0),
    Request("an owl", seed=4, sampler="euler_ancestral", num_steps=6, guidance_scale=9.0, guidance_rescale=0.7),
]


def test_pictures_of_a_mixture_are_those_that_are_made_alone():
    pipe = models.pipeline()
    together = sdjax.generate(pipe, MIXED, **ONE)
    assert together.shape == (4, 64, 64, 3)
    for request, picture in zip(MIXED, together):
        assert near(sdjax.generate(pipe, [request], **ONE)[0], picture)  # one 8-bit level


def test_another_mixture_of_the_same_size_compiles_nothing():
    pipe = models.pipeline()
    sdjax.generate(pipe, MIXED, **ONE)
    others = [
        Request("a hen", seed=9, sampler=name, num_steps=steps, guidance_scale=scale, guidance_rescale=rescale)
        for name, steps, scale, rescale in zip(("lms", "dpm2_ancestral", "plms", "unipc"), (3, 2, 11, 4),
                                               (1.0, 2.0, 3.5, 6.0), (0.0, 0.3, 0.0, 1.0))
    ]  # fmt: skip
    assert count_compilations(lambda: sdjax.generate(pipe, others, **ONE)) == 0
    assert count_compilations(lambda: sdjax.generate(pipe, MIXED[::-1], **ONE)) == 0


def test_another_mixture_of_prompts_compiles_nothing():
    pipe = models.pipeline()
    prompts = ["a cat", "a (red:1.3) cat BREAK a dog", "a cat AND a dog :0.6", "a [cat:dog:0.5]"]
    others = ["a hen", "a fox BREAK [a hen]", "an owl AND a fox :0.2", "an [owl:hen:0.5]"]
    first, second = ([Request(text, seed=1, num_steps=3) for text in texts] for texts in (prompts, others))
    sdjax.generate(pipe, first, **ONE)
    assert count_compilations(lambda: sdjax.generate(pipe, second, **ONE)) == 0


def test_lists_in_a_task_are_requests():
    pipe = models.pipeline()
    fields = [field.name for field in dataclasses.fields(Request) if field.name not in ("prompt", *module.ARRAYS)]
    lists = {name: [getattr(request, name) for request in MIXED] for name in fields}
    prompts = [request.prompt for request in MIXED]
    np.testing.assert_array_equal(
        sdjax.text_to_image(pipe, prompts, **lists, **ONE), sdjax.generate(pipe, MIXED, **ONE)
    )
    of_one = expand("a cat", num_steps=[3, 4], sampler=("ddim", "heun"), seed=5)  # as many pictures as entries
    assert [(r.prompt, r.num_steps, r.sampler, r.seed) for r in of_one] == [
        ("a cat", 3, "ddim", 5), ("a cat", 4, "heun", 6)
    ]  # fmt: skip
    of_two = expand(["a", "b"], num_images=2, guidance_scale=[1, 2, 3, 4], negative_prompt=["x", "y"])
    assert [(r.prompt, r.guidance_scale, r.negative_prompt) for r in of_two] == [
        ("a", 1, "x"), ("a", 2, "x"), ("b", 3, "y"), ("b", 4, "y")
    ]  # fmt: skip


def test_sizes_are_groups_and_results_come_in_the_order_asked():
    pipe, seen = models.pipeline(), []
    sides = [64, 80, 64]
    made = sdjax.text_to_image(pipe, "a cat", height=sides, seed=[5, 6, 7], num_steps=[3, 2, 4],
                               progress=lambda *counts: seen.append(counts), **ONE)  # fmt: skip
    assert [one.shape for one in made] == [(side, 64, 3) for side in sides]
    assert seen == [(4, 6), (6, 6)]  # the first and the last picture share four calls
    for i in (1, 2):
        alone = sdjax.text_to_image(pipe, "a cat", height=sides[i], seed=5 + i, num_steps=[3, 2, 4][i], **ONE)[0]
        assert near(made[i], alone)


def test_an_adaptive_sampler_shares_no_batch_and_its_place_is_kept():
    pipe = models.pipeline()
    requests = [Request("a", seed=1, num_steps=3), Request("a", seed=1, sampler="dpm_solver_adaptive", num_steps=9)]
    made = sdjax.generate(pipe, requests[::-1], **ONE)
    for request, picture in zip(requests, made[::-1]):
        assert near(sdjax.generate(pipe, [request], **ONE)[0], picture)


def test_each_picture_of_a_folder_has_its_own_options():
    pipe, given = models.pipeline(), [models.picture(seed=i) for i in range(2)]
    options = {"num_steps": [4, 10], "sampler": ["ddim", "euler"], "strength": 0.5, **ONE}
    made = sdjax.image_to_image(pipe, given, "a cat", seed=[3, 4], **options)
    alone = sdjax.image_to_image(pipe, given[1], "a cat", seed=4, num_steps=10, sampler="euler", strength=0.5, **ONE)
    assert near(made[1], alone[0])
    # A strength that leaves steps to one of two pictures only
    ends = sdjax.image_to_image(pipe, given, "a cat", seed=[3, 4], strength=0.2, num_steps=[3, 10], **ONE)
    trip = sdjax.image_to_image(pipe, given[0], seed=3, strength=0, **ONE)
    assert near(ends[0], trip[0])


def test_samplers_from_outside_share_a_batch_unless_they_end_in_their_own_way():
    class Outside:
        def steps(self, schedule, num_steps):
            return SAMPLERS["ddim"]().steps(schedule, num_steps)

    class Ending(Outside):
        def final(self, state, rows):
            return state.x

    which = [Outside(), "heun", Ending(), Outside(), "dpm_solver_adaptive"]
    requests = [Request("a", sampler=one, num_steps=2) for one in which]
    assert batch_of(models.pipeline(), requests, Computing()).groups() == [[0, 1, 3], [2], [4]]


def test_a_second_pass_that_has_steps_for_one_of_two_pictures_only():
    pipe, options = models.pipeline(), {"enlarge": 1, "strength": 0.2, **ONE}
    made = sdjax.two_pass(pipe, "a cat", seed=[3, 4], num_steps=[3, 8], **options)
    for picture, seed, steps in zip(made, (3, 4), (3, 8)):
        assert near(picture, sdjax.two_pass(pipe, "a cat", seed=seed, num_steps=steps, **options)[0])


def test_rescaled_guidance_has_the_deviation_without_guidance():
    """One step of DDIM from pure noise: x0 of the guided output, whose deviation rescale 1 makes that of scale 1's."""
    pipe = models.pipeline()
    options = {"num_steps": 1, "output": "latent", "seed": 1, "sampler": "euler", **ONE}
    plain, guided, rescaled = (
        sdjax.text_to_image(pipe, "a cat", guidance_scale=scale, guidance_rescale=rescale, **options)
        for scale, rescale in ((1.0, 0.0), (30.0, 0.0), (30.0, 1.0))
    )
    noise = sdjax.text_to_image(pipe, "a cat", guidance_scale=1.0, **options)
    assert not np.allclose(guided, rescaled)
    assert np.std(rescaled) < np.std(guided)
    np.testing.assert_array_equal(plain, noise)


def test_latents_are_the_noise_that_sampling_starts_from():
    from sdjax.pipeline.model import make_keys

    pipe = models.pipeline()
    drawn = np.asarray(pipe.noise(make_keys([8, 9]), 64, 64))[:2]
    want = sdjax.text_to_image(pipe, "a cat", seed=[8, 9], num_steps=3, **ONE)
    np.testing.assert_array_equal(sdjax.text_to_image(pipe, "a cat", latents=drawn, num_steps=3, **ONE), want)
    mixed = sdjax.text_to_image(pipe, "a cat", seed=[8, 0], latents=[None, drawn[1]], num_steps=3, **ONE)
    np.testing.assert_array_equal(mixed, want)
    same = sdjax.text_to_image(pipe, "a cat", num_images=2, latents=drawn[0], num_steps=3, **ONE)
    np.testing.assert_array_equal(same[0], same[1])
    given = models.picture()
    by_seed, by_noise = (
        sdjax.image_to_image(pipe, given, "a cat", seed=8, num_steps=4, **more, **ONE)
        for more in ({}, {"latents": drawn[0]})
    )
    np.testing.assert_array_equal(by_seed, by_noise)


@pytest.mark.slow
def test_latents_that_come_out_decode_to_the_pictures():
    pipe, options = models.pipeline(), {"seed": [1, 2], "num_steps": 3, **ONE}
    latents = sdjax.text_to_image(pipe, "a cat", output="latent", **options)
    assert latents.shape == (2, 8, 8, 4)
    assert latents.dtype == np.float32
    want = sdjax.text_to_image(pipe, "a cat", **options)
    np.testing.assert_array_equal(to_uint8(np.asarray(pipe.decode(latents))), want)
    enlarged = sdjax.two_pass(pipe, "a cat", enlarge=1.5, output="latent", **options)
    assert enlarged.shape == (2, 12, 12, 4)


def test_encoded_prompts_are_the_prompts():
    pipe, options = models.pipeline(), {"seed": [1, 2], "num_steps": 3, "guidance_scale": 5.0, **ONE}
    want = sdjax.text_to_image(pipe, ["a cat", "a dog"], negative_prompt="blurry", **options)
    encoded, against = (np.asarray(pipe.encode_prompt(texts)) for texts in (["a cat", "a dog"], ["blurry"] * 2))
    by_both = {"prompt_embeds": encoded, "negative_prompt_embeds": against[0], **options}
    assert near(sdjax.text_to_image(pipe, **by_both), want)  # encoded on two devices: sums of another order
    requests = [
        Request("a cat", negative_prompt="blurry", seed=1, num_steps=3, guidance_scale=5.0),
        Request(prompt_embeds=encoded[1], negative_prompt="blurry", seed=2, num_steps=3, guidance_scale=5.0),
    ]
    assert near(sdjax.generate(pipe, requests, **ONE), want)


def test_every_option_has_one_home():
    """The tasks' options are the fields of Request and Computing, with their defaults, and num_images."""
    fields = {field.name: field.default for kind in (Request, Computing) for field in dataclasses.fields(kind)}
    taken = inspect.signature(sdjax.text_to_image).parameters
    assert set(taken) - {"pipe"} == set(fields) | {"num_images"}
    for name, value in fields.items():
        assert name == "prompt" or taken[name].default == value
    assert set(ComputingOptions.__annotations__) == {field.name for field in dataclasses.fields(Computing)}


REFUSED = [
    ({"num_steps": [3, 4], "seed": [1, 2, 3]}, "one num_steps, or one for each of the 3 pictures; got 2"),
    ({"sampler": []}, "one sampler, or one for each of the 1 pictures; got 0"),
    ({"sampler": ["ddim", "dimm"]}, "unknown sampler 'dimm'"),
    ({"guidance_rescale": 1.5}, "guidance_rescale is a number from 0 to 1; got 1.5"),
    (
        {"latents": np.zeros((8, 8, 3))},
        r"latents must have the shape \[8, 8, 4\] for this model and size; got \[8, 8, 3\]",
    ),
    ({"latents": np.full((8, 8, 4), np.nan)}, "latents must be finite numbers"),
    ({"latents": "noise"}, "latents must be finite numbers"),
    ({"prompt_embeds": np.zeros((77, 32))}, "give either prompt or prompt_embeds, not both"),
    (
        {"prompt": "", "prompt_embeds": np.zeros((77, 31))},
        r"prompt_embeds must have the shape \[77, 32\] for .*; got \[77, 31\]",
    ),
    (
        {"negative_prompt": "x", "negative_prompt_embeds": np.zeros((77, 32))},
        "give either negative_prompt or negative_prompt_embeds",
    ),
    ({"latents": np.zeros((8, 8, 4), complex)}, "latents must be finite numbers"),
    ({"num_steps": "3"}, "num_steps is a whole number from 1 up; got '3'"),
    ({"eta": [[0.5]]}, "eta is a finite number from 0 up"),
    ({"spacing": {"even"}}, "spacing is a text; got {'even'}"),
    ({"output": "pil"}, "unknown output 'pil'.*; the known ones are pixels, latent"),
    ({"on_step": 3}, "on_step is a function of a step; got 3"),
    ({"height": [64, 100]}, "nearest is 96 or 104"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_options_are_refused_with_a_sentence(arguments, message, monkeypatch):
    monkeypatch.setattr("sdjax.pipeline.model.Pipeline.on", None)  # no network is run
    with pytest.raises(ValueError, match=message) as caught:
        sdjax.text_to_image(models.pipeline(), **{"prompt": "a cat", **ONE, **arguments})
    assert "\n" not in str(caught.value)


def test_numbers_of_a_request_may_be_arrays():
    made = expand("a cat", num_steps=jnp.array([2, 3]), eta=jnp.array([0.5, 1.0]), guidance_scale=np.float32([3, 4]))
    assert [(type(one.num_steps), one.num_steps, one.eta) for one in made] == [(int, 2, 0.5), (int, 3, 1.0)]


def test_a_request_names_our_argument_for_anothers():
    with pytest.raises(TypeError, match="Request has no argument num_inference_steps: here it is num_steps"):
        Request("a cat", num_inference_steps=3)


def test_generate_takes_requests_alone():
    for wrong in ([], "a cat", ["a cat"], Request("a cat"), None):
        with pytest.raises(ValueError, match=r"requests must be a sequence of at least one sdjax.Request; got"):
            sdjax.generate(models.pipeline(), wrong)
    with pytest.raises(TypeError, match="no task has an argument seeed"):
        sdjax.generate(models.pipeline(), MIXED, seeed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_its_picture_beside_another(name):
    pipe = models.pipeline()
    requests = [
        Request("a cat", seed=1, num_steps=9, sampler="plms"),
        Request("a dog", seed=2, num_steps=4, sampler=name),
    ]
    assert near(sdjax.generate(pipe, requests, **ONE)[1], sdjax.generate(pipe, requests[1:], **ONE)[0])
