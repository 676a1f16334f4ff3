"""Settings as plain values, sweeps over them, and the labelled grid."""

import csv
import dataclasses
import io
import json

import jax
import numpy as np
import pytest

import sdjax
from sdjax.pictures.plot import plot
from sdjax.tasks import settings, sweep
from sdjax.tasks.request import Request

import models
from checks import count_compilations, near

ONE = {"devices": jax.devices()[:1]}


def test_names_of_other_tools_mean_our_settings():
    a1111 = {"prompt": "a", "steps": 7, "cfg_scale": 3, "sampler_name": "heun", "seed": 2**40, "width": 64}
    assert settings.read(a1111) == {
        "prompt": "a", "num_steps": 7, "guidance_scale": 3, "sampler": "heun", "seed": 2**40, "width": 64,
    }  # fmt: skip
    assert settings.read({"num-inference-steps": 5, "H": 64}) == {"num_steps": 5, "height": 64}


def test_every_field_of_a_request_that_json_can_hold_may_be_set():
    fields = {field.name for field in dataclasses.fields(Request)}
    arrays = {"latents", "concat", "prompt_embeds", "negative_prompt_embeds"}
    files = {
        "word_embeddings",
        "embedding_dir",
        "hypernetworks",
        "hypernetwork_dir",
        "image_prompts",
        "regions",
        "controls",
        "references",
    }
    paths = {"styles_file", "wildcards", "adapters", "lora_dir", "merge_with", *files}
    assert fields - set(settings.known_names()) == arrays | paths


WRONG = [
    ('{"stepz": 3}', "unknown setting 'stepz' (did you mean steps?)"),
    ('{"steps": "20"}', "num_steps is a whole number from 1 up; got '20'"),
    ('{"steps": 3, "num_steps": 4}', "num_steps is given twice, once as 'steps'"),
    ('{"steps": 3, "steps": 4}', "'steps' is given twice"),
    ('{"prompt": 3}', "prompt is a text; got 3"),
    ('{"scale": NaN}', "numbers are finite; got NaN"),
    ('{"seed": -1}', "a seed lies between 0 and 2**64 - 1; got -1"),
    ('{"height": 1.5}', "height is a whole number; got 1.5"),
    ('{"prompt": "a"', "not JSON (Expecting ',' delimiter at character 15)"),
    ("[1]", "expected a JSON object"),
    ("[" * 100_000, "nested too deeply"),
    ('{"sampler_options": 3}', "sampler_options is an object of texts and numbers; got 3"),
    ('{"latents": [1]}', "unknown setting 'latents'"),
    ('{"strength": 0.5}', "unknown setting 'strength'"),  # not of text to image
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_settings_are_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError) as error:
        settings.from_json(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


AXES = [
    ("scale=1.5,3,7.5", ("guidance_scale", (1.5, 3, 7.5))),
    ("sampler=ddim, dpmpp_2m", ("sampler", ("ddim", "dpmpp_2m"))),
    ('prompt="a cat, sitting",a dog', ("prompt", ("a cat, sitting", "a dog"))),
    ("steps=1-5", ("num_steps", (1, 2, 3, 4, 5))),  # A1111's ranges
    ("steps=10-30 (+10)", ("num_steps", (10, 20, 30))),
    ("scale=0-1[5]", ("guidance_scale", (0, 0.25, 0.5, 0.75, 1))),
    ("steps=9-5(-2)", ("num_steps", (9, 7, 5))),
    ("seed=18446744073709551615", ("seed", (2**64 - 1,))),
    ("prompt=1-5", ("prompt", ("1-5",))),  # a text is no range
    ("prompt_replace=cat,dog", ("prompt_replace", ("cat", "dog"))),
]


@pytest.mark.parametrize(("text", "axis"), AXES, ids=[text for text, _ in AXES])
def test_an_axis_is_a_name_and_values(text, axis):
    read = sweep.read_axis(text)
    assert (read.name, read.values) == axis


BAD_AXES = [
    ("scale", "NAME=VALUE,VALUE"),
    ("=3", "NAME=VALUE,VALUE"),
    ("scale=", "needs at least one value"),
    ("scale=1,,2", "no empty one"),
    ("stepz=1", "unknown setting 'stepz' (did you mean steps?)"),
    ("steps=1,two", "the sweep of steps: num_steps is a whole number from 1 up; got 'two'"),
    ("seed=1-1000000", "has no values, or more than 10000"),
    ("steps=1-9(+0)", "has no values, or more than 10000"),
    ("strength=0.5", "unknown setting 'strength'"),
]


@pytest.mark.parametrize(("text", "said"), BAD_AXES, ids=[text for text, _ in BAD_AXES])
def test_a_wrong_axis_is_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError) as error:
        sweep.read_axis(text)
    assert said in str(error.value)


def test_cells_are_all_combinations_and_the_first_axis_is_the_fastest():
    axes = [sweep.read_axis("steps=1,2"), sweep.read_axis("prompt_replace=cat,dog")]
    assert sweep.cells(axes, {"prompt": "a cat", "seed": 5}) == [
        {"prompt": "a cat", "seed": 5, "num_steps": 1}, {"prompt": "a cat", "seed": 5, "num_steps": 2},
        {"prompt": "a dog", "seed": 5, "num_steps": 1}, {"prompt": "a dog", "seed": 5, "num_steps": 2},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="does not contain 'cat'"):
        sweep.cells(axes, {"prompt": "an owl"})
    with pytest.raises(ValueError, match="one axis for each setting; got num_steps, num_steps"):
        sweep.cells(axes[:1] * 2, {})
    with pytest.raises(ValueError, match="one to three axes; got 4"):
        sweep.cells(axes * 2, {})


def test_a_sweep_makes_what_its_requests_make_in_one_program_of_the_size_allowed():
    pipe, base = models.pipeline(), Request("a cat", seed=3, num_steps=2)
    axes = {"guidance_scale": [2.0, 3.0, 5.0], "sampler": ["ddim", "euler_ancestral"]}
    made = sdjax.sweep(pipe, base, axes, at_once=4, **ONE)  # 6 pictures: two batches of 3
    assert [(r.guidance_scale, r.sampler, r.seed) for r in made.requests[2:4]] == [
        (5, "ddim", 3),
        (2, "euler_ancestral", 3),
    ]
    for request, picture in list(zip(made.requests, made.pictures))[::3]:
        assert near(sdjax.generate(pipe, [request], **ONE)[0], picture)
    others = {"guidance_scale": [4.0, 8.0], "sampler": ["heun", "dpm2", "lms"]}
    assert count_compilations(lambda: sdjax.sweep(pipe, base, others, at_once=3, **ONE)) == 0
    assert min(made.grid().shape[0] - 2 * 64, made.grid().shape[1] - 3 * 64) > 0
    table = list(csv.reader(io.StringIO(made.table())))
    assert table[:2] == [["guidance_scale", "sampler", "seed"], ["2.0", "ddim", "3"]]
    assert len(table) == 7


def test_pictures_of_a_plot_stand_where_their_labels_say():
    colours = np.arange(12, dtype=np.uint8)
    pictures = [np.full((20, 40, 3), (10 * one, 0, 200), np.uint8) for one in colours]
    grid = plot(pictures, [["a", "b"], ["one", "two", "three"], ["x", "y"]])
    found = [np.argwhere((grid == (10 * one, 0, 200)).all(-1)) for one in colours[1:]]
    places = [(tuple(one.min(0)), tuple(one.max(0) + 1 - one.min(0))) for one in map(np.asarray, found)]
    tops, lefts = zip(*(place for place, _ in places))
    assert tops[1] == tops[2] < tops[3] == tops[4] < tops[5]  # two columns, then the next row, the sheets below
    assert lefts[0] == lefts[2] == lefts[4] > lefts[1] == lefts[3]
    letters = plot(pictures[:2], [["", ""]]).shape[0]
    assert plot(pictures[:2], [["a", "b"]]).shape[0] > letters  # room for the labels
    with pytest.raises(ValueError, match="needs as many pictures; got 2"):
        plot(pictures[:2], [["a"]])


def test_long_and_strange_labels_are_drawn():
    pictures = [np.zeros((16, 16, 3), np.uint8)] * 2
    label = "a" * 3000 + " \u65e5\u672c \n\t\x00" + json.dumps("b" * 100)
    assert plot(pictures, [["x", label], [label]]).shape[1] < 100


@pytest.mark.parametrize(("count", "most"), [(10, 4), (5, 4), (4, 4), (7, 1), (9, None)])
def test_groups_are_divided_into_equal_parts_that_hold_every_picture(count, most):
    from sdjax.pipeline.placement import divided

    parts = divided(list(range(count)), most)
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) <= (most or count)
    assert sorted({one for part in parts for one in part}) == list(range(count))
    assert len(parts) == -(-count // (most or count))
