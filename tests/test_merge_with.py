"""Mixtures of two models that are made while sampling, and the directions that they are made of."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import sdjax
from sdjax.convert import CheckpointError, MergeSettings, load, merge_models
from sdjax.convert.merge.table import LINEAR
from sdjax.scripts.main import main
from sdjax.scripts.shared.mixture_flags import METHODS
from sdjax.tasks.mixtures import merge_direction

import models
from checks import count_compilations, near

RATIOS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0, 1.3, -0.2)


def changed(params: dict, seed: int) -> dict:
    """Returns parameters near to others, all of them changed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.asarray(a * (1 + 0.2 * rng.standard_normal(a.shape)), np.float32), params)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[pathlib.Path]:
    """Models A, B and C of one small description, as files."""
    folder, pipe = tmp_path_factory.mktemp("mixtures"), models.pipeline()
    paths = [folder / f"{name}.safetensors" for name in "abc"]
    for seed, path in enumerate(paths):
        own = pipe.params if seed == 0 else changed(pipe.params, seed)
        dataclasses.replace(pipe, params=own).save(path)
    return paths


def pictures(pipe, request, ratios, **options):
    return sdjax.sweep(pipe, request, {"merge": ratios}, **options).pictures


@pytest.mark.slow
def test_pictures_of_eight_ratios_are_those_of_merged_files_and_one_program_makes_them(files, tmp_path):
    pipe = sdjax.load(files[0])
    direction = merge_direction(pipe, files[1])
    request = sdjax.Request("a cat", num_steps=2, seed=3, merge_with=direction)
    made = pictures(pipe, request, RATIOS)
    assert count_compilations(lambda: pictures(pipe, request, RATIOS[::-1])) == 0
    for ratio in (0.3, 1.3):
        path = tmp_path / f"{ratio}.safetensors"
        merge_models(files[:2], path, MergeSettings("weighted_sum", (ratio,)))
        (want,) = sdjax.text_to_image(sdjax.load(path), "a cat", num_steps=2, seed=3)
        assert near(made[RATIOS.index(ratio)], want)
        assert not near(made[0], want)
    (alone,) = sdjax.text_to_image(pipe, "a cat", num_steps=2, seed=3)
    assert near(made[0], alone)


@pytest.mark.parametrize(
    ("method", "count", "options"),
    [
        ("ties", 3, {"density": 0.4}),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [
                ("add_difference", 3, {}),
                ("train_difference", 3, {}),
                ("task_arithmetic", 3, {}),
                ("dare_ties", 2, {"density": 0.5, "seed": 7}),
                ("magnitude_prune", 2, {"density": 0.3}),
            ]
        ),
    ],
)
def test_every_linear_method_gives_the_files_parameters(method, count, options, files, tmp_path):
    """A + r D is what the merge with the ratio r writes."""
    pipe, ratio = sdjax.load(files[0]), 0.7
    change = merge_direction(pipe, *files[1:count], method=method, **options).change
    path = tmp_path / "m.safetensors"
    per_model = method not in ("add_difference", "train_difference")
    merge_models(files[:count], path, MergeSettings(method, (ratio,) * (count - 1 if per_model else 1), **options))
    want = load(path)[1]
    before, after = (flatten_dict(dict(params), sep="/") for params in (pipe.params, want))
    for name, leaf in before.items():
        mixed = np.asarray(leaf, np.float32) + (ratio * change[name].value if name in change else 0)
        np.testing.assert_allclose(mixed, after[name], rtol=1e-5, atol=1e-6)


def test_the_flags_methods_are_the_linear_ones():
    assert METHODS == LINEAR


@pytest.mark.parametrize(
    ("others", "method", "message"),
    [
        ((1,), "slerp", "does not move on a line"),
        ((1,), "none", "a method is one of"),
        ((1,), "add_difference", "takes 3 models; got 2"),
        ((), "weighted_sum", "takes 2 or more models; got 1"),
    ],
)
def test_directions_that_cannot_be_made_are_refused(others, method, message, files):
    with pytest.raises(ValueError, match=message):
        merge_direction(models.pipeline(), *(files[i] for i in others), method=method)


def test_models_of_other_kinds_and_ratios_alone_are_refused(files, tmp_path):
    pipe = models.pipeline()
    other = dataclasses.replace(models.TINY, schedule=dataclasses.replace(models.TINY.schedule, prediction="v"))
    models.pipeline(other).save(tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match="different kinds"):
        merge_direction(pipe, tmp_path / "v.safetensors")
    for given, message in ({"merge": 0.5}, "give the other one too"), ({"merge": "x"}, "merge"), (
        {"merge_with": "b.safetensors"}, "what sdjax.merge_direction returns",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sdjax.text_to_image(pipe, "a cat", num_steps=2, **given)


@pytest.mark.slow  # compiles networks
def test_the_command_makes_a_labelled_grid_of_ratios(files, tmp_path):
    words = ["txt2img", "--ckpt", files[0], "--prompt", "a cat", "--steps", 2, "--outdir", tmp_path, "--seed", 3]
    swept = [*words, "--merge-with", files[1], "--sweep", "merge=0,0.5"]
    assert main(list(map(str, swept))) == 0
    table = (tmp_path / "grid-0000.csv").read_text().split()
    assert table == ["file,merge,seed", "samples/00000.png,0,3", "samples/00001.png,0.5,3"]
    pipe = sdjax.load(files[0])
    (want,) = sdjax.text_to_image(
        pipe, "a cat", num_steps=2, seed=3, merge=0.5, merge_with=merge_direction(pipe, files[1])
    )
    with Image.open(tmp_path / "samples/00001.png") as made:
        assert near(np.asarray(made), want)
        told = json.loads(made.text["sdjax"])
    assert (told["merge"], told["merge_with"][0]["name"], told["merge_method"]) == (
        0.5,
        "b.safetensors",
        "weighted_sum",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep", "merge=0,1"], "--merge-with"),
        (["--merge-with", "B"], "without a ratio"),
        (["--merge", "0.5"], "has no effect without --merge-with"),
        (["--merge-with", "B", "--merge", "0.5", "--merge-method", "add_difference"], "takes 3 models"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, files, tmp_path, capsys):
    flags = [str(files[1]) if one == "B" else one for one in flags]
    words = ["txt2img", "--ckpt", str(files[0]), "--prompt", "a cat", "--outdir", str(tmp_path / "out"), *flags]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
