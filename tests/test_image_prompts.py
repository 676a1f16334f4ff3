"""Image prompts: pictures beside the prompt, through IP-Adapters of every kind."""

import dataclasses

import jax
import numpy as np
import pytest

import sdjax
from sdjax import convert
from sdjax.config import VisionConfig
from sdjax.convert import CheckpointError
from sdjax.convert.parts.ip_adapter import ip_adapter_table
from sdjax.nn.ip_adapter import IPAdapterConfig, attention_paths
from sdjax.nn.networks import NETWORKS
from sdjax.tasks.image_prompt_texts import parse, read_image_prompt
from sdjax.tasks.image_prompts import ImagePrompt, block_weights

import models
import reference
from checks import count_compilations

FEW = {"num_steps": 2, "height": 64, "width": 64, "sampler": "euler"}
WIDTHS = tuple(width for _, width in attention_paths(models.TINY.unet))
VISION = VisionConfig(image_size=28, patch_size=14, width=32, layers=2, heads=2, projection=24)
CONFIGS = {
    "linear": IPAdapterConfig("linear", 24, 32, WIDTHS, 4),
    "face": IPAdapterConfig("face", 8, 32, WIDTHS, 3),
    "mlp": IPAdapterConfig("mlp", 32, 32, WIDTHS),
    "resampler": IPAdapterConfig("resampler", 32, 32, WIDTHS, tokens=5, width=32, depth=2, heads=2),
}


def file_of(kind, config=None):
    """Returns the tensors of a random IP-Adapter's file."""
    return {
        entry.name: reference.fill(entry.name, entry.shape)
        for entry in ip_adapter_table(config or CONFIGS[kind]).entries
    }


def adapter(kind="linear"):
    return convert.load_ip_adapter(file_of(kind), models.TINY)


@pytest.fixture(scope="module")
def encoder():
    return VISION, models.fill_tree(NETWORKS["vision"].shapes(VISION))


def made(*prompts, **options):
    pipe = models.pipeline()
    options = {"seed": [5] * len(prompts), **FEW, **options}
    return np.stack(list(sdjax.text_to_image(pipe, "a cat", image_prompts=list(map(list, prompts)), **options)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_file_says_what_kind_it_is_and_is_read_whole(kind):
    tensors = file_of(kind)
    loaded = convert.load_ip_adapter(tensors, models.TINY)
    assert loaded.config == CONFIGS[kind]
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == sum(a.size for a in tensors.values())
    name = "ip_adapter.3.to_k_ip.weight"
    wrong = {**tensors, "image_proj.other": np.zeros(3, "f"), name: tensors[name][:, :-1]}
    with pytest.raises(CheckpointError, match=rf"{name} has the shape \[32, 31\] instead of \[32, 32\]"):
        convert.load_ip_adapter(wrong, models.TINY)
    with pytest.raises(CheckpointError, match="image_proj.other"):
        convert.load_ip_adapter({**tensors, "image_proj.other": np.zeros(3, "f")}, models.TINY)
    renamed = {
        name.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules."): a
        for name, a in tensors.items()
    }
    assert convert.load_ip_adapter(renamed, models.TINY).config == CONFIGS[kind]


def test_other_models_and_other_files_are_refused():
    other = dataclasses.replace(CONFIGS["linear"], attentions=(64, 64))
    with pytest.raises(CheckpointError, match=r"a UNet of 2 cross-attentions \(64 channels\)"):
        convert.load_ip_adapter(file_of("linear", other), models.TINY)
    with pytest.raises(CheckpointError, match="it holds no IP-Adapter"):
        convert.load_ip_adapter({"a.weight": np.zeros((2, 2), "f")})
    plus = {**file_of("face"), "image_proj.perceiver_resampler.proj_in.weight": np.zeros((2, 2), "f")}
    with pytest.raises(CheckpointError, match="FaceID Plus"):
        convert.load_ip_adapter(plus)


def test_pictures_of_a_batch_have_their_own_and_other_values_compile_nothing(encoder):
    one, two = models.picture(seed=1), models.picture(seed=2)

    def prompt(image, **options):
        return [ImagePrompt(adapter(), image, encoder=encoder, **options)]

    got = made(prompt(one), prompt(two), prompt(one, weight=0), prompt(one, start=0.5))
    plain = made([], [], [], [])
    np.testing.assert_array_equal(got[2], plain[0])
    different = [got[0], got[1], got[3], plain[0]]
    assert all((a != b).any() for i, a in enumerate(different) for b in different[:i])
    others = prompt(two, weight=0.3), prompt(one, end=0.5), prompt(two, blocks="style"), prompt(one, negative=two)
    assert count_compilations(lambda: made(*others)) == 0


def test_masks_limit_the_effect(encoder):
    prompt = ImagePrompt(adapter(), models.picture(), encoder=encoder)
    black, white = (dataclasses.replace(prompt, mask=np.full((32, 32), level, np.uint8)) for level in (0, 255))
    got = made([black], [white])
    np.testing.assert_array_equal(got[0], made([], [])[0])
    assert np.abs(got[1].astype(int) - made([prompt], [prompt])[0]).max() <= 1
    one_window = made([white], [black], window=64)
    assert np.abs(one_window.astype(int) - got[::-1]).max() <= 1


def test_several_pictures_and_tokens(encoder):
    pictures = [models.picture(seed=1), models.picture(seed=2)]
    for kind, tokens in (("linear", 8), ("resampler", 10), ("mlp", 10)):
        read = ImagePrompt(adapter(kind), pictures, encoder=encoder).encode(models.TINY)
        assert read.likeness == (tokens, False)
        assert read.keys_and_values[0].keys.shape == (2, tokens, WIDTHS[0])
    assert (read.away[0] == read.away[1]).all()  # of a picture whose pixels are zeros


def test_block_weights_follow_stable_diffusion():
    unet = sdjax.UNetConfig()
    names = [*(f"IN{n:02}" for n in (1, 2, 4, 5, 7, 8)), "M", *(f"OUT{n:02}" for n in range(3, 12))]

    def of(blocks):
        return {name: w for name, w in zip(names, block_weights(blocks, unet).values(), strict=True) if w}

    assert of("composition") == {"IN07": 0.25, "IN08": 1}
    assert list(of("style")) == ["IN01", "IN02", "IN04", "IN05", *(f"OUT{n:02}" for n in range(5, 12))]
    assert list(block_weights(range(16), unet).values()) == list(range(16))
    with pytest.raises(ValueError, match="each of the 16 cross-attentions"):
        block_weights([1, 2], unet)


def test_texts_name_files(tmp_path, encoder):
    np.save(tmp_path / "face.npy", np.ones(8, "f"))
    read = parse(f"ip.bin,embedding={tmp_path / 'face.npy'},weight=0.5,start=0.25,blocks=1/0/1/0")
    assert (read.adapter, read.weight, read.start, read.blocks) == ("ip.bin", 0.5, 0.25, (1, 0, 1, 0))
    assert parse("ip.bin,image=a.png,image=b.png").image == ["a.png", "b.png"]
    away = dataclasses.replace(read, adapter=adapter("face")).encode(models.TINY)
    assert not away.away.any()
    assert away.encoded.shape == (1, 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ip.bin", "has either image"),
        ("ip.bin,cat.png", "is ADAPTER,image=FILE and further KEY=VALUE"),
        ("ip.bin,image=a.png,weight=heavy", "are numbers; got 'heavy'"),
        ("ip.bin,image=a.png,start=0.5,end=0.5", "ends after its start"),
        ("ip.bin,image=a.png,mask=a,mask=b", "mask is given twice"),
        ("ip.bin,image=a.png,blocks=colour", "are numbers; got 'colour'"),
        ("ip.bin,embedding=nothing.npy", "cannot be read"),
    ],
)
def test_bad_texts_are_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError, match=said):
        read_image_prompt(text, models.TINY)


def test_without_an_encoder_or_with_another_one(encoder):
    prompt = ImagePrompt(adapter(), models.picture())
    with pytest.raises(ValueError, match="needs an image encoder"):
        prompt.encode(models.TINY)
    with pytest.raises(ValueError, match="takes 8 numbers|FaceID"):
        dataclasses.replace(prompt, adapter=adapter("face"), encoder=encoder).encode(models.TINY)
    other = dataclasses.replace(VISION, projection=16), encoder[1]
    with pytest.raises(ValueError, match="takes 24 numbers of an image encoder, and this one gives 16"):
        dataclasses.replace(prompt, encoder=other).encode(models.TINY)


def test_the_lora_in_a_face_adapter_changes_the_attention_that_it_counts() -> None:
    tensors, rng = file_of("face"), np.random.default_rng(0)
    width, context = WIDTHS[1], models.TINY.unet.context_dim
    shapes = {"2.to_out": (width, width), "3.to_k": (context, width)}  # the second block's two attentions
    for name, (inputs, outputs) in shapes.items():
        tensors[f"ip_adapter.{name}_lora.down.weight"] = rng.normal(size=(2, inputs)).astype(np.float32)
        tensors[f"ip_adapter.{name}_lora.up.weight"] = rng.normal(size=(outputs, 2)).astype(np.float32)
    loaded = convert.load_ip_adapter(tensors, models.TINY)
    block = attention_paths(models.TINY.unet)[1][0].removesuffix("/attn2")
    assert list(loaded.lora) == [f"unet/{block}/attn1/to_out_0/kernel", f"unet/{block}/attn2/to_k/kernel"]
    change = loaded.lora[f"unet/{block}/attn2/to_k/kernel"]
    factors = (tensors[f"ip_adapter.3.to_k_lora.{one}.weight"] for one in ("up", "down"))
    np.testing.assert_allclose(change.difference(np.zeros((context, width), "f")), np.matmul(*factors).T, rtol=1e-5)
    (use,) = ImagePrompt(loaded, embedding=np.ones(8, np.float32), weight=0.5, end=0.5).encode(models.TINY).uses
    assert (use.strength.unet, use.span) == (0.5, (0, 0.5))
    del tensors["ip_adapter.2.to_out_lora.up.weight"]
    with pytest.raises(CheckpointError, match="to_out_lora.down.weight has no counterpart"):
        convert.load_ip_adapter(tensors, models.TINY)
    tensors["ip_adapter.2.to_out_lora.up.weight"] = tensors["ip_adapter.99.to_q_lora.up.weight"] = np.ones((9, 2), "f")
    with pytest.raises(CheckpointError, match="99"):
        convert.load_ip_adapter(tensors | {"ip_adapter.99.to_q_lora.down.weight": np.ones((2, 9), "f")}, models.TINY)
