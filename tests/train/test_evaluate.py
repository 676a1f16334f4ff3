"""The evaluation says of pictures whose content is known what is in them, and the same thing every time."""

import dataclasses
import json

import numpy as np
import pytest
from models_to_train import MODEL
from PIL import Image
from scipy import stats

from sdjax import convert
from sdjax.scripts.main import main
from sdjax.train.builtin import emoji, evaluate, report, subjects
from sdjax.train.builtin.vocabulary import learn

import models

COLOURS = list(subjects.COLOURS.values())


class Painter:
    """Stands in for a model: draws what a prompt says, where its seed says; `turn` shifts the background's colour."""

    def __init__(self, sprites, turn=0):
        self.sprites, self.turn = sprites, turn
        self.known = {p.text: p for held_out in (0, 1) for p in evaluate.draw_prompts(3, 4, held_out=bool(held_out))}

    def __call__(self, prompts, seeds, num_steps=None, guidance_scale=None):
        return np.stack([self.draw(self.known[text], seed) for text, seed in zip(prompts, seeds, strict=True)])

    def draw(self, prompt, seed):
        rng = np.random.default_rng(seed)
        places = [(int(rng.integers(0, 5)) + 32 * k, int(rng.integers(0, 35))) for k in range(len(prompt.subjects))]
        boxes = tuple((26, *place) for place in places)
        rgb = COLOURS[(prompt.colour + self.turn) % len(COLOURS)]
        return self.sprites.draw(emoji.Scene(prompt.subjects, prompt.colour, boxes, rgb, prompt.text))


def run(make, sprites):
    return evaluate.evaluate(make, lambda pictures: pictures, sprites, prompts=4, seed=3, scales=(1, 4))


@pytest.fixture(scope="module")
def perfect(sprites):
    return run(Painter(sprites), sprites)


def test_a_perfect_model_is_found_perfect(perfect, sprites):
    figures, samples = perfect
    for part in "reader", "autoencoder", "held_out", "trained":
        for measure, found in figures[part].items():
            assert measure == "distance" or found["share"] == 1.0, (part, measure)
    assert figures["autoencoder"]["distance"] == 0
    assert [row["steps"] for row in figures["steps"]] == [10, 20, 50]
    assert all(row["distance"] == 0 and row["read_alike"]["share"] == 1.0 for row in figures["steps"])
    assert [row["scale"] for row in figures["scales"]] == [1, 4]
    # Seeds move the subjects, and leave the background alone, which most of a difference between prompts is
    assert 0 < figures["seeds"]["least_distance_between_seeds"] < figures["seeds"]["distance_between_seeds"]
    assert 0 < figures["seeds"]["ratio"] < 1
    assert samples.right == [True] * 4
    assert json.loads(json.dumps(figures, allow_nan=False)) == json.loads(json.dumps(run(Painter(sprites), sprites)[0]))


def test_backgrounds_and_subjects_are_judged_apart(sprites):
    """Also that 'held out' and 'trained' are what they are called: the wrong colour comes for held-out pairs only."""
    good, bad = Painter(sprites), Painter(sprites, turn=1)
    held_out = {prompt.text for prompt in evaluate.draw_prompts(3, 4, held_out=True)}

    def make(prompts, seeds, num_steps=None, guidance_scale=None):
        painters = [bad if text in held_out and guidance_scale != 1 and num_steps != 10 else good for text in prompts]
        pairs = zip(painters, prompts, seeds, strict=True)
        return np.stack([painter.draw(good.known[text], seed) for painter, text, seed in pairs])

    figures, samples = run(make, sprites)
    assert figures["held_out"]["background"]["right"] == 0
    assert figures["held_out"]["subject_of_one"]["share"] == 1.0
    assert figures["trained"]["background"]["share"] == 1.0
    assert [row["background"]["share"] for row in figures["scales"]] == [1.0, 0.0]
    assert [row["background"]["share"] for row in figures["steps"]] == [1.0, 0.0, 0.0]
    assert [row["read_alike"]["share"] for row in figures["steps"]] == [0.0, 1.0, 1.0]
    assert samples.right == [False] * 4


def test_what_the_autoencoder_loses_is_not_taken_for_the_readers_fault(sprites):
    washed = lambda pictures: np.full_like(pictures, COLOURS[0])  # noqa: E731
    figures, _ = evaluate.evaluate(Painter(sprites), washed, sprites, prompts=4, seed=3, scales=(1, 4))
    assert figures["reader"]["subject"]["share"] == 1.0
    assert figures["autoencoder"]["subject"]["share"] < 0.5
    assert figures["autoencoder"]["distance"] > 10


def test_prompts_show_what_they_say_and_are_held_out_or_not():
    table, names = emoji.held_out(), list(subjects.COLOURS)
    for held_out in True, False:
        prompts = evaluate.draw_prompts(0, 200, held_out=held_out)
        assert sum(len(prompt.subjects) == 2 for prompt in prompts) == 50
        assert len({prompt.text for prompt in prompts}) == 200
        for text, shown, colour in prompts:
            assert all(table[subject, colour] == held_out for subject in shown)
            assert text.endswith(f" {names[colour]} background")
            assert all(subjects.names()[subject] in text for subject in shown)
    assert evaluate.draw_prompts(0, 8, held_out=True) == evaluate.draw_prompts(0, 8, held_out=True)
    assert evaluate.draw_prompts(1, 8, held_out=True) != evaluate.draw_prompts(0, 8, held_out=True)


def test_prompts_are_worded_as_the_training_words_them():
    trained = {scene.caption for scene in emoji.scenes(5, 0, 400)}
    worded = {
        evaluate.make_prompt(scene.subjects, scene.colour).text
        for scene in emoji.scenes(5, 0, 400)
        if scene.boxes[0][0] in range(32, 47) or len(scene.subjects) == 2
    }
    # 53 % of the lone ones and 68 % of the pairs go without "small", a place, "above" or silence on the background
    assert len(trained & worded) / len(worded) > 0.5


@pytest.mark.parametrize(("right", "count"), [(0, 10), (5, 10), (95, 100), (200, 200)])
def test_intervals_are_wilsons(right, count):
    found, wanted = evaluate.share(right, count), stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert (found["low"], found["high"]) == pytest.approx(wanted, abs=1e-5)  # 1.96 stands for 1.959964


def test_too_few_prompts_are_refused(sprites):
    with pytest.raises(ValueError, match="at least 4 prompts are needed"):
        evaluate.evaluate(Painter(sprites), lambda pictures: pictures, sprites, prompts=3)


def test_tables_and_plate_show_the_figures(perfect):
    figures, samples = perfect
    text = report.table(figures)
    assert "| pictures of held-out pairs | background | 100.0% | 4 | 51.0% to 100.0% | 95% |" in text
    assert "| 20 | 100.0% | 100.0% | 100.0% | 0.0% |" in text
    picture = report.plate(figures, samples)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (report.WIDTH, 3)
    wrong = dataclasses.replace(samples, right=[False, *samples.right[1:]])  # which is framed in red
    framed = report.plate(figures, wrong) != picture
    assert framed[:60, :20].any()
    assert not framed[200:].any()


def test_without_the_font_the_command_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate-builtin", "--ckpt", "model", "--font", "nowhere.ttf"]) == 1
    err = capsys.readouterr().err
    assert "nowhere.ttf is no file; install it (Debian, Ubuntu: apt install fonts-noto-color-emoji" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_the_command_measures_a_model(sprites, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    tokenizer = learn((scene.caption for scene in emoji.scenes(0, 0, 200)), MODEL.text.vocab_size)
    convert.save(MODEL, models.random_params(MODEL), "model", to="native", tokenizer=tokenizer)
    flags = "--ckpt model --prompts 4 --out new/figures.json --device cpu:0"
    assert main(["evaluate-builtin", *flags.split()]) == 0
    figures = json.loads((tmp_path / "new/figures.json").read_bytes())
    assert figures["model"]["name"] == "model"
    assert figures["reader"]["background"]["share"] == 1.0
    assert figures["held_out"]["background"]["count"] == 4
    assert [row["scale"] for row in figures["scales"]] == list(range(1, 11))
    with Image.open("new/figures.png") as plate:
        assert plate.width == report.WIDTH
    assert capsys.readouterr().out.endswith("\nnew/figures.json\nnew/figures.png\n")
