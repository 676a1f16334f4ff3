"""`sdjax inpaint`: masks, folders, flags, what is written and refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from command_checks import check_bad_usage, check_no_flag_is_ignored, read, write
from PIL import Image

from sdjax import convert
from sdjax.loading import builtin
from sdjax.scripts import inpaint as command
from sdjax.scripts.main import main
from sdjax.scripts.shared import options
from sdjax.tasks.inpaint import FILLS, METHODS

import models

OUT = Path("outputs/inpaint-samples")


def write_mask(path: str, height: int = 64, width: int = 64) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[10:30, 10:30] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return mask


def inpaint(*flags: str, given: str = "a.png") -> int:
    return main(["inpaint", "--ckpt", "model.ckpt", "--init-img", given, *flags])


def settings(name: str) -> dict:
    return read(OUT / name)[1]


def test_a_picture_and_its_mask_are_handed_on(fake, capsys) -> None:
    pixels, mask = write("a.png", 50, 70), write_mask("m.png", 50, 70)
    assert inpaint("--mask", "m.png", "--prompt", "x") == 0
    (call,) = fake.made
    np.testing.assert_array_equal(call["images"][0], pixels)
    np.testing.assert_array_equal(call["mask"][0], mask)
    assert (call["prompts"], call["seed"], call["num_steps"]) == (["x"], [42], 50)
    assert (call["strength"], call["method"], call["only_masked"], call["composite"], call["feather"]) == (
        1.0, None, False, True, 0)  # fmt: skip
    assert "padding" not in call
    found = settings("samples/00000.png")
    assert (found["task"], found["method"], found["mask"]["name"]) == ("inpaint", "blend", "m.png")
    assert (found["width"], found["height"], found["init_img"]["width"]) == (70, 50, 70)
    assert tuple(METHODS) == command.METHODS
    assert command.FILLS == FILLS


def test_a_folder_is_made_with_the_masks_beside(fake) -> None:
    pixels = [write(f"in/{n}.png", seed=i) for i, n in enumerate("ab")]
    masks = [write_mask("in/a_mask.png"), 255 - write_mask("in/b_mask.png")]
    Image.fromarray(masks[1]).save("in/b_mask.png")
    assert main(["inpaint", "--ckpt", "model.ckpt", "--indir", "in"]) == 0
    (call,) = fake.made
    np.testing.assert_array_equal(call["images"], pixels)
    np.testing.assert_array_equal(call["mask"], masks)
    assert call["prompts"] == ["", ""]


def test_masks_can_lie_in_a_folder_of_their_own_or_be_one_for_all(fake) -> None:
    for name in "ab":
        write(f"in/{name}.jpg")
        write_mask(f"masks/{name}.png")
    assert inpaint("--mask", "masks", given="in") == 0
    assert inpaint("--mask", "masks/a.png", given="in") == 0
    for call in fake.made:
        assert len(call["mask"]) == 2
    assert settings("samples/00001.png")["mask"]["name"] == "b.png"
    assert settings("samples/00003.png")["mask"]["name"] == "a.png"


def test_without_a_checkpoint_the_models_inside_the_package_are_taken(fake, capsys, monkeypatch) -> None:
    assert options.BUILTIN == builtin.NAMES
    monkeypatch.setattr(builtin, "FOLDER", Path("builtin").absolute())
    write("a.png")
    write_mask("a_mask.png")
    Path("builtin").mkdir()
    Path("builtin/config.json").write_text("{}")
    assert main(["inpaint", "--init-img", "a.png"]) == 3
    assert "has no built-in inpainting model" in capsys.readouterr().err
    Path("builtin-inpainting.safetensors").touch()
    assert main(["inpaint", "--init-img", "a.png"]) == 0
    assert "note: no checkpoint was named, so the built-in inpainting model" in capsys.readouterr().err
    assert main(["inpaint", "--init-img", "a.png", "--method", "blend"]) == 0
    assert main(["inpaint", "--init-img", "a.png", "--method", "blend", "--ckpt", "builtin-inpainting"]) == 0
    assert "no checkpoint was named" in capsys.readouterr().err
    assert [loaded[0] for loaded in fake.loaded] == ["builtin-inpainting", "builtin", "builtin-inpainting"]
    assert fake.made[0]["prompts"] == [""]


MEANINGS = [
    ("--strength 0.5", {"strength": 0.5}),
    ("--method blend", {"method": "blend"}),
    ("--only-masked", {"only_masked": True}),
    ("--only-masked --padding 5", {"only_masked": True, "padding": 5}),
    ("--no-composite", {"composite": False}),
    ("--feather 8", {"feather": 8}),
    ("--expand 1,2,3,4", {"expand": (1, 2, 3, 4), "overlap": 0}),
    ("--expand 1,2,3,4 --overlap 6", {"expand": (1, 2, 3, 4), "overlap": 6}),
    ("--n_samples 3 --seed 5", {"seed": [5, 6, 7]}),
    ("--scale 3", {"guidance_scale": 3.0}),
]


@pytest.mark.parametrize(("flags", "meaning"), MEANINGS, ids=[flags for flags, _ in MEANINGS])
def test_flags_reach_the_task(fake, flags: str, meaning: dict) -> None:
    write("a.png")
    write_mask("a_mask.png")
    assert inpaint("--mask", "a_mask.png", *flags.split()) == 0
    assert {key: fake.made[0][key] for key in meaning} == meaning


def test_outpainting_needs_no_mask(fake) -> None:
    write("a.png")
    assert inpaint("--expand", "0,0,64,0") == 0
    assert fake.made[0]["mask"] is None
    assert settings("samples/00000.png")["mask"] is None


REFUSED = [
    ("", "no mask is given; name one with --mask, or put a_mask.png into ."),
    ("--mask small.png", "small.png: a mask is of the picture's size, 64 x 64; this one is 32 x 64"),
    ("--mask missing.png", "--mask missing.png cannot be read: No such file"),
    ("--mask text.png", "text.png: "),
    ("--mask m.png --padding 5", "--padding has no effect without --only-masked"),
    ("--mask m.png --overlap 5", "--overlap has no effect without --expand"),
    ("--mask m.png --no-composite --feather 5", "--feather has no effect with --no-composite"),
    ("--expand 0,0,0,0", "not all 0"),
    ("--expand 0,0,0,5000", "from 0 to 2048"),
    ("--init-img wide.png --mask wide_mask.png", "at most 2048 x 2048 pixels can be inpainted; got 2100 x 8"),
]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_bad_input_is_refused_before_anything_is_loaded(fake, capsys, flags: str, sentence: str) -> None:
    write("a.png")
    write("wide.png", 8, 2100)
    write_mask("m.png")
    write_mask("small.png", 64, 32)
    write_mask("wide_mask.png", 8, 2100)
    Path("text.png").write_text("no picture")
    given = ["--init-img", "a.png"] * ("--init-img" not in flags)
    assert main(["inpaint", "--ckpt", "model.ckpt", *given, *flags.split()]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert not fake.loaded
    assert not OUT.exists()


@pytest.mark.parametrize(
    "flags", ["--strength 2", "--expand 1,2,3", "--expand=-1,0,0,1", "--feather -1", "--method odd", "--padding x"]
)
def test_values_out_of_range_are_bad_usage(fake, capsys, flags: str) -> None:
    check_bad_usage(inpaint, flags, capsys)


@pytest.mark.parametrize(("channels", "method"), [(4, "concat"), (9, "blend"), (5, "concat"), (5, "blend")])
def test_a_model_that_cannot_do_the_method_is_refused(fake, capsys, channels: int, method: str) -> None:
    write("a.png")
    write_mask("a_mask.png")
    fake.config = dataclasses.replace(fake.config, unet=dataclasses.replace(fake.config.unet, in_channels=channels))
    assert inpaint("--method", method) == 2
    assert f"inpaint by method '{method}' needs a model" in capsys.readouterr().err
    assert not fake.loaded  # the description was enough


def test_no_flag_is_ignored(fake) -> None:
    write("a.png")
    write_mask("a_mask.png")
    Path("prompts.txt").write_text("a\n")
    flags = ["--init-img", "a.png"]
    check_no_flag_is_ignored(command, flags, [*flags, "--from-file", "prompts.txt", "--expand", "1,0,0,0"])


def test_the_whole_way_from_files_to_files(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pixels, mask = write("a.png", 50, 60), write_mask("a_mask.png", 50, 60)
    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, "model", to="native")
    flags = ["--ckpt", "model", "--init-img", "a.png", "--steps", "4", "--device", "cpu:0", "--skip_grid"]
    assert main(["inpaint", *flags]) == 0
    made, _ = read(OUT / "samples/00000.png")
    np.testing.assert_array_equal(made[mask == 0], pixels[mask == 0])
    assert (made[mask > 0] != pixels[mask > 0]).mean() > 0.9
