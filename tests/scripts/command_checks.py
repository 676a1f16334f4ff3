"""Code for tests of several commands: write pictures, read back what was written, and try every flag."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write(path: str, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Writes a picture and returns its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def read(path: Path) -> tuple[np.ndarray, dict]:
    """Returns a picture that a command wrote, and its settings."""
    with Image.open(path) as png:
        png.load()
        return np.asarray(png), json.loads(png.text["sdjax"])


class Reads(argparse.Namespace):
    """Arguments that remember which of them were looked at."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.__dict__.update(vars(args), seen=set())

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("_") and name != "seen":
            self.seen.add(name)
        return super().__getattribute__(name)


def check_no_flag_is_ignored(command: object, *runs: list[str]) -> None:
    """Runs a command's module with each of these flags and checks that every flag was looked at in one of them."""
    seen = {"debug", "given"}  # main's
    for flags in runs:
        parsed = command.make_parser().parse_args(["--ckpt", "model.ckpt", *flags])
        args = Reads(parsed)
        command.run(args)
        seen |= args.seen
    assert set(vars(parsed)) - seen == set()


def check_bad_usage(run: Callable[..., int], flags: str, capsys: pytest.CaptureFixture) -> None:
    """Checks that argparse refuses the first of the flags."""
    with pytest.raises(SystemExit) as end:
        run(*flags.split())
    assert end.value.code == 2
    assert f"argument {flags.replace('=', ' ').split()[0]}" in capsys.readouterr().err
