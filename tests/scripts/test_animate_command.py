"""`sdjax animate`: keyframes from flags, what is written, what is refused before weights are read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.pictures import movie
from sdjax.scripts import animate as command
from sdjax.scripts.main import main
from sdjax.tasks import keyframes as animation
from sdjax.tasks import motion

OUT = Path("outputs/animations")


@pytest.fixture
def animator(fake, monkeypatch):
    """A Fake that makes noise for frames."""

    def stand_in(pipe, prompts, **options):
        fake.note(prompts, **options)
        return np.random.default_rng(0).integers(0, 256, (options["frames"], 32, 48, 3), np.uint8)

    monkeypatch.setattr(sdjax, "animate", stand_in, raising=False)
    return fake


def animate(*flags: str) -> int:
    return main(["animate", "--ckpt", "model.ckpt", *flags])


def test_keyframes_and_settings_are_handed_on(animator, capsys) -> None:
    flags = ["--prompt", "a cat", "--prompt", "a dog", "--seed", "3,4", "--frames", "5", "--loop", "--fps", "8"]
    assert animate(*flags, "--interpolation", "spherical", "--prompt-strength", "0.7", "--n_samples", "2") == 0
    (call,) = animator.made
    assert (call["prompts"], call["seeds"], call["frames"], call["loop"]) == (["a cat", "a dog"], [3, 4], 5, True)
    assert (call["interpolation"], call["prompt_strength"], call["batch"]) == ("spherical", 0.7, 2)
    assert capsys.readouterr().out.split() == [str(OUT / "00000.gif")]
    with Image.open(OUT / "00000.gif") as gif:
        assert (gif.size, gif.n_frames) == ((48, 32), 5)
        found = json.loads(json.loads(gif.info["comment"])["sdjax"])
    assert (found["task"], found["prompts"], found["seeds"], found["fps"]) == ("animate", ["a cat", "a dog"], [3, 4], 8)


@pytest.mark.parametrize("kind", ["gif", "apng", "webp"])
def test_every_format_is_numbered_for_itself_and_overwrites_nothing(animator, capsys, kind) -> None:
    for _ in range(2):
        assert animate("--prompt", "a", "--seed", "1,2", "--frames", "3", "--format", kind) == 0
    assert capsys.readouterr().out.split() == [str(OUT / f"0000{i}.{kind}") for i in range(2)]
    with Image.open(OUT / f"00001.{kind}") as moving:
        assert moving.n_frames == 3


def test_frames_that_are_finished_when_it_is_interrupted_make_an_animation(animator, monkeypatch, capsys) -> None:
    def stand_in(pipe, prompts, **options):
        frames = list(np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8))
        raise sdjax.Interrupted([*frames, None, None])

    monkeypatch.setattr(sdjax, "animate", stand_in, raising=False)
    assert animate("--seed", "1,2", "--frames", "5") == 130
    with Image.open(OUT / "00000.gif") as gif:
        assert gif.n_frames == 3
    assert "3 of 5 frames were made" in capsys.readouterr().err


def test_what_no_sampler_can_is_refused_before_weights_are_read(animator, capsys) -> None:
    assert animate("--seed", "1,2", "--prompt-strength", "0.5", "--sampler", "dpm_solver_adaptive") == 2
    assert "--prompt-strength needs a sampler whose steps are known beforehand" in capsys.readouterr().err
    assert animate("--seed", "1,2", "--steps", "1001") == 2
    assert "1001" in capsys.readouterr().err
    assert not animator.loaded


def test_frames_are_written_as_apng_where_ffmpeg_fails(animator, capsys, monkeypatch) -> None:
    def fail(*_):
        raise OSError("ffmpeg wrote no MP4: no space")

    monkeypatch.setattr(movie, "find_ffmpeg", lambda: "ffmpeg")
    monkeypatch.setitem(movie.KINDS, "mp4", fail)
    (OUT / "00000-apng-frames").mkdir(parents=True)  # left from an animation that was deleted
    assert animate("--seed", "1,2", "--frames", "3", "--format", "mp4", "--save_frames") == 0
    printed = capsys.readouterr()
    assert "no space; the frames are written as APNG" in printed.err
    assert printed.out.split() == [str(OUT / "00000.apng"), str(OUT / "00000-apng-frames-2")]


def test_frames_are_kept_on_demand(animator, capsys) -> None:
    Path("p.txt").write_text("a\nb\n")
    assert animate("--from-file", "p.txt", "--frames", "4", "--save_frames", "--format", "apng") == 0
    folder = Path(capsys.readouterr().out.split()[1])
    assert sorted(path.name for path in folder.iterdir()) == [f"0000{i}.png" for i in range(4)]
    with Image.open(OUT / "00000.apng") as moving:
        moving.seek(2)
        np.testing.assert_array_equal(np.asarray(moving.convert("RGB")), np.asarray(Image.open(folder / "00002.png")))


def test_prompts_at_frames_are_handed_on(animator) -> None:
    assert animate("--at", "4=a dog", "--at", "0=a cat=", "--frames", "6", "--noise-source", "torch_cpu") == 0
    (call,) = animator.made
    assert (call["prompts"], call["noise_source"]) == ({4: "a dog", 0: "a cat="}, "torch_cpu")


def test_motion_and_pictures_are_handed_on_and_recorded(animator, monkeypatch, capsys) -> None:
    monkeypatch.setattr(motion, "read_file", lambda path, config: None)
    Image.new("RGB", (64, 64), "red").save("start.png")
    flags = ["--motion", "mm.ckpt", "--motion-lora", "zoom.ckpt:0.5", "--frame-window", "8", "--free-noise"]
    assert animate("--prompt", "a cat", *flags, "--init-img", "start.png", "--strength", "0.5", "--format", "apng") == 0
    (call,) = animator.made
    use = call["motion"]
    assert (use.motion, use.loras, use.frame_window, use.free_noise) == ("mm.ckpt", ["zoom.ckpt:0.5"], 8, True)
    assert (call["frames"], call["strength"], len(call["image"])) == (16, 0.5, 1)
    with Image.open(OUT / "00000.apng") as made:
        found = json.loads(made.text["sdjax"])
    assert (found["motion"], found["motion_loras"], found["init_img"]) == ("mm.ckpt", ["zoom.ckpt:0.5"], "start.png")


def test_names_are_the_librarys() -> None:
    assert command.INTERPOLATIONS == animation.INTERPOLATIONS
    assert tuple(movie.KINDS) == command.FORMATS


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--prompt", "a"], "two prompts or two seeds"),
        ([], "two prompts or two seeds"),
        (["--prompt", "a", "--prompt", "b", "--seed", "1,2,3"], "give 1 or 3 prompts"),
        (["--prompt", "a", "--from-file", "p.txt"], "use one of them"),
        (["--prompt", "a", "--prompt", "b", "--frames", "1"], "at least the number of keyframes"),
        (["--prompt", "a", "--prompt", "b", "--fps", "60"], "up to 50"),
        (["--prompt", "a", "--prompt", "b", "--format", "mp4"], "ffmpeg, which is not on the PATH"),
        (["--prompt", "a", "--prompt", "b", "--H", "100"], "nearest"),
        (["--at", "0=a", "--at", "0=b"], "two prompts"),
        (["--at", "0=a", "--at", "60=b"], "0 to 47"),
        (["--at", "0=a", "--prompt", "b"], "leave one of them out"),
        (["--prompt", "a", "--free-noise"], "without --motion"),
        (["--prompt", "a", "--motion", "m", "--prompt-strength", "0.5"], "with --motion"),
        (["--prompt", "a", "--motion", "m", "--seed", "1,2"], "--seed is one number"),
        (["--prompt", "a", "--motion", "m", "--exact"], "--exact divides a batch"),
        (["--prompt", "a", "--motion", "m", "--frame-window", "4", "--frame-overlap", "4"], "less than"),
        (["--prompt", "a", "--motion", "m", "--strength", "0.5"], "without --init-img"),
    ],
)
def test_bad_input_is_refused_before_weights_are_read(animator, capsys, monkeypatch, flags, sentence) -> None:
    monkeypatch.setenv("PATH", "")
    assert animate(*flags) == (1 if "mp4" in flags else 2)
    assert sentence in capsys.readouterr().err
    assert not animator.loaded


@pytest.mark.parametrize(
    "flags", [["--seed", "1,x"], ["--seed", "-1"], ["--prompt-strength", "2"], ["--frames", "0"], ["--at", "x"]]
)
def test_values_out_of_range_are_bad_usage(animator, flags) -> None:
    with pytest.raises(SystemExit) as stopped:
        animate("--prompt", "a", *flags)
    assert stopped.value.code == 2
