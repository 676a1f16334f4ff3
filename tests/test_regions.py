"""Regional prompts: parts of a picture with prompts and adapters of their own."""

import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.adapters.delta import LowRank
from sdjax.adapters.regions import RegionArrays
from sdjax.tasks.prompting import Typed
from sdjax.tasks.regions import Region, parse, read_region

import models
from checks import count_compilations

FEW = {"num_steps": 2, "height": 64, "width": 64, "sampler": "euler"}
WHOLE, LEFT = (0, 0, 1, 1), (0, 0, 0.5, 1)


def made(*regions, prompt="a cat", seed=5, **options):
    options = {**FEW, **options}
    pipe = models.pipeline()
    got = sdjax.text_to_image(pipe, prompt, regions=list(map(list, regions)), seed=[seed] * len(regions), **options)
    return np.stack(list(got)).astype(int)


def lora():
    rng = np.random.default_rng(0)
    layers = ["attentions_0/transformer_blocks_0/attn2/to_k", "attentions_0/transformer_blocks_0/attn1/to_q",
              "resnets_0/conv1"]  # fmt: skip

    def change(layer):
        shape = (3, 3, 32, 2) if layer.endswith("conv1") else (32, 2)
        down, up = rng.normal(size=shape).astype("f"), rng.normal(size=(2, 32)).astype("f")
        return LowRank(jnp.asarray(down), jnp.asarray(up), jnp.float32(0.2))

    return {f"unet/down_blocks_0/{layer}/kernel": change(layer) for layer in layers}


@pytest.mark.slow  # compiles networks
def test_a_region_that_is_the_whole_picture_is_its_prompt():
    got = made([Region("a dog", WHOLE)], [Region("a dog", WHOLE, weight=0)], [Region("a dog", LEFT)])
    dog, cat = made([], prompt="a dog")[0], made([])[0]
    assert np.abs(got[0] - dog).max() <= 1
    assert np.abs(got[1] - cat).max() <= 1
    assert np.abs(dog - cat).max() > 3
    assert (got[2] != got[0]).any()


def test_other_regions_compile_nothing(tmp_path):
    made([Region("a dog", LEFT)], [Region("a house", WHOLE, negative_prompt="grey")])
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16] = 255
    others = [Region("a tree", mask, 0.5)], [Region("a car", (8, 8, 16, 16), negative_prompt="old")]
    assert count_compilations(lambda: made(*others)) == 0


def test_a_negative_prompt_of_the_whole_is_the_pictures():
    got = made([Region("a dog", WHOLE, negative_prompt="grey")])
    assert np.abs(got - made([], prompt="a dog", negative_prompt="grey")).max() <= 1


@pytest.mark.slow  # compiles networks
def test_adapters_work_in_their_region_only():
    own = lora()
    everywhere = made([], prompt="a dog", adapters=[(own, 1.0)])
    plain = made([], prompt="a dog")
    got = made([Region("a dog", WHOLE, adapters=[(own, 1.0)])])
    assert np.abs(everywhere - plain).max() > 3
    assert np.abs(got - everywhere).max() <= 1
    half = made([Region("a dog", LEFT, adapters=[(own, 1.0)])], prompt="a dog")
    left, right = (np.abs(half - plain)[:, :, side].mean() for side in (slice(0, 24), slice(40, 64)))
    assert left > 1.25 * right  # attention carries some of it to the other side


def test_texts():
    one = parse("0,0,0.5,1:0.8=a rocket, red ### blurry")
    assert (one.place, one.weight, one.prompt, one.negative_prompt) == (LEFT, 0.8, "a rocket, red", "blurry")
    assert parse("mask.png=a = b").prompt == "a = b"
    assert parse('"m=1.png":0.5=x').place == "m=1.png"
    pixels = read_region("32,0,32,64=x", models.TINY, (64, 64), "no", Typed(""), None, 1)
    assert pixels.mask.mean() == 0.5
    assert pixels.negative_prompt == "no"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a rocket", "a region is PLACE=PROMPT"),
        ("0,0,0.7,x=a", "four numbers or a mask's file"),
        ("0.5,0,0.7,1=a", "a region lies in its picture"),
        ("0,0,0,1=a", "these above 0"),
        ("0,0,1,1:99=a", "a region's weight is a number from 0 to 10"),
        ("100,0,20,20=a", "has none"),
        ("none.png=a", "none.png"),
        (3, "a region is an sdjax.Region"),
    ],
)
def test_bad_regions_are_refused_in_a_sentence(given, said):
    with pytest.raises(ValueError, match=said):
        read_region(given, models.TINY, (64, 64), "", Typed(""), None, 1)


def test_styles_and_choices_are_those_of_the_picture(tmp_path):
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nfilm,{prompt} on film,blurry\n")
    typed = Typed("", styles=("film",), styles_file=str(tmp_path / "styles.csv"), seed=3)
    got = read_region("0,0,1,1={a|a}", models.TINY, (64, 64), "no", typed, None, 1)
    assert (got.prompt, got.negative_prompt) == ("a on film", "no")
    got = read_region(Region("a", WHOLE, negative_prompt="b"), models.TINY, (64, 64), "no", typed, None, 1)
    assert got.negative_prompt == "b, blurry"


def test_a_stage_begins_at_its_timestep():
    contexts = np.arange(8, dtype=np.float32).reshape(1, 2, 4, 1, 1)
    changes = np.array([[[np.inf, 500, 200, -np.inf], [np.inf, np.inf, 100, 50]]], np.float32)
    arrays = RegionArrays(contexts, np.arange(8).reshape(1, 2, 4), changes, np.ones((1, 2, 1, 1)))
    for t, want in (900, [0, 5]), (500, [1, 5]), (200, [2, 5]), (100, [2, 6]), (0, [2, 7]):
        found, lengths = arrays.at(jnp.array([float(t)]))
        np.testing.assert_array_equal(found[0, :, 0, 0], want)
        np.testing.assert_array_equal(lengths[0], want)


@pytest.mark.slow  # compiles networks
def test_a_prompt_that_changes_is_the_pictures():
    def latent(prompt, *regions):
        options = {**FEW, "num_steps": 4, "output": "latent", "regions": list(regions)}
        return np.asarray(sdjax.text_to_image(models.pipeline(), prompt, **options))

    got = latent("a cat", Region("[a dog:a cat:0.5]", WHOLE))
    same, other = (np.abs(got - latent(prompt)).max() for prompt in ("[a dog:a cat:0.5]", "a dog"))
    assert other > 30 * same


@pytest.mark.slow  # compiles networks
def test_a_region_lies_in_the_whole_picture_also_in_windows_and_two_passes():
    wide = {"width": 128, "window": 64}
    half = made([Region("a dog", LEFT)], **wide)
    plain = made([], **wide)
    left, right = (np.abs(half - plain)[:, :, side].mean() for side in (slice(0, 24), slice(104, 128)))
    assert left > 3 * right
    sdjax.two_pass(models.pipeline(), "a", regions=[Region("a dog", LEFT)], enlarge=1.5, **FEW)


def test_what_does_not_go_with_regions_is_refused():
    with pytest.raises(ValueError, match="a region's prompt is one text"):
        made([Region("a AND b", LEFT)])
