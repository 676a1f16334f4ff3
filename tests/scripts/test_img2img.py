"""`sdjax img2img` and the second pass of txt2img: what the flags mean, folders, what is written and refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from command_checks import check_bad_usage, check_no_flag_is_ignored, read, write
from PIL import Image

import sdjax
from sdjax import convert, samplers
from sdjax.samplers import SAMPLERS
from sdjax.scripts import img2img as command
from sdjax.scripts import txt2img
from sdjax.scripts.main import main
from sdjax.scripts.shared import job
from sdjax.tasks import two_pass

import models

OUT = Path("outputs/img2img-samples")
COMPVIS = (
    "--prompt --init-img --outdir --skip_grid --skip_save --ddim_steps --plms --fixed_code --ddim_eta --n_iter --C --f "
    "--n_samples --n_rows --scale --strength --from-file --config --ckpt --seed --precision"
)


def img2img(*flags: str, given: str = "a.png") -> int:
    return main(["img2img", "--ckpt", "model.ckpt", "--init-img", given, *flags])


def test_every_flag_of_the_references_is_there_with_compvis_defaults(fake, capsys) -> None:
    known = {flag for action in command.make_parser()._actions for flag in action.option_strings}
    assert set(COMPVIS.split()) <= known
    write("a.png")
    assert img2img() == 0
    (call,) = fake.made  # --n_iter 1
    assert call["prompts"] == ["a painting of a virus monster playing guitar"] * 2  # --n_samples 2
    assert (call["seed"], call["strength"], call["num_steps"]) == ([42, 43], 0.75, 50)
    assert (call["sampler"], call["guidance_scale"]) == (SAMPLERS["ddim"](), None)
    assert "compat" not in call
    names = [OUT / "samples/00000.png", OUT / "samples/00001.png", OUT / "grid-0000.png"]
    out, err = capsys.readouterr()
    assert out.split() == [str(name) for name in names]
    assert err == ""


def test_the_size_that_a_picture_is_brought_to_is_stated(fake, capsys) -> None:
    write("a.png", 70, 140)
    assert img2img("--n_samples", "1") == 0
    assert "note: a.png: 140 x 70 resized to 128 x 64 (LANCZOS)\n" in capsys.readouterr().err
    assert fake.made[0]["images"][0].shape == (64, 128, 3)
    assert img2img("--n_samples", "1", "--H", "72") == 0
    assert "resized to 128 x 72" in capsys.readouterr().err
    assert (fake.made[1]["height"], fake.made[1]["images"][0].shape) == (72, (72, 128, 3))


def test_png_says_what_it_was_made_from(fake) -> None:
    write("in/a.png")
    assert img2img("--strength", "0.5", "--n_samples", "1", "--prompt", "x", given="in/a.png") == 0
    with Image.open(OUT / "samples/00000.png") as png:
        assert ", Denoising strength: 0.5, " in png.text["parameters"]
    _, found = read(OUT / "samples/00000.png")
    digest = hashlib.sha256(Path("in/a.png").read_bytes()).hexdigest()
    assert found["init_img"] == {"name": "a.png", "sha256": digest, "width": 64, "height": 64}
    assert (found["task"], found["strength"]) == ("img2img", 0.5)


def test_a_folder_is_one_batch_and_its_masks_are_left_out(fake, capsys) -> None:
    pixels = [write(f"in/{name}", seed=i) for i, name in enumerate(("a2.png", "a10.png", "b.png"))]
    write("in/a2_mask.png")
    Path("in/notes.txt").write_text("no picture")
    assert img2img("--seed", "7", "--n_iter", "2", given="in") == 0
    assert [call["seed"] for call in fake.made] == [[7, 8, 9], [10, 11, 12]]
    for got, want in zip(fake.made[0]["images"], pixels, strict=True):
        np.testing.assert_array_equal(got, want)
    assert read(OUT / "samples/00001.png")[1]["init_img"]["name"] == "a10.png"
    assert [p["init_img"]["name"] for p in read(OUT / "grid-0000.png")[1]["grid"]["pictures"][:3]] == [
        "a2.png", "a10.png", "b.png"]  # fmt: skip


def test_a_folder_can_be_cut_into_batches_with_a_prompt_a_picture(fake) -> None:
    for i in range(3):
        write(f"in/{i}.png", seed=i)
    Path("prompts.txt").write_text("a\nb\nc\n")
    assert img2img("--n_samples", "2", "--from-file", "prompts.txt", given="in") == 0
    # The last batch is filled up, as another size would be compiled for itself; what fills it is not written
    assert [call["prompts"] for call in fake.made] == [["a", "b"], ["c", "c"]]
    assert [call["seed"] for call in fake.made] == [[42, 43], [44, 44]]
    assert [len(call["images"]) for call in fake.made] == [2, 2]
    assert len(list((OUT / "samples").iterdir())) == 3


def test_a_large_folder_is_made_four_at_a_time_and_its_grid_is_square(fake, capsys, monkeypatch) -> None:
    for i in range(9):
        write(f"in/{i}.png", seed=i)
    assert img2img(given="in") == 0
    assert [len(call["images"]) for call in fake.made] == [3, 3, 3]
    assert read(OUT / "grid-0000.png")[0].shape == (3 * 66 + 2, 3 * 66 + 2, 3)
    monkeypatch.setattr(job, "MAX_GRID", 8 * 64 * 64)
    assert img2img(given="in") == 0
    assert "no grid was made, because it would have more than" in capsys.readouterr().err
    assert not (OUT / "grid-0001.png").exists()


def test_no_grid_is_made_of_several_sizes(fake, capsys) -> None:
    write("in/a.png")
    write("in/b.png", 128, 64)
    assert img2img(given="in") == 0
    assert "no grid was made" in capsys.readouterr().err
    assert not (OUT / "grid-0000.png").exists()


def test_transparency_is_laid_on_the_colour_that_is_named(fake, capsys) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save("a.png")
    assert img2img("--background", "10,20,30") == 0
    assert (fake.made[0]["images"][0] == (10, 20, 30)).all()
    assert "transparency laid on the colour (10, 20, 30)" in capsys.readouterr().err


def test_compat_counts_by_compvis_timesteps(fake) -> None:
    write("a.png")
    assert img2img("--compat", "compvis") == 0
    assert (fake.made[0]["compat"], fake.made[0]["sampler"].spacing) == ("compvis", "compvis")
    assert read(OUT / "samples/00000.png")[1]["compat"] == "compvis"


REFUSED = [
    ("--variation-seed 3", "--variation-seed has no effect without --variation-strength"),
    ("--noise-batch 1/2", "--noise-batch has no effect without --noise-source or --compat"),
    ("--H 100", "the nearest is 96 or 104"),
    ("--init-img missing.png", "--init-img missing.png cannot be read: No such file"),
    ("--init-img text.png", "text.png: "),
    ("--init-img empty", "empty: no picture is in this folder"),
    ("--init-img two --from-file three.txt", "one for each of the 2 pictures; got 3"),
    ("--repeat 2", "--n_iter repeats a single prompt"),
]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED, ids=[flags for flags, _ in REFUSED])
def test_bad_input_is_refused_before_anything_is_loaded(fake, capsys, flags: str, sentence: str) -> None:
    for path in "a.png", "two/a.png", "two/b.png":
        write(path)
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
    Path("three.txt").write_text("a\nb\nc\n")
    assert (
        main(["img2img", "--ckpt", "model.ckpt", *("--init-img a.png " * ("--init-img" not in flags) + flags).split()])
        == 2
    )
    out, err = capsys.readouterr()
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not fake.loaded
    assert not OUT.exists()


@pytest.mark.parametrize("flags", ["--strength 1.01", "--strength -0.1", "--strength nan", "--strength x",
                                   "--background 1,2", "--background 1,2,256",
                                   "--compat photoshop", "--seed-resize 512", "--noise-batch 2/2"])  # fmt: skip
def test_values_out_of_range_are_bad_usage(fake, capsys, flags: str) -> None:
    write("a.png")
    check_bad_usage(img2img, flags, capsys)


def test_a_model_of_another_kind_is_refused_before_its_weights_are_read(monkeypatch, capsys, tmp_path) -> None:
    import dataclasses

    from sdjax.loading import load

    monkeypatch.chdir(tmp_path)
    write("a.png")
    unet = dataclasses.replace(models.TINY.unet, in_channels=9)
    config = dataclasses.replace(models.TINY, name="nine", unet=unet)
    convert.save(config, models.pipeline(config).params, "nine", to="native")
    monkeypatch.setattr(load, "cast", lambda *args: pytest.fail("the weights were read"))
    for name in "txt2img", "img2img":
        given = ["--init-img", "a.png"] * (name == "img2img")
        assert main([name, "--ckpt", "nine", *given]) == 2
        assert "takes 9 channels: it is one for inpainting" in capsys.readouterr().err


def test_no_flag_is_ignored(fake) -> None:
    write("a.png")
    Path("prompts.txt").write_text("a\n")
    flags = ["--init-img", "a.png"]
    check_no_flag_is_ignored(command, flags, [*flags, "--from-file", "prompts.txt"])


def test_txt2img_makes_two_passes(fake) -> None:
    assert (*two_pass.UPSCALES, *two_pass.A1111_UPSCALES) == txt2img.UPSCALES
    assert main(["txt2img", "--ckpt", "model.ckpt", "--n_iter", "1", "--hires", "2", "--H", "64", "--W", "64"]) == 0
    call = fake.made[0]
    assert (call["enlarge"], call["upscale"], call["strength"], call["height"]) == (2.0, "lanczos", 0.6, 64)
    flags = ["--hires", "1.5", "--hires-upscale", "bicubic", "--hires-strength", "0.8"]
    assert main(["txt2img", "--ckpt", "model.ckpt", "--n_iter", "1", *flags]) == 0
    assert (fake.made[1]["upscale"], fake.made[1]["strength"]) == ("bicubic", 0.8)
    with Image.open("outputs/txt2img-samples/samples/00003.png") as png:
        assert (
            "Denoising strength: 0.8, Hires upscale: 1.5, Hires upscaler: Latent (bicubic antialiased)"
            in png.text["parameters"]
        )
        assert json.loads(png.text["sdjax"])["hires"] == {"enlarge": 1.5, "upscale": "bicubic", "strength": 0.8}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [("--hires 2 --hires-patch odd", "unknown patch 'odd'"), ("--hires-patch none", "add --hires, such as"),
     ("--hires-strength 0.5", "add --hires, such as"), ("--hires-upscale nearest", "add --hires, such as"),
     ("--hires 0.5 --H 64 --W 64", "enlarge is a number from 1 up"), ("--hires 9 --H 512 --W 512", "from 64 to 2048")],
)  # fmt: skip
def test_a_second_pass_that_cannot_be_is_refused_early(fake, capsys, flags: str, sentence: str) -> None:
    assert main(["txt2img", "--ckpt", "model.ckpt", *flags.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not fake.loaded


def test_the_whole_way_from_a_folder_to_pictures(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    given = [write(f"in/{i}.png", seed=i) for i in range(2)]
    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, "model", to="native")
    flags = ["--ckpt", "model", "--init-img", "in", "--prompt", "a cat", "--steps", "4", "--device", "cpu:0"]
    assert main(["img2img", *flags, "--strength", "0.5", "--seed", "1"]) == 0
    pipe = sdjax.load("model")
    want = sdjax.image_to_image(pipe, given, "a cat", strength=0.5, num_steps=4, seed=1, devices=_first())
    np.testing.assert_array_equal([read(OUT / f"samples/0000{i}.png")[0] for i in range(2)], want)
    assert samplers.DDIM().spacing == read(OUT / "samples/00000.png")[1]["sampler_options"]["spacing"]


def _first() -> list:
    import jax

    return jax.devices()[:1]
