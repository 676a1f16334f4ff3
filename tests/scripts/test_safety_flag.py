"""--safety-checker: when one is used, what takes a flagged picture's place, what is said and written."""

from pathlib import Path

import numpy as np
import pytest
import small_safety
from command_checks import read
from safetensors.numpy import save_file

import sdjax
from sdjax import pictures
from sdjax.pictures import image
from sdjax.scripts.main import main

OUT = Path("outputs/txt2img-samples")
SEEDS = range(42, 46)


def checker(folder: Path, threshold: float) -> None:
    """Writes the small checker of golden/safety.npz with all concepts' thresholds moved."""
    spec, tensors, _ = small_safety.checker()
    tensors["concept_embeds_weights"] = tensors["concept_embeds_weights"] + np.float32(threshold)
    tensors["special_care_embeds_weights"] = tensors["special_care_embeds_weights"] + np.float32(9)
    small_safety.write(folder, spec, tensors)


def made(seed: int) -> np.ndarray:
    """Returns the Fake's picture of a seed."""
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)


def txt2img(*flags: str, ckpt: str = "model.ckpt") -> int:
    return main(["txt2img", "--ckpt", ckpt, "--n_iter", "1", "--n_samples", "4", "--prompt", "a", *flags])


def test_flagged_pictures_alone_become_notices(fake, capsys, tmp_path) -> None:
    checker(tmp_path / "even", 0)
    scores = sdjax.SafetyChecker.load("even", dtype="float32").check([made(seed) for seed in SEEDS]).concepts.max(1)
    middle = np.median(scores)
    assert len(set(scores)) == 4
    checker(tmp_path / "checker", float(middle))
    assert txt2img("--safety-checker", "checker") == 0
    err = capsys.readouterr().err
    flags = scores > middle
    assert 0 < flags.sum() < 4
    grid, of_grid = read(OUT / "grid-0000.png")
    for number, (seed, flag) in enumerate(zip(SEEDS, flags)):
        pixels, found = read(OUT / f"samples/0000{number}.png")
        np.testing.assert_array_equal(pixels, pictures.notice(96, 96) if flag else made(seed))
        assert found["safety"]["flagged"] == flag == (max(found["safety"]["concepts"]) > 0)
        assert (len(found["safety"]["concepts"]), len(found["safety"]["special"])) == (17, 3)
        assert found["safety_checker"]["name"] == "checker"
        assert (f"seed {seed} was flagged by the safety checker; a notice replaces it" in err) == flag
        assert of_grid["grid"]["pictures"][number]["safety"] == found["safety"]
    shown = [pictures.notice(96, 96) if flag else made(seed) for seed, flag in zip(SEEDS, flags)]
    np.testing.assert_array_equal(grid, image.grid(np.stack(shown), 4))


@pytest.mark.parametrize("flags", [[], ["--safety-checker", "auto"]])
def test_the_models_own_is_found_and_said(fake, capsys, tmp_path, flags) -> None:
    checker(tmp_path / "pipe/safety_checker", -9)
    assert txt2img(*flags, "--skip_grid", ckpt="pipe") == 0
    assert "note: pictures are checked by pipe/safety_checker" in capsys.readouterr().err
    np.testing.assert_array_equal(read(OUT / "samples/00003.png")[0], pictures.notice(96, 96))


@pytest.mark.parametrize("flags", [["--safety-checker", "off"], []])
def test_off_and_a_model_without_one_write_every_picture(fake, tmp_path, flags) -> None:
    checker(tmp_path / "pipe/safety_checker", -9)
    assert txt2img(*flags, "--skip_grid", ckpt="pipe" if flags else "model.ckpt") == 0
    pixels, found = read(OUT / "samples/00000.png")
    np.testing.assert_array_equal(pixels, made(42))
    assert not {"safety", "safety_checker"} & set(found)


def test_bad_checkers_are_refused_before_the_models_weights(fake, capsys, tmp_path) -> None:
    assert txt2img("--safety-checker", "nowhere") == 3
    assert "nowhere: there is no such file or folder" in capsys.readouterr().err
    (tmp_path / "pipe/safety_checker").mkdir(parents=True)
    save_file({"weight": np.ones(3, np.float32)}, "pipe/safety_checker/model.safetensors")
    assert txt2img("--safety-checker", "pipe") == 3
    assert "holds no safety checker" in capsys.readouterr().err
    assert txt2img(ckpt="pipe") == 3
    assert "--safety-checker off skips it" in capsys.readouterr().err
    assert not fake.loaded


def test_frames_of_an_animation_are_checked(fake, capsys, tmp_path, monkeypatch) -> None:
    def animate(pipe, prompts, **options):
        return np.stack([made(seed) for seed in range(options["frames"])])

    monkeypatch.setattr(sdjax, "animate", animate, raising=False)
    checker(tmp_path / "checker", -9)
    flags = ["--seed", "1,2", "--frames", "2", "--save_frames", "--safety-checker", "checker"]
    assert main(["animate", "--ckpt", "model.ckpt", *flags]) == 0
    out, err = capsys.readouterr()
    assert "frame 1 was flagged" in err
    pixels, found = read(Path(out.split()[1]) / "00001.png")
    np.testing.assert_array_equal(pixels, pictures.notice(96, 96))
    assert found["safety"]["flagged"] is True
