"""Adapters read from tensors in the names of the tools: scales, bundled words, DoRA, OFT, and what is refused.

golden/oft_peft.npz holds weights of layers, PEFT's oft_R with its settings, and what PEFT 0.21.0 merges of them.
"""

import hashlib
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax import configs
from sdjax.adapters.delta import difference_at
from sdjax.adapters.dora import WeightDecomposed
from sdjax.adapters.families import InputOFT, Rotation
from sdjax.convert import CheckpointError, load_adapter
from sdjax.convert.adapters.peft_settings import PeftSettings

import models
import reference

CONFIG = models.TINY
LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PATH = "unet/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
WIDTH = 32
rng = np.random.default_rng(0)
DOWN, UP, BASE = (rng.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (WIDTH, 2), (WIDTH, WIDTH)))
PAIR = {f"lora_unet_{LAYER}.lora_down.weight": DOWN, f"lora_unet_{LAYER}.lora_up.weight": UP}
MAGNITUDES = np.linspace(1, 2, WIDTH, dtype=np.float32)


def change_of(tensors, **options):
    return load_adapter(tensors, CONFIG, **options).adapter[PATH]


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (1.0, 0.5), (0.0, 0.0)])
def test_the_change_is_alpha_by_rank_times_up_times_down(alpha, scale):
    tensors = PAIR if alpha is None else PAIR | {f"lora_unet_{LAYER}.alpha": np.float32(alpha)}
    got = change_of({name: np.asarray(array) for name, array in tensors.items()}).difference(jnp.zeros_like(BASE))
    np.testing.assert_allclose(got, scale * (UP @ DOWN).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "down",
    [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
    ],
)
def test_every_spelling_of_a_layer_is_the_same_layer(down):
    other = down.replace("lora_A", "lora_B").replace("down.weight", "up.weight")
    got = change_of({down: DOWN, other: UP}).difference(jnp.zeros_like(BASE))
    np.testing.assert_allclose(got, (UP @ DOWN).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("piece", ["dora_scale", "lora_magnitude_vector"])
def test_dora_at_other_weights_is_what_the_docs_or_its_trainer_say(piece):
    array = MAGNITUDES[:, None] if piece == "dora_scale" else MAGNITUDES
    tensors = PAIR | {f"lora_unet_{LAYER}.{piece}": array}
    base, change = BASE.T, (UP @ DOWN).T

    def lengths(kernel):
        return np.linalg.norm(kernel, axis=0)

    moved = base + change
    whole = moved * MAGNITUDES / lengths(moved)
    trainer = {
        "dora_scale": moved * (1 + 0.5 * (MAGNITUDES / lengths(moved) - 1)),
        "lora_magnitude_vector": (base + 0.5 * change) * MAGNITUDES / lengths(base + 0.5 * change),
    }[piece]
    for convention, want in ("linear", base + 0.5 * (whole - base)), ("trainer", trainer):
        delta = change_of(tensors, dora=convention)
        assert isinstance(delta, WeightDecomposed)
        np.testing.assert_allclose(base + difference_at(delta, jnp.asarray(base), 0.5), want, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(base + difference_at(delta, jnp.asarray(base), 1.0), whole, rtol=1e-4, atol=1e-4)


def test_bundled_words_are_read_and_what_is_none_is_named():
    width = CONFIG.text.width
    word = {"bundle_emb.cat.clip_l": np.ones((2, width), np.float32)}
    assert load_adapter(PAIR | word, CONFIG).embeddings["cat"].shape == (2, width)
    wrong = {
        "bundle_emb.wide.clip_l": np.ones((2, width + 1), np.float32),
        "bundle_emb.odd.thing": np.ones(width, np.float32),
        "bundle_emb.nan.clip_l": np.full(width, np.nan, np.float32),
    }
    with pytest.raises(CheckpointError) as refused:
        load_adapter(PAIR | wrong, CONFIG)
    assert all(name in str(refused.value) for name in wrong)


@pytest.mark.parametrize(
    "pieces",
    [
        {"lora_down.weight": (2, WIDTH)},
        {"lora_down.weight": (3, WIDTH), "lora_up.weight": (WIDTH, 2)},
        {"hada_w1_a": (WIDTH, 2), "hada_w1_b": (), "hada_w2_a": (WIDTH, 2), "hada_w2_b": (2, WIDTH)},
        {"hada_w1_a": (WIDTH, 0), "hada_w1_b": (0, WIDTH), "hada_w2_a": (WIDTH, 0), "hada_w2_b": (0, WIDTH)},
        {"lokr_w1": (4,), "lokr_w2": (8, 8)},
        {"lokr_w1": (4, 64), "lokr_w2": (8, 8)},
        {"lokr_w1_a": (4,), "lokr_w1_b": (2, 4), "lokr_w2": (8, 8)},
        {"a1.weight": (), "a2.weight": (2, WIDTH), "b1.weight": (WIDTH, 2), "b2.weight": (2, WIDTH)},
        {"oft_blocks": (WIDTH,)},
        {"oft_blocks": (3, 5, 5)},
        {"oft_blocks": (4, 8, 8), "rescale": (7, 1)},
        {"diff": ()},
        {"weight": (5,)},
        {"surprise": (2, 2)},
        {"lora_down.weight": (2, WIDTH), "lora_up.weight": (WIDTH, 2), "dora_scale": (3, 1)},
    ],
)
def test_pieces_that_do_not_fit_are_refused_by_name(pieces):
    tensors = {f"lora_unet_{LAYER}.{name}": np.ones(shape, np.float32) for name, shape in pieces.items()}
    with pytest.raises(CheckpointError, match=re.escape(f"lora_unet_{LAYER}")):
        load_adapter(tensors, CONFIG)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    tensors = {name: array * np.float32(bad) for name, array in PAIR.items()}
    with pytest.raises(CheckpointError, match="not finite"):
        load_adapter(tensors, CONFIG)


def linear(name, inputs, outputs):
    ones = np.ones((2, max(inputs, outputs)), np.float32)
    return {f"{name}.lora_down.weight": ones[:, :inputs], f"{name}.lora_up.weight": ones[:, :outputs].T}


@pytest.mark.parametrize(
    ("family", "tensors", "named"),
    [
        ("sd2_base", linear("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768), "Stable Diffusion 1"),
        ("sd1", linear("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, 1024), "Stable Diffusion 2"),
        (
            "sd2_base",
            linear("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, 320),
            "Stable Diffusion 1",
        ),
        ("sd1", linear("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, 1280), "Stable Diffusion XL"),
        ("sd1", linear("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216), "Flux"),
        ("sd1", linear("diffusion_model.joint_blocks.0.x_block.attn.qkv", 1536, 4608), "Stable Diffusion 3"),
    ],
)
def test_another_models_adapter_is_named_as_such(family, tensors, named):
    with pytest.raises(CheckpointError, match=f"adapter for {named}"):
        load_adapter(tensors, configs.get(family))


@pytest.mark.parametrize("option", ["alpha_0", "dora"])
def test_unknown_conventions_are_refused(option):
    with pytest.raises(ValueError, match=f"{option} is one of"):
        load_adapter(PAIR, CONFIG, **{option: "sometimes"})


GOLDEN = reference.golden("oft_peft")


@pytest.mark.parametrize("case", sorted({name.rpartition("/")[0] for name in GOLDEN if name.endswith("/merged")}))
def test_oft_rotates_the_inputs_as_peft_does(case):
    """Cayley's form and the series of several lengths, the constrained one, and blocks that share a rotation."""
    base, want, vectors = (jnp.asarray(GOLDEN[f"{case}/{name}"]) for name in ("base", "merged", "vectors"))
    config = json.loads(str(GOLDEN[f"{case[0]}/config"]))
    change = InputOFT(vectors, PeftSettings(config, {}).rotation("unet")).change(base)
    assert np.abs(want - base).max() > 1e-2
    np.testing.assert_allclose(base + change, want, rtol=1e-5, atol=2e-6)


def test_peft_files_with_oft_are_read_with_their_settings():
    name = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.oft_R.weight"
    vectors = rng.normal(size=(WIDTH // 4, 6)).astype("f")
    exact = {"peft_type": "OFT", "use_cayley_neumann": False}
    assert change_of({name: vectors}, peft_config=exact).rotation == Rotation(None)
    assert change_of({name: vectors}).rotation == Rotation(5)
    kohya = {f"lora_unet_{LAYER}.oft_R.weight": vectors}  # OneTrainer's spelling
    np.testing.assert_array_equal(change_of(kohya).vectors, vectors)
    for shape in (8, 7), (7, 6), (1, 21), (8, 0):
        with pytest.raises(CheckpointError, match="oft_R"):
            change_of({name: np.ones(shape, "f")})
    with pytest.raises(CheckpointError, match="num_cayley_neumann_terms is a whole number to 50; got 1000"):
        change_of({name: vectors}, peft_config={"num_cayley_neumann_terms": 1000})


def test_half_a_pair_and_wrong_settings_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="it has down, which is no whole change of any kind: it lacks up"):
        change_of({f"lora_unet_{LAYER}.lora_down.weight": DOWN})
    for header, said in (("[1]", "is no JSON object"), ('{"unet.lora_alpha": "x"}', "lora_alpha is a number")):
        save_file(PAIR, tmp_path / "one.safetensors", metadata={"lora_adapter_metadata": header})
        with pytest.raises(CheckpointError, match=f"one.safetensors: .*{said}"):
            load_adapter(tmp_path / "one.safetensors", CONFIG)


def test_hashes_of_a_file_are_civitais(tmp_path):
    """AutoV2 is of the file, AutoV3 of what stands after the header; A1111 writes that of the metadata, if any."""
    path, said = tmp_path / "one.safetensors", "0123456789abcdef" * 4
    for metadata, short in (None, None), ({"sshs_model_hash": said}, said[:12]), ({"sshs_model_hash": "x\n"}, None):
        save_file(PAIR, path, metadata=metadata)
        data = path.read_bytes()
        rest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]
        loaded = load_adapter(path, CONFIG)
        assert loaded.info.hashes == {"AutoV2": hashlib.sha256(data).hexdigest()[:10], "AutoV3": rest}
        assert loaded.short_hash == (short or rest)
        assert f"hashes: AutoV2 {loaded.info.hashes['AutoV2']}, AutoV3 {rest}" in loaded.info.lines()
