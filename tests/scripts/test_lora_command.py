"""`sdjax lora`: adapters out of checkpoints and other adapters."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sdjax import configs, convert
from sdjax.adapters import merge
from sdjax.convert.adapters.load import FAMILIES
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.adapters.write_names import LAYOUTS
from sdjax.scripts import lora
from sdjax.scripts.main import main

import models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with two models, whose linear layers differ by rank 3 and whose text encoders are equal."""
    place = tmp_path_factory.mktemp("lora")
    params = models.random_params(models.TINY)
    rng = np.random.default_rng(0)

    def tuned(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.startswith("unet") or not name.endswith("kernel") or leaf.ndim != 2:
            return leaf
        rows, columns = leaf.shape
        return leaf + (rng.normal(size=(rows, 3)) @ rng.normal(size=(3, columns))).astype("f") / rows

    convert.save(models.TINY, params, place / "base.safetensors")
    convert.save(models.TINY, jax.tree_util.tree_map_with_path(tuned, params), place / "tuned.safetensors")
    assert run("extract", place / "base.safetensors", place / "tuned.safetensors", "--rank", 4, "--dtype", "float32",
               "--out", place / "lora.safetensors") == 0  # fmt: skip
    return place


def run(*words):
    return main(["lora", *map(str, words)])


def test_an_extracted_adapter_makes_the_one_model_out_of_the_other(folder):
    config, base = convert.load(folder / "base.safetensors")
    _, tuned = convert.load(folder / "tuned.safetensors")
    loaded = convert.load_adapter(folder / "lora.safetensors", config)
    assert not any(path.startswith("text") for path in loaded.adapter)
    made = merge(base, [(loaded.adapter, 1.0)])
    for got, want in zip(jax.tree.leaves(made), jax.tree.leaves(tuned)):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_names_go_round_without_a_changed_bit(folder, tmp_path):
    steps = [("peft", "a"), ("diffusers", "b.safetensors"), ("kohya", "c.safetensors")]
    source = folder / "lora.safetensors"
    for names, target in steps:
        assert (
            run("convert", source, "--ckpt", folder / "base.safetensors", "--to", names, "--out", tmp_path / target)
            == 0
        )
        source = tmp_path / target
    one, two = load_file(folder / "lora.safetensors"), load_file(source)
    assert {name: array.tobytes() for name, array in one.items()} == {name: a.tobytes() for name, a in two.items()}


def test_merged_and_resized_adapters_are_the_sum_and_its_best_approximation(folder, tmp_path, capsys):
    source, ckpt = folder / "lora.safetensors", ("--ckpt", folder / "base.safetensors")
    again = shutil.copy(source, tmp_path / "again.safetensors")
    assert run("merge", f"{source}:0.75", f"{again}:-0.25", *ckpt, "--out", tmp_path / "sum.safetensors") == 0
    assert (
        run("resize", tmp_path / "sum.safetensors", *ckpt, "--energy", 0.9999, "--out", tmp_path / "s.safetensors") == 0
    )
    assert "55 layers of rank 3; of a layer's energy at least" in capsys.readouterr().err
    one, both, small = (convert.load_adapter(path, models.TINY).adapter
                        for path in (source, tmp_path / "sum.safetensors", tmp_path / "s.safetensors"))  # fmt: skip
    path = next(iter(one))
    base = np.zeros((*one[path].down.shape[:-1], one[path].up.shape[-1]), np.float32)
    assert [adapter[path].up.shape[0] for adapter in (one, both, small)] == [4, 8, 3]
    for adapter in (both, small):
        np.testing.assert_allclose(adapter[path].difference(base), 0.5 * one[path].difference(base), atol=2e-3)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ("extract BASE --rank 4", 2, "takes two checkpoints, the original and the tuned one; got 1 files"),
        ("extract BASE TUNED", 2, "needs --rank, --energy or --ratio"),
        ("extract BASE BASE --rank 4", 3, "do not differ in the layers that were asked for"),
        ("extract BASE TUNED --rank 4 --targets (", 2, "no regular expression"),
        ("convert LORA --rank 4", 2, "--rank has no effect with this action"),
        ("resize LORA --energy 0 --ckpt BASE", 2, "a share of energy is above 0"),
        ("merge LORA:much --ckpt BASE", 2, "expected FILE or FILE:WEIGHT with a finite number"),
        ("merge LORA:nan --ckpt BASE", 2, "expected FILE or FILE:WEIGHT with a finite number"),
        ("merge LORA:0.5 LORA --ckpt BASE", 2, "is given twice; give it once, with the sum of its weights"),
        ("convert BASE --ckpt BASE", 3, "does not fit this model"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(words, status, sentence, folder, tmp_path, capsys):
    files = {"BASE": "base.safetensors", "TUNED": "tuned.safetensors", "LORA": "lora.safetensors"}
    for word, name in files.items():
        words = words.replace(word, str(folder / name))
    assert run(*words.split(), "--out", tmp_path / "new.safetensors") == status
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_have_the_type_of_the_first_file(folder, tmp_path):
    ckpt = ("--ckpt", folder / "base.safetensors")
    half, small = tmp_path / "half.safetensors", tmp_path / "small.safetensors"
    assert run("convert", folder / "lora.safetensors", *ckpt, "--dtype", "float16", "--out", half) == 0
    assert run("resize", half, *ckpt, "--rank", 2, "--out", small) == 0
    assert {array.dtype for array in load_file(small).values()} == {np.dtype("float16")}


def test_two_embeddings_of_one_word_are_refused(folder, tmp_path, capsys):
    config, ckpt = models.TINY, ("--ckpt", folder / "base.safetensors")
    adapter = convert.load_adapter(folder / "lora.safetensors", config).adapter
    for i in (1, 2):
        rows = np.full((2, 32), i, np.float32)
        write_adapter(tmp_path / f"{i}.safetensors", adapter, config, embeddings={"cat": rows})
    files = (tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    assert run("merge", *files, *ckpt, "--out", tmp_path / "3.safetensors") == 2
    assert "different embeddings for 'cat'" in capsys.readouterr().err
    assert run("convert", files[0], *ckpt, "--out", tmp_path / "4.safetensors") == 0
    np.testing.assert_array_equal(load_file(tmp_path / "4.safetensors")["bundle_emb.cat.clip_l"], np.ones((2, 32)))


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    (tmp_path / "mine.safetensors").write_text("mine")
    assert run("convert", folder / "lora.safetensors", "--out", tmp_path / "mine.safetensors") == 1
    assert "exists; choose another name" in capsys.readouterr().err
    assert (tmp_path / "mine.safetensors").read_text() == "mine"


def test_choices_are_the_librarys():
    assert lora.NAMES == LAYOUTS
    assert set(FAMILIES) <= set(configs.NAMES)
