"""An evaluation makes each picture once, whatever was interrupted, and hosts share it: with a painter as the model."""

import json
import types

import numpy as np
import pytest

from sdjax.evaluate import bootstrap, making, measuring
from sdjax.evaluate.captions import choose, digest_of
from sdjax.evaluate.evaluation import Judging
from sdjax.evaluate.making import Folder, Host
from sdjax.evaluate.measures import Measure, frechet_measure
from sdjax.evaluate.measuring import Reference
from sdjax.evaluate.references import pictures_of
from sdjax.evaluate.result import read
from sdjax.evaluate.settings import make_settings
from sdjax.pictures.image import save_png
from sdjax.tasks.sweep import Axis

TEXTS = [f"caption {i}" for i in range(7)]
SETTINGS = make_settings({"num_steps": 3}, [Axis("guidance_scale", (2, 5), "scale")])


class Stopped(Exception):
    """Stands for a kill."""


class Painter:
    """Stands in for `making.make`: paints a colour that its seed and scale decide; stops after some pictures."""

    def __init__(self):
        self.made, self.left = [], 10**6

    def __call__(self, pipe, requests, *, batch, devices):
        if self.left <= 0:
            raise Stopped
        self.left -= len(requests)
        self.made += [(request.prompt, request.guidance_scale) for request in requests]
        return [self.paint(request.seed, request.guidance_scale) for request in requests]

    @staticmethod
    def paint(seed, scale):
        return np.full((2, 2, 3), np.random.default_rng([seed, int(scale)]).integers(0, 256, 3), np.uint8)


class Colours:
    """The mean colour of a picture, and the length of its caption."""

    name, identity = "colours", "colours 1"

    def __init__(self):
        self.seen = 0

    def __call__(self, pictures, captions):
        self.seen += len(pictures)
        rows = [picture.mean((0, 1)) for picture in pictures]
        return {"colour": np.array(rows, np.float32), "length": np.array([[len(text)] for text in captions])}


LEVEL = Measure("level", "Mean level", "colours", ("colour",), False, False, lambda own, _: float(own["colour"].mean()))
APART = Measure(
    "apart", "Distance of means", "colours", ("colour",), True, True,
    lambda own, reference: float(np.abs(own["colour"].mean(0) - reference["colour"].mean(0)).sum()),
)  # fmt: skip


@pytest.fixture
def painter(monkeypatch):
    painter = Painter()
    monkeypatch.setattr(making, "make", painter)
    return painter


def judging(folder, *, host=Host(), count=None, settings=SETTINGS, model="m", network=None, batch=3, resamples=5):  # noqa: B008
    captions = choose(TEXTS, count)
    colours = network or Colours()
    black = Reference({"colour": np.zeros((2, 3))}, None, "black")
    return Judging(
        types.SimpleNamespace(dtype="float32"), {"name": model}, digest_of(choose(TEXTS)), captions, settings,
        [LEVEL, APART], {"colours": colours}, lambda name: black, folder, host=host,
        batch=batch, resamples=resamples, say=lambda text: None,
    )  # fmt: skip


def expected(scale, count=None):
    """Returns the mean level of all pictures of a scale, from the captions alone."""
    return np.mean([Painter.paint(caption.seed, scale).mean() for caption in choose(TEXTS, count)])


def test_every_setting_is_made_measured_and_written(tmp_path, painter):
    made = judging(tmp_path / "e").run()
    assert sorted(painter.made) == sorted((text, scale) for text in TEXTS for scale in (2, 5))
    assert [one.name for one in made.settings] == ["scale 2", "scale 5"]
    for one, scale in zip(made.settings, (2, 5)):
        assert one.swept == {"scale": scale}
        assert one.settings == {"guidance_scale": scale, "num_steps": 3, "prompt_syntax": "plain"}
        np.testing.assert_allclose(one.measures["level"].value, expected(scale), rtol=1e-6)
        np.testing.assert_allclose(one.measures["apart"].value, 3 * expected(scale), rtol=1e-6)
        assert len(one.measures["level"].samples) == 5
        assert one.measures["apart"].of == "colours 1, black"
    assert read(tmp_path / "e" / "result.json") == made
    assert (tmp_path / "e" / "result.csv").read_text() == made.to_csv().replace("\r\n", "\n")


def test_what_was_stopped_goes_on_and_makes_each_picture_once(tmp_path, painter):
    network = Colours()
    for left in (3, 4, 2):
        painter.left = left
        with pytest.raises(Stopped):
            judging(tmp_path, network=network).run()
    (tmp_path / "pictures" / ".sdjax-0123.partial").write_bytes(b"half")
    painter.left = 10**6
    made = judging(tmp_path, network=network).run()
    assert sorted(painter.made) == sorted((text, scale) for text in TEXTS for scale in (2, 5))
    assert network.seen == 2 * len(TEXTS)
    assert not list(tmp_path.rglob("*.partial"))
    # Nothing is made or looked at again; the same values come out
    again = judging(tmp_path, network=network).run()
    assert (len(painter.made), network.seen) == (2 * len(TEXTS), 2 * len(TEXTS))
    assert again == made


def test_more_captions_and_settings_are_added_to_what_is_there(tmp_path, painter):
    judging(tmp_path, count=4, settings=SETTINGS[:1]).run()
    assert len(painter.made) == 4
    made = judging(tmp_path, count=6).run()
    assert sorted(painter.made) == sorted((c.text, scale) for c in choose(TEXTS, 6) for scale in (2, 5))
    np.testing.assert_allclose(made.settings[0].measures["level"].value, expected(2, 6), rtol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("order", [(2, 0, 1), (0, 1, 2)])
def test_hosts_make_their_shares_and_the_last_one_joins(order, tmp_path, painter):
    alone = judging(tmp_path / "alone").run()
    painter.made.clear()
    results = [judging(tmp_path / "hosts", host=Host(index, 3)).run() for index in order]
    assert results == [None, None, alone]
    assert sorted(painter.made) == sorted((text, scale) for text in TEXTS for scale in (2, 5))
    assert [path.name for path in (tmp_path / "hosts" / "features").rglob("*.npz")] == ["colours.npz"] * 2
    # Started again, the first one measures, and the others have nothing to do
    assert [judging(tmp_path / "hosts", host=Host(index, 3)).run() for index in order] == [
        alone if index == 0 else None for index in order
    ]


def test_other_numbers_of_hosts_go_on_with_what_there_is(tmp_path, painter):
    assert judging(tmp_path, host=Host(1, 3)).run() is None
    made = judging(tmp_path).run()
    assert len(painter.made) == 2 * len(TEXTS)
    np.testing.assert_allclose(made.settings[1].measures["level"].value, expected(5), rtol=1e-6)
    # More hosts than captions: those without a share do nothing
    few = [judging(tmp_path / "few", host=Host(index, 3), count=2).run() for index in (2, 1, 0)]
    assert few[:2] == [None, None]
    assert few[2].count == 2


def test_damaged_features_are_computed_again(tmp_path, painter):
    made = judging(tmp_path).run()
    for path in (tmp_path / "features").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:300])
    network = Colours()
    assert judging(tmp_path, network=network).run() == made
    assert network.seen == 2 * len(TEXTS)


def test_a_folder_of_another_evaluation_is_refused_and_left_as_it_is(tmp_path, painter):
    judging(tmp_path / "e").run()
    with pytest.raises(ValueError, match=r"with another model \(\{'name': 'm'\}, now \{'name': 'n'\}\): choose"):
        judging(tmp_path / "e", model="n").run()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(ValueError, match="is not empty and holds no evaluation"):
        judging(tmp_path / "other").run()
    for text in "{", "[]", '{"settings": 3}', "[" * 10_000:
        (tmp_path / "e" / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="is no manifest of an evaluation"):
            judging(tmp_path / "e").run()
    assert len(painter.made) == 2 * len(TEXTS)


def test_a_measure_that_cannot_be_computed_leaves_the_others(tmp_path, painter):
    def refuse(own, reference):
        raise ValueError("too few rows")

    said = []
    whole = judging(tmp_path)
    broken = Measure("broken", "Broken", "colours", ("colour",), False, False, refuse)
    made = type(whole)(**{**vars(whole), "measures": [broken, LEVEL], "say": said.append}).run()
    assert list(made.settings[0].measures) == ["level"]
    assert "scale 2: broken cannot be measured: too few rows" in said


def test_a_distance_to_many_pictures_is_that_to_their_statistics():
    rng = np.random.default_rng(0)
    features, reference = {"x": rng.normal(0, 1, (30, 3))}, {"x": rng.normal(0.3, 2, (50, 3))}
    one = frechet_measure("d", "D", "n", "x")
    found = measuring.measure(one, features, Reference(reference, None, "r"), identity="n", resamples=3)
    np.testing.assert_allclose(found.value, one.function(features, reference), rtol=1e-9)
    rows = bootstrap.resample(1, 30)
    expected = one.function({"x": features["x"][rows]}, reference)
    np.testing.assert_allclose(found.samples[1], expected, rtol=1e-9)


def test_names_of_settings_are_folders_that_no_value_leads_out_of():
    axis = Axis("negative_prompt", ("../../etc", "", "a" * 300, "ä/ö"), "negative_prompt")
    names = [one.folder for one in make_settings({}, [axis])]
    assert len(set(names)) == 4
    assert all(len(name) < 100 and set(name) <= set(f"{'abcdefghijklmnopqrstuvwxyz'}0123456789_=.,-") for name in names)
    assert not any(name.startswith(".") for name in names)
    (only,) = make_settings({"guidance_scale": 3.0})
    assert only.folder != make_settings({"guidance_scale": 4.0})[0].folder
    with pytest.raises(ValueError, match="prompt cannot be set here"):
        make_settings({"prompt": "a cat"})
    with pytest.raises(ValueError, match="guidance_scale"):
        make_settings({"guidance_scale": "much"})


def test_references_are_looked_at_once(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for i in range(3):
        save_png(folder / f"{i}.png", np.full((2, 2, 3), 10 * i, np.uint8))
    colours = Colours()
    kept = Folder(tmp_path / "e")
    for _ in range(2):
        found = pictures_of(folder).features(colours, kept)
        assert found.features["colour"][:, 0].tolist() == [0, 10, 20]
    assert colours.seen == 3
    save_png(folder / "3.png", np.full((2, 2, 3), 30, np.uint8))
    assert len(pictures_of(folder).features(colours, kept).features["colour"]) == 4
    assert pictures_of(folder).identity.startswith("4 pictures of real (")


def test_the_manifest_says_how_pictures_are_made(tmp_path, painter):
    judging(tmp_path).run()
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert manifest["model"] == {"name": "m"}
    assert {len(list((tmp_path / "pictures" / name).glob("*.png"))) for name in manifest["settings"]} == {7}
