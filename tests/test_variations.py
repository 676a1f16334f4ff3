"""Image variations: the network's conditioning, mixing, noise levels, priors, devices, refusals."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import sdjax
from sdjax import pictures
from sdjax.config import PriorConfig, TextConfig, VisionConfig
from sdjax.diffusion import unclip
from sdjax.nn import VisionEncoder
from sdjax.nn.prior import PriorTransformer, ProjectedTextEncoder
from sdjax.pictures import preprocess
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline, make_keys
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.samplers.noise import EMBEDDING, draw_noise
from sdjax.tasks import variations
from sdjax.tasks.make_batch import make_batch
from sdjax.tasks.prior import Prior

import models
from checks import near

D = 16
# Two levels: with one a label changes a picture by a level or two only
UNET = dataclasses.replace(
    models.TINY.unet, channels=(32, 64), heads=(2, 4), mid_heads=4, transformer_depth=(1, 1),
    self_attention=(True, True), label_dim=2 * D,
)  # fmt: skip
TINY = dataclasses.replace(
    models.TINY,
    unet=UNET,
    vision=VisionConfig(image_size=28, patch_size=14, width=32, layers=1, heads=2, projection=D),
    noise_stats=D,
)
PRIOR = PriorConfig(width=64, heads=2, layers=1, embedding=D, text=TextConfig(width=D, layers=1, heads=1))
FEW = {"num_steps": 2, "height": 64, "width": 64, "devices": jax.devices()[:1]}


@functools.cache
def pipeline() -> Pipeline:
    """Returns a random unCLIP model whose embeddings have a mean and a standard deviation."""
    pipe = models.pipeline(TINY)
    rng = np.random.default_rng(3)
    pipe.params["noise_stats"]["mean"] = rng.normal(size=(1, D)).astype(np.float32)
    pipe.params["noise_stats"]["std"] = rng.uniform(0.5, 2, (1, D)).astype(np.float32)
    return pipe


@functools.cache
def prior() -> Prior:
    """Returns a random prior."""
    x, text = np.zeros((1, D), np.float32), np.zeros((1, 77, D), np.float32)

    def filled(network, *args):
        return models.fill_tree(jax.eval_shape(network.init, jax.random.key(0), *args)["params"])

    network = filled(PriorTransformer(PRIOR), x, np.zeros(1, np.float32), x, text, np.ones((1, 77), bool))
    words = filled(ProjectedTextEncoder(PRIOR.text), np.zeros((1, 77), np.int32))
    return Prior(PRIOR, {"prior": network, "text": words}, Tokenizer())


def picture(seed=0, size=(40, 56)):
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return pictures.resize(small, *size, "bicubic")


def labels(embeddings, levels, weights=None, mix_level=None, seeds=(5,), prompts="a"):
    count = len(embeddings) if weights is None else 1
    batch = make_batch(pipeline(), prompts, {"seed": list(seeds), "devices": FEW["devices"]}, num_inputs=count)
    return np.asarray(variations.make_labels(batch, np.float32(embeddings), levels, weights, mix_level))


def noisy(embedding, level, seed, index):
    stats = pipeline().params["noise_stats"]
    noise = draw_noise(make_keys([seed]), EMBEDDING, index, (D,))
    return np.asarray(unclip.noise_embedding(embedding[None], np.array([level]), noise, stats["mean"], stats["std"]))[0]


def test_an_embedding_is_the_towers_of_the_prepared_picture():
    got = variations.embed_images(pipeline(), [picture(0), picture(1, (30, 30))], mesh=placement.make_mesh())
    pixels = preprocess.clip_pixels([picture(0), picture(1, (30, 30))], 28, dialect="ldm")
    want = jax.jit(VisionEncoder(TINY.vision).apply)({"params": pipeline().params["vision"]}, pixels)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)  # batches of other sizes sum in another order
    other = variations.embed_images(pipeline(), picture(0), dialect="huggingface")
    assert np.abs(other[0] - got[0]).max() > 1e-3


def test_a_label_is_the_noisy_embedding_of_the_pictures_own_seed():
    embeddings = np.random.default_rng(0).normal(size=(2, D)).astype(np.float32)
    got = labels(embeddings, [20, 300], seeds=(5, 9))
    for i, (level, seed) in enumerate(((20, 5), (300, 9))):
        np.testing.assert_allclose(got[i], noisy(embeddings[i], level, seed, 0), rtol=1e-5, atol=1e-5)


def test_mixing_is_the_weighted_mean_of_whole_labels():
    embeddings = np.random.default_rng(0).normal(size=(3, D)).astype(np.float32)
    weights, levels = [1.0, 3.0, -0.5], [0, 50, 700]
    each = [noisy(e, level, 5, j) for j, (e, level) in enumerate(zip(embeddings, levels))]
    want = sum(w * label for w, label in zip(weights, each)) / sum(weights)  # levels too
    np.testing.assert_allclose(labels(embeddings, levels, weights)[0], want, rtol=1e-4, atol=1e-5)
    again = noisy(want[:D], 50, 5, 3)
    np.testing.assert_allclose(labels(embeddings, levels, weights, 50)[0], again, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_variations_and_their_unconditional_half(monkeypatch):
    """The unconditional label is zeros from end to end."""
    told = []
    sample = Pipeline.sampling

    def spy(self, rule, rows, x, keys, branches, *args, **options):
        told.append([np.asarray(branch.label) for branch in branches])
        return sample(self, rule, rows, x, keys, branches, *args, **options)

    monkeypatch.setattr(Pipeline, "sampling", spy)
    made = sdjax.image_variations(pipeline(), [picture(0), picture(1)], "a cat", seed=7, noise_level=10, **FEW)
    assert made.shape == (2, 64, 64, 3)
    ((unconditional, conditional),) = told
    assert not unconditional.any()
    assert unconditional.shape == conditional.shape == (2, 2 * D)
    embeddings = variations.embed_images(pipeline(), [picture(0), picture(1)])
    np.testing.assert_allclose(conditional[1], noisy(embeddings[1], 10, 8, 0), rtol=1e-3, atol=1e-4)
    by_embedding = sdjax.image_variations(pipeline(), prompt="a cat", embeddings=embeddings, seed=7, noise_level=10,
                                          **FEW)  # fmt: skip
    assert near(made, by_embedding)
    turned = [picture(1), picture(0)]  # as many at a time as above: the same program
    again = sdjax.image_variations(pipeline(), turned, "a cat", seed=[8, 7], noise_level=[10, 900], **FEW)
    assert near(again[0], made[1])  # whatever is beside it
    assert not near(again[1], made[0])


def test_mixing_makes_one_picture_a_prompt_and_follows_the_weights():
    both = [picture(0), picture(1)]
    first = sdjax.image_variations(pipeline(), both, ["a", "b"], weights=[1, 0], seed=3, **FEW)
    assert first.shape == (2, 64, 64, 3)
    alone = sdjax.image_variations(pipeline(), both[0], ["a", "b"], seed=3, **FEW)
    assert near(first, alone)
    second = sdjax.image_variations(pipeline(), both, ["a", "b"], weights=[0, 1], seed=3, **FEW)
    assert not near(first, second)


@pytest.mark.parametrize("parallel", placement.PARALLEL)
def test_embeddings_and_labels_may_be_spread_over_devices(parallel):
    given, devices = [picture(i) for i in range(3)], jax.devices()[:2]
    embeddings = variations.embed_images(pipeline(), given, mesh=placement.make_mesh(FEW["devices"]))
    spread = variations.embed_images(pipeline(), given, mesh=placement.make_mesh(devices), parallel=parallel)
    np.testing.assert_allclose(spread, embeddings, rtol=1e-4, atol=1e-5)  # batches of other sizes sum in another order
    batch = make_batch(pipeline(), "a", {"seed": [5, 9, 2], "devices": devices, "parallel": parallel}, num_inputs=3)
    label = variations.make_labels(batch, embeddings, [20, 300, 0], None, None)
    assert len(label.sharding.device_set) == 2
    want = labels(embeddings, [20, 300, 0], seeds=(5, 9, 2))
    np.testing.assert_allclose(label[:3], want, rtol=1e-5, atol=1e-5)


def test_exact_embeddings_are_the_same_bits_alone_and_among_others():
    mesh, given = placement.make_mesh(FEW["devices"]), [picture(i) for i in range(3)]
    together = variations.embed_images(pipeline(), given, mesh=mesh, exact=True)
    for i, one in enumerate(given):
        np.testing.assert_array_equal(variations.embed_images(pipeline(), one, mesh=mesh, exact=True)[0], together[i])
    guessed = prior().embed(["a cat", "a dog"], [4, 5], num_steps=3, exact=True)
    np.testing.assert_array_equal(prior().embed(["a dog"], [5], num_steps=3, exact=True)[0], guessed[1])


@pytest.mark.slow
def test_a_batch_may_be_spread_over_devices():
    options = {**FEW, "seed": 3, "guidance_scale": 1.0}
    want = sdjax.image_variations(pipeline(), [picture(i) for i in range(3)], **options)
    for parallel in ("jit", "pmap"):
        got = sdjax.image_variations(pipeline(), [picture(i) for i in range(3)],
                                     **{**options, "devices": jax.devices()[:2], "parallel": parallel})  # fmt: skip
        assert near(got, want)


@pytest.mark.slow
def test_a_prior_gives_the_embedding_of_a_text():
    made = sdjax.prior_to_image(pipeline(), prior(), ["a cat", "a dog"], seed=4, prior_steps=3, **FEW)
    embeddings = prior().embed(["a cat", "a dog"], [4, 5], num_steps=3)
    want = sdjax.image_variations(pipeline(), prompt=["a cat", "a dog"], embeddings=embeddings, seed=4, **FEW)
    assert near(made, want)
    other = sdjax.prior_to_image(pipeline(), prior(), ["a cat", "a dog"], prior_prompt="a tree", seed=4, prior_steps=3,
                                 **FEW)  # fmt: skip
    assert not near(made, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "at least one picture or embedding is needed"),
        ({"image": picture(), "noise_level": 1000}, "whole number from 0 to 999; got 1000"),
        ({"image": picture(), "noise_level": 1.5}, "whole number from 0 to 999; got 1.5"),
        ({"image": picture(), "noise_level": [1, 2]}, "one for each of the 1 pictures; got 2"),
        ({"image": [picture(), picture()], "weights": [1, -1]}, "their sum must not be 0"),
        ({"image": [picture(), picture()], "weights": [1]}, "one weight for each of the 2 pictures; got 1"),
        ({"image": picture(), "weights": [float("nan")]}, "finite numbers"),
        ({"image": picture(), "mix_noise_level": 5}, "it needs weights"),
        ({"image": picture(), "dialect": "openai"}, "one of ldm, huggingface; got 'openai'"),
        ({"embeddings": np.zeros((1, 5))}, r"this model must be finite numbers \[n, 16\]; got an array \(1, 5\)"),
        ({"image": [picture(), picture()], "prompt": ["a", "b", "c"]}, "one for each of the 2 pictures; got 3"),
        ({"image": picture(), "height": 100}, "height is a multiple of 8"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdjax.image_variations(pipeline(), **{"num_steps": 1, **arguments})


def test_other_models_and_priors_are_refused():
    with pytest.raises(ValueError, match="image_variations needs a model that takes image variations"):
        sdjax.image_variations(models.pipeline(), picture())
    blind = dataclasses.replace(pipeline(), config=dataclasses.replace(TINY, vision=None))
    with pytest.raises(ValueError, match="has no image tower; load one from another file with sdjax.load"):
        sdjax.image_variations(blind, picture())
    wide = dataclasses.replace(prior(), config=PriorConfig())
    with pytest.raises(ValueError, match="embeddings of 16 numbers, the prior makes embeddings of 768"):
        sdjax.prior_to_image(pipeline(), wide, "a cat")
