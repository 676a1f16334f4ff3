"""`sdjax txt2img`: what its flags mean, what it writes, what it refuses."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from command_checks import check_bad_usage, check_no_flag_is_ignored
from PIL import Image

import sdjax
from sdjax import convert
from sdjax.checks.effects import in_use
from sdjax.config import ScheduleConfig
from sdjax.loading import builtin, hub
from sdjax.pictures import image
from sdjax.samplers import SAMPLERS
from sdjax.scripts import txt2img as command
from sdjax.scripts.main import main
from sdjax.tasks import results

import models

OUT = Path("outputs/txt2img-samples")


def txt2img(*flags: str, ckpt: str = "model.ckpt") -> int:
    return main(["txt2img", "--ckpt", ckpt, *flags])


def read(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    with Image.open(path) as png:
        png.load()
        return np.asarray(png), dict(png.text)


def settings(path: Path) -> dict:
    return json.loads(read(path)[1]["sdjax"])


def test_defaults_are_compvis_but_for_what_the_model_was_made_for(fake, capsys) -> None:
    assert txt2img() == 0
    path, options = fake.loaded[0]
    assert path == "model.ckpt"
    assert options.pop("ema") == "auto"
    assert (options.pop("quantise"), options.pop("low_memory")) == ("auto", False)
    assert options == dict.fromkeys(("config", "prediction", "vae", "dtype", "variant", "vocab"))
    assert [call["seed"] for call in fake.made] == [[42, 43, 44], [45, 46, 47]]  # --n_iter 2 --n_samples 3 --seed 42
    for call in fake.made:
        assert call["prompts"] == ["a painting of a virus monster playing guitar"] * 3
        assert call["sampler"] == SAMPLERS["ddim"]()
        assert (call["num_steps"], call["negative_prompt"], call["parallel"]) == (50, "", "jit")
        assert (call["guidance_scale"], call["height"], call["width"]) == (None, None, None)
        assert (call["exact"], call["devices"]) == (False, None)
    names = [f"samples/{i:05}.png" for i in range(6)]
    assert sorted(os.listdir(OUT / "samples")) == [Path(name).name for name in names]
    assert capsys.readouterr().out.split() == [str(OUT / name) for name in [*names, "grid-0000.png"]]
    assert read(OUT / "grid-0000.png")[0].shape == (2 * 98 + 2, 3 * 98 + 2, 3)  # --n_rows 0: as --n_samples


def test_png_says_how_it_was_made(fake) -> None:
    flags = ["--prompt", "a cat,\nsitting", "--negative-prompt", "dog: no", "--n_iter", "1", "--n_samples", "2"]
    assert txt2img(*flags, "--H", "64", "--device", "cpu:0", "--sampler", "euler_ancestral", "--skip_grid") == 0
    pixels, texts = read(OUT / "samples/00001.png")
    np.testing.assert_array_equal(pixels, np.random.default_rng(43).integers(0, 256, (64, 96, 3), np.uint8))
    assert texts["parameters"] == (
        "a cat,\nsitting\nNegative prompt: dog: no\nSteps: 50, Sampler: Euler a, Schedule type: Uniform, "
        "CFG scale: 9.0, Seed: 43, Size: 96x64, Model: model, Clip skip: 1, "
        f"Version: sdjax {sdjax.__version__}"
    )
    found = json.loads(texts["sdjax"])
    assert found.pop("versions").keys() == {"sdjax", "jax"}
    assert found.pop("jax_settings")["jax_default_matmul_precision"] == "highest"  # as all tests run
    assert found.pop("model").items() >= {"name": "model.ckpt", "bytes": 7}.items()
    assert found == {
        "task": "txt2img", "prompt": "a cat,\nsitting", "negative_prompt": "dog: no", "seed": 43, "steps": 50,
        "sampler": "euler_ancestral", "prompt_syntax": "weights",
        "sampler_options": in_use(SAMPLERS["euler_ancestral"]()),
        "guidance_scale": 9.0, "height": 64, "width": 96, "batch": 2, "variant": None, "vae": None,
        "ema": "auto", "config": "sd2_v", "prediction": "v", "dtype": "bfloat16", "exact": False, "parallel": "jit",
        "devices": {"kind": "cpu", "count": 1},
    }  # fmt: skip


def test_same_command_gives_the_same_bytes_under_new_names(fake) -> None:
    for _ in range(2):
        assert txt2img("--n_iter", "1", "--n_samples", "2") == 0
    for a, b in ("samples/00000", "samples/00002"), ("samples/00001", "samples/00003"), ("grid-0000", "grid-0001"):
        assert (OUT / f"{a}.png").read_bytes() == (OUT / f"{b}.png").read_bytes()
    assert len(os.listdir(OUT / "samples")) == 4


def test_grid_knows_every_picture(fake) -> None:
    assert txt2img("--n_iter", "2", "--n_samples", "2", "--n_rows", "4", "--prompt", "x") == 0
    pixels, texts = read(OUT / "grid-0000.png")
    pictures = np.stack([read(OUT / f"samples/{i:05}.png")[0] for i in range(4)])
    np.testing.assert_array_equal(pixels, image.grid(pictures, 4))
    grid = json.loads(texts["sdjax"])["grid"]
    assert grid == {"columns": 4, "pictures": [{"prompt": "x", "seed": 42 + i} for i in range(4)]}


def test_from_file_takes_a_prompt_a_line_and_a_short_last_chunk(fake) -> None:
    lines = "\ufeffa cat\r\n\r\n  \r\na dog \u2028 x\r\nbird\r\nfish"
    Path("prompts.txt").write_bytes(lines.encode())
    assert txt2img("--from-file", "prompts.txt", "--n_iter", "1", "--seed", "7") == 0
    assert [call["prompts"] for call in fake.made] == [["a cat", "a dog \u2028 x", "bird"], ["fish"]]
    assert [call["seed"] for call in fake.made] == [[7, 8, 9], [10]]
    assert settings(OUT / "samples/00003.png")["prompt"] == "fish"
    assert settings(OUT / "samples/00003.png")["batch"] == 1
    assert read(OUT / "grid-0000.png")[0].shape == (2 * 98 + 2, 3 * 98 + 2, 3)


def test_repeat_makes_each_line_several_times(fake) -> None:
    Path("prompts.txt").write_text("a\nb\n")
    assert txt2img("--from-file", "prompts.txt", "--repeat", "2", "--n_iter", "1") == 0
    assert [call["prompts"] for call in fake.made] == [["a", "a", "b"], ["b"]]


def test_fixed_code_gives_every_iteration_the_same_seeds(fake) -> None:
    assert txt2img("--fixed_code", "--n_samples", "2", "--n_iter", "2") == 0
    assert [call["seed"] for call in fake.made] == [[42, 43], [42, 43]]


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        (["--skip_grid"], {"samples"}),
        (["--skip_save"], {"grid-0000.png"}),
        (["--skip_grid", "--skip_save"], set()),
    ],
)
def test_skipped_files_are_not_written(fake, flags: list[str], written: set[str]) -> None:
    assert txt2img("--outdir", "here", *flags) == 0
    assert set(os.listdir("here")) == written


MEANINGS = [
    ("--plms", {"sampler": SAMPLERS["plms"]()}),
    ("--plms --ddim_eta 0", {"sampler": SAMPLERS["plms"]()}),
    ("--dpm", {"sampler": SAMPLERS["dpm_solver"]()}),
    ("--dpm_solver", {"sampler": SAMPLERS["dpm_solver"]()}),
    ("--plms --dpm_solver", {"sampler": SAMPLERS["dpm_solver"]()}),  # the references' precedence
    ("--sampler heun", {"sampler": SAMPLERS["heun"]()}),
    ("--sampler plms --plms", {"sampler": SAMPLERS["plms"]()}),
    ("--ddim_eta 0.5", {"sampler": sdjax.samplers.DDIM(eta=0.5)}),
    (
        "--dpm --sampler-option order=3 --sampler-option spacing=logSNR",
        {"sampler": sdjax.samplers.DPMSolverMultistep(order=3, spacing="logSNR")},
    ),
    ("--steps 7", {"num_steps": 7}),
    ("--ddim_steps 7", {"num_steps": 7}),
    ("--scale 3.5", {"guidance_scale": 3.5}),
    ("--H 128 --W 64", {"height": 128, "width": 64}),
    ("--C 4 --f 8", {"height": None}),
    ("--negative-prompt blur", {"negative_prompt": "blur"}),
    ("--parallel pmap", {"parallel": "pmap"}),
    ("--exact", {"exact": True}),
]


@pytest.mark.parametrize(("flags", "meaning"), MEANINGS, ids=[flags for flags, _ in MEANINGS])
def test_flags_reach_the_sampler(fake, flags: str, meaning: dict) -> None:
    assert txt2img("--n_iter", "1", "--n_samples", "1", *flags.split()) == 0
    assert {key: fake.made[0][key] for key in meaning} == meaning


def test_spacing_follows_the_models_schedule_unless_a_flag_says_otherwise(fake) -> None:
    fake.config = dataclasses.replace(fake.config, schedule=ScheduleConfig(prediction="v", zero_terminal_snr=True))
    for i, (flags, spacing) in enumerate({"": "trailing", "--sampler-option spacing=even": "even"}.items()):
        assert txt2img("--n_iter", "1", "--n_samples", "1", *flags.split()) == 0
        assert fake.made[i]["sampler"].spacing == spacing
        assert settings(OUT / f"samples/0000{i}.png")["sampler_options"]["spacing"] == spacing


LOADING = [
    ("--precision full", {"dtype": "float32"}),
    ("--precision autocast", {"dtype": None}),
    ("--dtype float16", {"dtype": "float16"}),
    ("--dtype float32 --precision full", {"dtype": "float32"}),
    ("--config v2.yaml", {"config": "v2.yaml"}),
    ("--prediction v", {"prediction": "v"}),
    ("--ema no", {"ema": "no"}),
    ("--vae model.ckpt", {"vae": Path("model.ckpt")}),
    ("--variant fp16", {"variant": "fp16"}),
]


@pytest.mark.parametrize(("flags", "meaning"), LOADING, ids=[flags for flags, _ in LOADING])
def test_flags_reach_the_loader(fake, flags: str, meaning: dict) -> None:
    assert txt2img("--n_iter", "1", "--n_samples", "1", *flags.split()) == 0
    assert {key: fake.loaded[0][1][key] for key in meaning} == meaning


REFUSED_EARLY = [
    ("--H 100", "the nearest is 96 or 104"),
    ("--W 4096", "from 64 to 2048; got 4096"),
    ("--repeat 2", "--n_iter repeats a single prompt"),
    ("--from-file missing.txt", "missing.txt cannot be read: No such file"),
    ("--from-file empty.txt", "holds no prompt"),
    ("--from-file latin.txt", "is not UTF-8 text"),
    ("--from-file full.txt --prompt a", "both give prompts"),
    ("--sampler ddim --plms", "contradicts --plms"),
    ("--sampler plms --dpm", "contradicts --dpm"),
    ("--precision full --dtype bfloat16", "--precision full means float32, --dtype says bfloat16"),
    ("--plms --ddim_eta 0.5", "the sampler plms has no eta; it has spacing, end"),
    ("--ddim_eta -1", "eta is a finite number from 0 up; got -1.0"),
    ("--sampler-option order", "is NAME=VALUE; got 'order'"),
    ("--dpm --sampler-option order=two", "order of the sampler dpm_solver is a whole number; got 'two'"),
    ("--sampler dpm_solver_adaptive --sampler-option joint=1", "is true or false; got '1'"),
    ("--sampler-option spacing=wide", "unknown spacing 'wide'; the known ones are even"),
    ("--n_rows -1", "--n_rows must be at least 1"),
    ("--seed 18446744073709551612", "this run would reach 18446744073709551617"),
    ("--device tpu", "JAX has no tpu here; it has cpu"),
    ("--device cpu:999", "the first is cpu:0"),
    ("--device 3", "--device is a kind"),
    ("--revision v1", "model.ckpt is a local path"),
]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED_EARLY, ids=[flags for flags, _ in REFUSED_EARLY])
def test_bad_input_is_refused_before_anything_is_loaded(fake, capsys, flags: str, sentence: str) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("full.txt").write_text("a cat\n")
    assert txt2img(*flags.split()) == 2
    assert sentence in capsys.readouterr().err
    assert not fake.loaded
    assert not OUT.exists()


@pytest.mark.parametrize(
    "flags",
    ["--n_samples 0", "--n_iter x", "--steps 0", "--seed -1", "--scale nan", "--ddim_eta inf", "--sampler odd",
     "--precision half", "--dtype int8", "--parallel vmap", "--ema maybe"],
)  # fmt: skip
def test_values_out_of_range_are_bad_usage(fake, capsys, flags: str) -> None:
    check_bad_usage(txt2img, flags, capsys)


def test_no_flag_is_ignored(fake) -> None:
    Path("prompts.txt").write_text("a\n")
    flags = ["--n_iter", "1"]
    check_no_flag_is_ignored(command, flags, [*flags, "--from-file", "prompts.txt"])


def test_hub_repository_is_fetched_first_and_named_by_its_commit(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    folder = Path("cache") / "snapshots" / commit
    folder.mkdir(parents=True)
    asked = []
    monkeypatch.setattr(hub, "resolve", lambda *given: asked.append(given) or folder)
    flags = "--revision v1 --variant fp16 --vae some/vae --n_iter 1 --n_samples 1"
    assert txt2img(*flags.split(), ckpt="owner/sd-1.5") == 0
    assert asked == [("owner/sd-1.5", "v1", "fp16"), ("some/vae",)]
    path, options = fake.loaded[0]
    assert (path, options["vae"], options["variant"]) == (str(folder), folder, "fp16")
    found = settings(OUT / "samples/00000.png")
    assert found["model"] == {"name": "owner/sd-1.5", "commit": commit}
    assert found["vae"] == {"name": "some/vae", "commit": commit}


@pytest.mark.parametrize("flags", ["--ckpt missing.ckpt", "--ckpt folder/missing.safetensors", "--vae missing.ckpt"])
def test_missing_checkpoint_is_told_before_anything_is_loaded(fake, capsys, flags: str) -> None:
    given = ["--ckpt", "model.ckpt"] * ("--ckpt" not in flags)
    assert main(["txt2img", *given, *flags.split()]) == 3
    assert f"{flags.split()[1]}: there is no such file or folder" in capsys.readouterr().err
    assert not fake.loaded
    assert not OUT.exists()


@pytest.mark.parametrize(("flags", "own"), [("--C 3", 4), ("--f 4", 8)])
def test_latent_flags_are_checked_against_the_model(fake, capsys, flags: str, own: int) -> None:
    assert txt2img(*flags.split()) == 2
    assert f"{flags} contradicts the model, which has {own}" in capsys.readouterr().err
    assert not fake.made


def builtin_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Takes `folder` for the built-in model's."""
    monkeypatch.setattr(builtin, "FOLDER", folder)


def test_without_a_checkpoint_the_built_in_model_is_taken_and_its_prompt(fake, monkeypatch) -> None:
    Path("own").mkdir()
    Path("own/config.json").write_text("{}")
    builtin_model(monkeypatch, Path("own"))
    assert main(["txt2img", "--n_iter", "1", "--n_samples", "1"]) == 0
    assert fake.loaded[0][0] == builtin.NAME
    assert fake.made[0]["prompts"] == ["a rocket on a green background"]
    assert settings(OUT / "samples/00000.png")["model"]["name"] == "own"
    assert main(["txt2img", "--n_iter", "1", "--n_samples", "1", "--prompt", "an owl"]) == 0
    assert fake.made[1]["prompts"] == ["an owl"]


def test_without_any_model_one_sentence_says_what_to_do(fake, capsys, monkeypatch) -> None:
    monkeypatch.setattr(builtin, "FOLDER", Path("nowhere"))
    assert main(["txt2img"]) == 3
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "has no built-in model; name a checkpoint (--ckpt" in err
    assert not fake.loaded
    assert not OUT.exists()


def test_compvis_place_for_the_checkpoint_is_the_default(fake) -> None:
    path = Path("models/ldm/stable-diffusion-v1/model.ckpt")
    path.parent.mkdir(parents=True)
    path.touch()
    assert main(["txt2img", "--n_iter", "1"]) == 0
    assert fake.loaded[0][0] == str(path)


def test_what_the_text_encoder_will_not_see_is_said(fake, capsys) -> None:
    fake.notices = ("prediction type v, by the file's metadata",)
    assert (
        txt2img(
            "--prompt",
            "cat " * 75 + "dog",
            "--negative-prompt",
            "bird " * 76,
            "--n_iter",
            "1",
            "--prompt-syntax",
            "plain",
        )
        == 0
    )
    err = capsys.readouterr().err
    assert 'a prompt has more than 75 tokens; left out is "dog"' in err
    assert 'left out is "bird"' in err
    assert "note: prediction type v, by the file's metadata" in err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (results.ImageError("picture 0 is one flat colour"), 4),
        (results.OutOfMemoryError("try fewer"), 5),
    ],
)
def test_pictures_made_before_a_failure_are_kept(fake, error: BaseException, status: int) -> None:
    fake.error = error  # raised by the second batch
    assert txt2img() == status
    assert os.listdir(OUT) == ["samples"]
    assert sorted(os.listdir(OUT / "samples")) == ["00000.png", "00001.png", "00002.png"]


def test_folder_that_cannot_be_made_is_told_before_loading(fake, capsys) -> None:
    Path("taken").touch()
    assert txt2img("--outdir", "taken") == 1
    assert "taken" in capsys.readouterr().err
    assert not fake.loaded


def test_the_whole_way_gives_the_librarys_own_pictures(monkeypatch, capsys, tmp_path: Path) -> None:
    pipe = models.pipeline()
    monkeypatch.chdir(tmp_path)
    convert.save(pipe.config, pipe.params, "model", to="native")
    flags = "--prompt cat --steps 3 --scale 2 --n_iter 1 --n_samples 2 --seed 5 --device cpu:0 --precision full"
    assert txt2img(*flags.split(), ckpt="model") == 0
    options = {"seed": 5, "num_images": 2, "num_steps": 3, "guidance_scale": 2.0}
    expected = sdjax.text_to_image(pipe, "cat", devices=jax.devices()[:1], **options)
    for i in range(2):
        np.testing.assert_array_equal(read(OUT / f"samples/{i:05}.png")[0], expected[i])
    # The same folder as the built-in model: the same pictures, and it is said what they were made by
    builtin_model(monkeypatch, Path("model"))
    capsys.readouterr()
    assert main(["txt2img", *flags.split(), "--outdir", "own"]) == 0
    assert (Path("own/samples/00000.png").read_bytes()) == (OUT / "samples/00000.png").read_bytes()
    assert "note: no checkpoint was named, so the built-in model is used" in capsys.readouterr().err
    first = (OUT / "samples/00000.png").read_bytes()
    assert txt2img(*flags.split(), ckpt="model") == 0
    assert (OUT / "samples/00002.png").read_bytes() == first
