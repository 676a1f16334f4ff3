"""LAION-400M's model: its text encoder against the reference, its tokenizer, its checkpoint's layouts and refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from parity_depth import bert
from safetensors.numpy import save_file

import sdjax
from sdjax import configs, convert
from sdjax.config import ConfigError, ModelConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.convert.describe.ldm_config import config_from_ldm
from sdjax.nn import TextEncoder
from sdjax.prompts.tokenizer import Tokenizer

import models
import reference

PIECES = [
    "a", "cat", "dog", "photo", "of", "##s", "##graph", "un", "##believ", "##able", ",", ".", "!", "-", "'", "[", "]",
    "東", "京", "cafe", "naive", "1", "##2", "##3", "sep",
]  # fmt: skip
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
SMALL = ModelConfig(
    name="small",
    unet=dataclasses.replace(models.TINY.unet, context_dim=32),
    vae=models.TINY.vae,
    text=TextConfig(kind="bert", vocab_size=len(VOCAB), width=32, layers=2, heads=3, head_dim=8, max_length=16,
                    activation="gelu", bos_token_id=2, eos_token_id=3, pad_token_id=0),
    image_size=64,
)  # fmt: skip


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*VOCAB, ""]), encoding="utf-8")
    return path


def tensors():
    """Returns a single file's tensors, with those of the language model that nobody uses."""
    out = reference.fill_all(convert.tensor_shapes(SMALL, "ldm"))
    out["cond_stage_model.transformer.to_logits.weight"] = np.ones((len(VOCAB), 32), np.float32)
    out["cond_stage_model.transformer.to_logits.bias"] = np.ones(len(VOCAB), np.float32)
    return out


def test_the_text_encoder_equals_the_reference():
    arrays = reference.golden("laion_text")
    spec = json.loads(str(arrays["spec"]))
    text = TextConfig(
        kind="bert", vocab_size=spec["vocab_size"], width=spec["n_embed"], layers=spec["n_layer"], heads=8, head_dim=64,
        activation="gelu", bos_token_id=101, eos_token_id=102, pad_token_id=0,
    )  # fmt: skip
    one = UNetConfig(channels=(32,), num_res_blocks=1, heads=(0,), mid_heads=1, transformer_depth=(1,),
                     self_attention=(True,), context_dim=64)  # fmt: skip
    shapes = convert.tensor_shapes(ModelConfig("laion", unet=one, vae=VAEConfig(channels=(32,)), text=text), "ldm")
    names = [name for name in shapes if name.startswith("cond_stage_model.transformer.")]
    weights = {name: reference.fill(name, shapes[name], spec["weight_seed"]) for name in names}
    got, want = bert(spec, weights, arrays["ids"]), arrays["text"]
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)  # float32 rounding of two implementations


def test_compviss_yaml_describes_it():
    channels = {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "attention_resolutions": [4, 2, 1]}
    unet = {"in_channels": 4, "out_channels": 4, "num_res_blocks": 2, "num_heads": 8, "use_spatial_transformer": True,
            "transformer_depth": 1, "context_dim": 1280, **channels}  # fmt: skip
    vae = {"double_z": True, "z_channels": 4, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
           "attn_resolutions": []}  # fmt: skip
    params = {
        "linear_start": 0.00085, "linear_end": 0.012, "scale_factor": 0.18215, "unet_config": {"params": unet},
        "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": vae}},
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.BERTEmbedder", "params": {"n_embed": 1280, "n_layer": 32},
        },
    }  # fmt: skip
    read = config_from_ldm({"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}})
    assert read == configs.get("laion400m")
    assert read.image_size == 256


def test_its_layouts_are_byte_exact_and_diffusers_has_none(tmp_path, vocab):
    start = tmp_path / "a.safetensors"
    save_file(tensors(), start)
    convert.convert(start, tmp_path / "native", config=SMALL)
    convert.convert(tmp_path / "native", tmp_path / "b.safetensors")
    assert convert.manifest(convert.read(start)) == convert.manifest(convert.read(tmp_path / "b.safetensors"))
    assert not (tmp_path / "native/tokenizer").exists()  # the vocabulary is none of ours
    with pytest.raises(ConfigError, match="hold CLIP's text encoders"):
        convert.convert(start, tmp_path / "d", to="diffusers", config=SMALL)


def test_its_vocabulary_has_to_be_given_once(tmp_path, vocab):
    start = tmp_path / "a.safetensors"
    save_file(tensors(), start)
    with pytest.raises(ValueError, match=r"holds no vocabulary: give the vocab.txt of bert-base-uncased.*--vocab"):
        sdjax.load(start, config=SMALL)
    pipe = sdjax.load(start, config=SMALL, vocab=vocab)
    few = {"num_steps": 2, "seed": 1, "devices": jax.devices()[:1]}
    made = sdjax.text_to_image(pipe, "a photograph of cats", **few)
    assert made.shape == (1, 64, 64, 3)
    pipe.save(tmp_path / "native")
    again = sdjax.load(tmp_path / "native")
    assert again.tokenizer.encode("unbelievable cats") == pipe.tokenizer.encode("unbelievable cats")
    np.testing.assert_array_equal(sdjax.text_to_image(again, "a photograph of cats", **few), made)


def test_its_vocabulary_goes_along_when_it_is_converted(tmp_path, vocab, capsys):
    from sdjax.scripts.main import main

    start = tmp_path / "a.safetensors"
    save_file(tensors(), start)
    convert.convert(start, tmp_path / "native", config=SMALL, vocab=vocab)
    words = sdjax.load(tmp_path / "native").tokenizer
    assert words.encode("unbelievable cats") == Tokenizer.from_vocabulary(vocab).encode("unbelievable cats")
    models.pipeline().save(tmp_path / "clip")
    assert main(["convert", str(tmp_path / "clip"), str(tmp_path / "again"), "--vocab", str(vocab)]) == 2
    assert "a vocabulary was given for a model that has its own" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_vocabulary_that_cannot_be_is_refused(tmp_path, vocab):
    start = tmp_path / "a.safetensors"
    save_file(tensors(), start)
    with pytest.raises(ValueError, match=r"none.txt is no file; a WordPiece vocabulary is one"):
        sdjax.load(start, config=SMALL, vocab=tmp_path / "none.txt")
    short = tmp_path / "short.txt"
    short.write_text("\n".join(VOCAB[:-1]))
    with pytest.raises(ValueError, match=f"the vocabulary has {len(VOCAB) - 1} tokens and the text encoder"):
        sdjax.load(start, config=SMALL, vocab=short)
    for content, fault in (
        ("cat\ndog\n", r"it lacks \[CLS\]"), ("\n".join([*VOCAB, "cat"]), "twice"), (b"\xff\xfe", "not UTF-8"),
    ):  # fmt: skip
        short.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=f"holds no WordPiece vocabulary.*{fault}"):
            Tokenizer.from_vocabulary(short)
    save_file(reference.fill_all(convert.tensor_shapes(models.TINY, "ldm")), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="a vocabulary was given for a model that has its own"):
        sdjax.load(tmp_path / "clip.safetensors", config=models.TINY, vocab=vocab)


def test_a_sequence_is_started_ended_padded_and_cut(vocab):
    tokenizer = Tokenizer.from_vocabulary(vocab)
    cat, s, of = (VOCAB.index(piece) for piece in ("cat", "##s", "of"))
    assert tokenizer(["Cats", "of " * 20], length=6, pad_token_id=0).tolist() == [
        [2, cat, s, 3, 0, 0], [2, of, of, of, of, 3],
    ]  # fmt: skip
    assert tokenizer.cut("a cat of dogs", length=5) == "dogs"
    assert tokenizer.cut("a cat", length=5) == ""


TEXTS = ["a photograph of CATS!", "unbelievable", "naïve café, 123", "東京 dogs", "x" * 120, "a\u200bcat\tdog\n", "",
         "[SEP] cat", "a-cat's photo.", "dog\u00a0cat ½"]  # fmt: skip


@pytest.mark.torch  # with the other comparisons, which need what users do not install
@pytest.mark.filterwarnings("default")
def test_tokens_are_those_of_transformers(vocab):
    transformers = pytest.importorskip("transformers")
    peer = transformers.BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    ours = Tokenizer.from_vocabulary(vocab)
    for text in TEXTS:
        want = peer(text, padding="max_length", truncation=True, max_length=16)["input_ids"]
        assert ours([text], length=16, pad_token_id=0)[0].tolist() == want, text


def test_padding_is_seen_and_order_matters():
    _, params = convert.load(tensors(), config=SMALL)
    encode = jax.jit(lambda ids: TextEncoder(SMALL.text).apply({"params": params["text"]}, ids))
    ids = np.zeros((3, 16), np.int32)
    ids[:, :4] = [[2, 5, 6, 3], [2, 6, 5, 3], [2, 5, 6, 3]]
    ids[2, 10] = 7
    out = np.asarray(encode(ids))
    assert np.abs(out[0] - out[1]).max() > 0.01
    assert np.abs(out[0, 0] - out[2, 0]).max() > 1e-3  # the first token sees the last: no causal mask, none of padding


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"kind": "bert"}, "head_dim is given for the kind"), ({"head_dim": 64}, "head_dim is given for the kind"),
     ({"kind": "roberta"}, "clip, bert; got 'roberta'")],
)  # fmt: skip
def test_a_description_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig(**fields)
