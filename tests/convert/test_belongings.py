"""A model besides its tensors: tokenizer, own settings, licence, model card, metadata, stored types."""

import base64
import dataclasses
import json
import shutil
import warnings
import zlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from small_models import write

import sdjax
from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.convert.containers import carried
from sdjax.loading import builtin
from sdjax.prompts.tokenizer import Tokenizer, clip_files

import models

WAYS = ("native", "ldm", "diffusers")
ADDED = dataclasses.replace(models.TINY, text=dataclasses.replace(models.TINY.text, vocab_size=49409))


@pytest.fixture(scope="module")
def pipe():
    return sdjax.load()


def name_for(layout, stem):
    return f"{stem}.safetensors" if layout == "ldm" else stem


def with_added_token(folder):
    """Returns CLIP's tokenizer with <cat> as number 49408, as a textual inversion's folder has it."""
    Tokenizer().save(folder)
    (folder / "added_tokens.json").write_text('{"<cat>": 49408}')
    return Tokenizer.load(folder)


def belongings(path):
    loaded = sdjax.load(str(path))
    model = loaded.bundle
    kinds = {str((leaf.stored or leaf).dtype) for leaf in model.leaves.values()}
    return loaded.tokenizer.encode("a red cat"), loaded.config, dict(model.licences), dict(model.cards), kinds


@pytest.mark.few(1)
@pytest.mark.parametrize("first", WAYS)
def test_every_layout_keeps_what_belongs_to_a_model(first, pipe, tmp_path):
    want = belongings(builtin.FOLDER)
    assert want[0] != Tokenizer().encode("a red cat")  # a vocabulary of its own
    assert want[1].guidance_scale == 4.0
    assert list(want[2]) == ["LICENSE"]
    assert list(want[3]) == ["README.md"]
    assert want[4] == {"float16"}
    start = tmp_path / name_for(first, "a")
    pipe.save(start, to=first)
    assert belongings(start) == want
    for second in WAYS:
        convert.convert(start, tmp_path / name_for(second, second), to=second)
        assert belongings(tmp_path / name_for(second, second)) == want
    convert.convert(tmp_path / "diffusers", tmp_path / "back")
    assert convert.manifest(convert.read(tmp_path / "back")) == convert.manifest(convert.read(builtin.FOLDER))


def test_other_tools_read_the_file_and_its_metadata_is_text(pipe, tmp_path):
    pipe.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        assert all(isinstance(value, str) for value in metadata.values())
    size = sum(map(len, metadata.values()))
    assert size < 40_000  # of a file of 15 MB


@pytest.mark.parametrize("layout", WAYS)
def test_a_default_size_name_and_padding_of_its_own_stay(layout, tmp_path):
    text = dataclasses.replace(models.TINY.text, pad_token_id=7)
    own = dataclasses.replace(models.TINY, name="mine", image_size=192, guidance_scale=2.5, text=text)
    convert.save(own, models.random_params(own), tmp_path / name_for(layout, "a"), to=layout)
    assert convert.load(tmp_path / name_for(layout, "a"))[0] == own


def test_settings_of_ones_own_stay_with_a_released_models_name(tmp_path):
    from sdjax import configs
    from sdjax.convert.describe.prediction import Decision, with_prediction

    own = dataclasses.replace(configs.get("sd2_v"), guidance_scale=3.0, image_size=640)
    assert with_prediction(own, Decision("v", "x")) == own
    base = with_prediction(own, Decision("epsilon", "x"))
    assert (base.name, base.guidance_scale, base.image_size) == ("sd2_base", 3.0, 640)
    assert with_prediction(configs.get("sd2_v"), Decision("epsilon", "x")) == configs.get("sd2_base")


def test_an_added_token_goes_through_a_single_file(tmp_path):
    tokenizer = with_added_token(tmp_path / "t")
    convert.save(ADDED, models.random_params(ADDED), tmp_path / "a.safetensors", tokenizer=tokenizer)
    convert.convert(tmp_path / "a.safetensors", tmp_path / "d", to="diffusers")
    for path in ("a.safetensors", "d"):
        again = convert.load_model(tmp_path / path).tokenizer()
        assert again.encode("a <cat>") == tokenizer.encode("a <cat>") == [320, 49408]
        assert again.largest_id == 49408


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path):
    convert.save(models.TINY, models.random_params(models.TINY), tmp_path / "n")
    with_added_token(tmp_path / "n" / "tokenizer")
    for read in (convert.load_model, sdjax.load):
        with pytest.raises(CheckpointError, match=r"n: its tokenizer has tokens up to number 49408, and its text enc"):
            read(tmp_path / "n")
    assert "up to number 49408" in convert.inspect(tmp_path / "n").odd[0]
    # more embeddings than tokens are no fault: the words are not known, and that is said
    params = models.random_params(ADDED)
    with pytest.raises(
        ValueError, match="49409 tokens, and CLIP's own tokenizer 49408: give the model's by tokenizer="
    ):
        convert.save(ADDED, params, tmp_path / "m")
    convert.save(ADDED, params, tmp_path / "m", tokenizer=Tokenizer())
    assert sdjax.load(tmp_path / "m").tokenizer.encode("cat") == Tokenizer().encode("cat")
    shutil.rmtree(tmp_path / "m" / "tokenizer")
    assert "1 more token than CLIP's tokenizer" in sdjax.load(tmp_path / "m").notices[0]


def test_a_tokenizer_of_another_model_is_not_written_beside_it(pipe, tmp_path):
    for name in ("a.safetensors", "folder"):
        with pytest.raises(ValueError, match="tokens up to number 49407, and its text encoder embeddings of 1536"):
            convert.save(pipe.config, pipe.params, tmp_path / name, tokenizer=Tokenizer())
    assert not list(tmp_path.iterdir())


def test_a_model_that_lost_its_tokenizer_says_so_and_none_is_made_up(pipe, tmp_path):
    pipe.save(tmp_path / "n")
    shutil.rmtree(tmp_path / "n" / "tokenizer")
    with pytest.raises(CheckpointError, match="it brings no tokenizer, and its text encoder has 1536 tokens, not the"):
        sdjax.load(tmp_path / "n")
    report = convert.convert(tmp_path / "n", tmp_path / "d", to="diffusers")
    assert "it came without a tokenizer for the 1536 tokens" in report.notices[-1]
    assert not (tmp_path / "d" / "tokenizer").exists()
    with pytest.raises(ValueError, match="1536 tokens, and CLIP's own tokenizer 49408: give the model's"):
        convert.save(*convert.load(tmp_path / "n"), tmp_path / "m")


def packed(files):
    return base64.b64encode(zlib.compress(json.dumps(files).encode())).decode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("!", "it is damaged"),
        (base64.b64encode(b"no zlib").decode(), "it is damaged"),
        ("A" * (2**21 + 4), "has 2097156 characters"),
        (base64.b64encode(zlib.compress(b" " * 2**26)).decode(), "or takes more than"),
        (packed({"vocab.json": "[" * 500_000}), "or 400000 items"),
        (packed({"../vocab.json": "{}"}), "none of a tokenizer's files"),
        (packed({"tokenizer.py": ""}), "none of a tokenizer's files"),
        (packed({"vocab.json": 3}), "none of a tokenizer's files"),
        (packed({"vocab.json": "{}", "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": "x.Y"}}'}), "it is one"),
        (
            packed({"vocab.json": "{}", "tokenizer_config.json": '{"tokenizer_class": "TransfoXLTokenizer"}'}),
            "it is on",
        ),
        (packed({"vocab.json": "{}"}), "cannot be used"),
        (packed({}), "it has no vocabulary"),
        (packed([]), "no object"),
    ],
)
def test_a_hostile_tokenizer_in_metadata_is_refused_by_name(value, reason):
    with pytest.raises(CheckpointError, match=f"x: the tokenizer in its metadata .sdjax.tokenizer. .*{reason}"):
        carried.unpacked_tokenizer(value, lambda text: CheckpointError(text, "x"))


def test_a_tokenizer_that_a_file_cannot_carry_is_refused(tmp_path):
    vocab = {chr(i): i for i in range(256)} | {"<|startoftext|>": 256, "<|endoftext|>": 257}
    files = clip_files(vocab, [])
    other = files | {"tokenizer_config.json": b'{"tokenizer_class": "T5Tokenizer"}'}
    with pytest.raises(
        CheckpointError, match=r"no place for the model's tokenizer .*T5Tokenizer.*: write the model as a"
    ):
        carried.packed_tokenizer(Tokenizer(tuple(other.items())))
    large = files | {"tokenizer.json": b" " * 2**24}
    with pytest.raises(CheckpointError, match="whose files take 167"):
        carried.packed_tokenizer(Tokenizer(tuple(large.items())))


def test_what_is_saved_is_what_was_stored_unless_it_was_changed(pipe, tmp_path):
    half = sdjax.load(dtype="bfloat16")
    half.save(tmp_path / "n")
    assert convert.manifest(convert.read(tmp_path / "n")) == convert.manifest(convert.read(builtin.FOLDER))
    params = jax.tree.map(lambda leaf: leaf, half.params)
    params["unet"]["conv_out"]["bias"] = params["unet"]["conv_out"]["bias"] * 2
    params["unet"]["conv_out"]["kernel"] = np.full_like(params["unet"]["conv_out"]["kernel"], 1e30)
    dataclasses.replace(half, params=params).save(tmp_path / "m")
    was, now = convert.read(tmp_path / "n"), convert.read(tmp_path / "m")
    bias, kernel = "unet/conv_out/bias", "unet/conv_out/kernel"
    assert {name for name in was if was[name].tobytes() != now[name].tobytes()} == {bias, kernel}
    assert now.dtypes[kernel] == ml_dtypes.bfloat16  # float16 could not hold it
    assert np.array_equal(np.asarray(now[kernel]), params["unet"]["conv_out"]["kernel"])
    assert np.array_equal(np.float32(now[bias]), np.float32(params["unet"]["conv_out"]["bias"]))


def test_types_that_are_mixed_and_metadata_stay(tmp_path):
    models.pipeline().save(tmp_path / "in" / "x.safetensors")
    tensors = dict(convert.read(tmp_path / "in" / "x.safetensors"))
    tensors = {name: array.astype(np.float16) if "norm" in name else array for name, array in tensors.items()}
    tensors["alphas_cumprod"] = np.ones(3, np.float64)
    (tmp_path / "in" / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    start = write(tmp_path / "in" / "a.safetensors", tensors, {"modelspec.author": "Ada", "ss_tag": "x"})
    loaded = sdjax.load(start, config=models.TINY, dtype="bfloat16")
    loaded.save(tmp_path / "b.safetensors")
    assert convert.manifest(convert.read(tmp_path / "b.safetensors")) == convert.manifest(convert.read(start))
    loaded.save(tmp_path / "n")
    assert convert.read(tmp_path / "n").metadata["modelspec.author"] == "Ada"
    assert (tmp_path / "n" / "README.md").read_text().endswith("A card.\n")
    metadata = convert.read(tmp_path / "b.safetensors").metadata
    assert metadata["ss_tag"] == "x"


def test_a_safety_checker_that_a_file_cannot_hold_is_warned_of(tmp_path):
    models.pipeline().save(tmp_path / "d", to="diffusers")
    (tmp_path / "d" / "safety_checker").mkdir()
    (tmp_path / "d" / "safety_checker" / "config.json").write_text("{}")
    write(tmp_path / "d" / "safety_checker" / "model.safetensors", {"x": np.ones(3, np.float32)})
    index = json.loads((tmp_path / "d" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "d" / "model_index.json").write_text(json.dumps(index))
    loaded = sdjax.load(tmp_path / "d")
    with pytest.warns(UserWarning, match="a single file has no place for safety_checker; a folder keeps them"):
        loaded.save(tmp_path / "a.safetensors")
    loaded.save(tmp_path / "d2", to="diffusers")
    assert (tmp_path / "d2" / "safety_checker" / "model.safetensors").exists()


def test_a_licence_too_long_for_a_file_is_said_and_nothing_written(tmp_path):
    start = tmp_path / "n"
    models.pipeline().save(start)
    for i in range(5):
        (start / f"LICENSE-{i}").write_text("x" * 2**19)
    with pytest.raises(CheckpointError, match="its metadata take .* write the model as a folder"):
        convert.convert(start, tmp_path / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n"]


def test_settings_in_a_folder_are_checked(tmp_path):
    own = dataclasses.replace(models.TINY, guidance_scale=2.5)
    convert.save(own, models.random_params(own), tmp_path / "d", to="diffusers")
    file = tmp_path / "d" / "sdjax_config.json"
    for model, reason in (
        ({"guidance_scale": "x"}, "guidance_scale is a float; got 'x'"),
        ({"path": "/etc"}, "has no field path"),
        ({"name": "a\x1b[2J"}, "name is up to 100 printable characters"),
        (3, "its model holds the fields of a description"),
    ):
        file.write_text(json.dumps({"sdjax": {"format": 1}, "model": model}))
        with pytest.raises(CheckpointError, match=f"sdjax_config.json: .*{reason}"):
            convert.load(tmp_path / "d")
    file.unlink()
    assert convert.load(tmp_path / "d")[0].guidance_scale == 7.5  # what diffusers' own files say


def test_a_copy_of_a_pipeline_writes_the_same(pipe, tmp_path):
    import copy
    import pickle

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy(pipe).save(tmp_path / "a.safetensors")
        pickle.loads(pickle.dumps(pipe)).save(tmp_path / "b.safetensors")
    assert belongings(tmp_path / "a.safetensors")[:4] == belongings(tmp_path / "b.safetensors")[:4]
