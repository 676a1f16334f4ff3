"""`sdjax invert` and `--latents`: noise goes into a file and comes back; files that are none are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from command_checks import check_no_flag_is_ignored, read, write

import sdjax
from sdjax.scripts import invert as command
from sdjax.scripts.main import main
from sdjax.scripts.shared import noise_files

NOISE = np.random.default_rng(0).normal(size=(8, 12, 4)).astype(np.float32)


@pytest.fixture
def inverter(fake, monkeypatch):
    """A Fake that gives every picture the same noise."""

    def stand_in(pipe, image, prompt, **options):
        fake.note([prompt], image=image, **options)
        return NOISE[None]

    monkeypatch.setattr(sdjax, "invert", stand_in, raising=False)
    return fake


def invert(*flags: str) -> int:
    return main(["invert", "--ckpt", "model.ckpt", *flags])


def test_the_noise_of_a_picture_starts_another(inverter, capsys) -> None:
    pixels = write("a.png", 64, 96)
    flags = "--prompt cat --steps 7 --schedule karras --refinements 2 --zero-terminal-snr diffusers --seamless x"
    assert invert("--init-img", "a.png", *flags.split()) == 0
    (call,) = inverter.made
    np.testing.assert_array_equal(call["image"], pixels)
    assert (call["prompts"], call["num_steps"], call["guidance_scale"]) == (["cat"], 7, 1)
    assert (call["spacing"], call["refinements"], call["seamless"]) == ("karras", 2, "x")
    assert call["zero_terminal_snr"] == "diffusers"
    (path,) = capsys.readouterr().out.split()
    np.testing.assert_array_equal(np.load(path), NOISE)
    assert main(f"txt2img --ckpt model.ckpt --latents {path} --n_samples 1 --n_iter 1 --skip_grid".split()) == 0
    np.testing.assert_array_equal(inverter.made[1]["latents"], NOISE)
    assert (inverter.made[1]["height"], inverter.made[1]["width"]) == (64, 96)  # the noise's own size
    recorded = read(Path("outputs/txt2img-samples/samples/00000.png"))[1]["latents"]
    assert recorded == {"name": "00000.npy", "sha256": noise_files.read(path).sha256}
    assert main(f"txt2img --ckpt model.ckpt --latents {path} --W 64".split()) == 2
    assert "is noise for --H 64 --W 96: leave --H and --W out" in capsys.readouterr().err


def test_every_picture_of_a_folder_is_inverted(inverter, capsys) -> None:
    for name in "abc":
        write(f"in/{name}.png")
    assert invert("--init-img", "in", "--outdir", "o") == 0
    assert capsys.readouterr().out.split() == [str(Path(f"o/0000{i}.npy")) for i in range(3)]


def test_no_flag_is_ignored(inverter) -> None:
    write("a.png")
    check_no_flag_is_ignored(command, ["--init-img", "a.png"])


def test_what_cannot_be_inverted_is_refused_before_the_model_is_read(inverter, capsys) -> None:
    write("a.png")
    for flags, said in (
        (["--init-img", "none.png"], "none.png cannot be read"),
        (["--init-img", "a.png", "--refinements", "101"], "refinements is a whole number from 0 to 100"),
        (["--init-img", "a.png", "--H", "65"], "height is a multiple of"),
        (["--init-img", "a.png", "--negative-prompt", "x"], "--negative-prompt has no effect at guidance scale 1"),
    ):
        assert invert(*flags) == 2
        assert said in capsys.readouterr().err
    assert not inverter.loaded


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def saved(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


NO_NOISE = {
    "an empty file": b"",
    "text": b"hello",
    "objects": saved(np.array([{}], dtype=object), allow_pickle=True),
    "two axes": saved(np.zeros((8, 8), np.float32)),
    "whole numbers": saved(np.zeros((8, 8, 4), np.int32)),
    "not a number": saved(np.full((8, 8, 4), np.nan, np.float32)),
    "cut off": saved(np.zeros((8, 8, 4), np.float32))[:-3],
    "more than its header says": saved(np.zeros((8, 8, 4), np.float32)) + bytes(8),
    "a huge shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999, 9999, 9999), }\n"),
    "a negative shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-8, -8, 4), }\n", bytes(1024)),
    "an endless number": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 9000 + ", 1, 1), }\n"),
    "deep brackets": npy("[" * 9000 + "\n"),
}


@pytest.mark.parametrize("data", NO_NOISE.values(), ids=NO_NOISE)
def test_files_that_are_no_noise_are_refused(tmp_path, data) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.npy is no starting noise, a .npy file with finite numbers"):
        noise_files.read(str(tmp_path / "x.npy"))


def test_noise_in_other_types_and_orders_is_read(tmp_path) -> None:
    for number, array in enumerate((NOISE, NOISE.astype(">f8"), np.asfortranarray(NOISE))):
        (tmp_path / f"{number}.npy").write_bytes(saved(array))
        np.testing.assert_array_equal(noise_files.read(str(tmp_path / f"{number}.npy")).values, NOISE)
    assert noise_files.encode(NOISE) == saved(NOISE)
