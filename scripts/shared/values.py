"""Types of flags for argparse. Imports nothing heavy: every --help reads it."""

import argparse
import math
import os
from collections.abc import Callable

from sdjax.checks.arguments import DTYPE_ALIASES


def dtype(text: str) -> str:
    """Returns a type's full name, also for short names such as fp16, for argparse."""
    return DTYPE_ALIASES.get(text.lower(), text)


def positive(text: str) -> int:
    """Returns a whole number from 1 up, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up; got {text}")
    return value


def seed(text: str) -> int:
    """Returns a seed, for argparse."""
    value = int(text)
    if not 0 <= value < 2**64:
        raise argparse.ArgumentTypeError(f"a seed is from 0 to 2**64 - 1; got {text}")
    return value


def finite(text: str) -> float:
    """Returns a finite number, for argparse."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number; got {text}")
    return value


def strength(text: str) -> float:
    """Returns a strength, for argparse."""
    return _from_0_to_1(text, "a strength is from 0 to 1")


def share(text: str) -> float:
    """Returns a number from 0 to 1, for argparse."""
    return _from_0_to_1(text, "expected a number from 0 to 1")


def _from_0_to_1(text: str, sentence: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{sentence}; got {text}")
    return value


def colour(text: str) -> tuple[int, ...]:
    """Returns a colour's three levels, for argparse."""
    levels = tuple(int(level) for level in text.split(","))
    if len(levels) != 3 or not all(0 <= level <= 255 for level in levels):
        raise argparse.ArgumentTypeError(f"a colour is three levels from 0 to 255, such as 255,255,255; got {text}")
    return levels


def natural(text: str) -> int:
    """Returns a whole number from 0 up, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up; got {text}")
    return value


def noise_level(most: int) -> Callable[[str], int]:
    """Returns a function that reads a noise level from 0 to `most`, for argparse."""

    def noise_level(text: str) -> int:
        value = int(text)
        if not 0 <= value <= most:
            raise argparse.ArgumentTypeError(f"a noise level is from 0 to {most}; got {text}")
        return value

    return noise_level


def folder(text: str) -> str:
    """Returns the name of a folder to write to, for argparse. Refuses a name with a file's ending."""
    from sdjax.storage.files import file_ending

    ending = file_ending(os.path.basename(text))
    if ending is not None and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"expected a folder, but {text!r} looks like a file: it ends in {ending}")
    return text


def size(text: str) -> tuple[int, int]:
    """Returns (height, width) of a size such as 512x768, width first, for argparse."""
    width, separator, height = text.lower().partition("x")
    if not (separator and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 512x768; got {text or 'nothing'}")
    return int(height), int(width)


def place(text: str) -> tuple[int, int]:
    """Returns (k, n) of a place such as 2/4, for argparse."""
    number, separator, count = text.partition("/")
    if not (separator and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"expected K/N, number K of N counted from 0, such as 2/4; got {text or 'nothing'}"
        )
    return int(number), int(count)


def box(text: str) -> tuple[int, ...]:
    """Returns left, top, width and height in pixels, for argparse."""
    values = tuple(int(value) for value in text.split(","))
    if len(values) != 4 or min(values[2:]) < 1:
        raise argparse.ArgumentTypeError(f"expected left,top,width,height in pixels, such as 96,64,128,128; got {text}")
    return values


def sides(text: str) -> tuple[int, ...]:
    """Returns four numbers of pixels, for argparse."""
    values = tuple(int(value) for value in text.split(","))
    if len(values) != 4 or min(values) < 0:
        raise argparse.ArgumentTypeError(f"expected left,top,right,bottom in pixels, such as 64,0,64,0; got {text}")
    return values
