"""`sdjax hint`: makes hints for ControlNets and T2I-Adapters from pictures."""

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdjax.preprocessors import ANNOTATORS, PREPROCESSORS, Option
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, options, values
from sdjax.scripts.shared.runtime import read_options
from sdjax.spelling import meant

IF_OUT_OF_MEMORY = "a smaller --resolution"
WIDTH = 88
RESOLUTION = 512  # as in other tools

DESCRIPTION = """\
Makes the hint of a picture, or of each picture of a folder: edges, tones, depth or
poses, which a ControlNet or T2I-Adapter follows. Prints the paths."""


def _listing() -> Iterator[str]:
    """Yields the lines that describe all preprocessors and their options."""
    for name, preprocessor in PREPROCESSORS.items():
        needs = f" (needs: {', '.join(preprocessor.needs)})" if preprocessor.needs else ""
        yield from textwrap.wrap(
            f"{preprocessor.purpose}{needs}", WIDTH, initial_indent=f"  {name:<20}", subsequent_indent=" " * 22
        )
        for key, option in preprocessor.options.items():
            text = f"{key}={option.default:g}: {option.purpose}"
            yield from textwrap.wrap(text, WIDTH, initial_indent=" " * 24, subsequent_indent=" " * 26)


def _files() -> Iterator[str]:
    """Yields the lines that describe the annotators."""
    for kind, (what, files) in ANNOTATORS.items():
        yield from textwrap.wrap(f"{what}: {files}", WIDTH, initial_indent=f"  {kind:<8}", subsequent_indent=" " * 10)


EPILOG = """\
preprocessors, and their options with the defaults:
{}

annotators, and the files that they are published in:
{}

The hint has the size at which it is made. Give --resolution the shorter side of the
pictures that you make: thin lines vanish when a hint shrinks.
There is no preprocessor for MLSD (straight lines) and segmentation: give their
ControlNets a hint picture that another tool made.

examples:
  sdjax hint canny photo.jpg --out edges.png --option low_threshold=50
  sdjax hint openpose photo.jpg --out pose.png --annotator body_pose_model.pth
  sdjax hint shuffle photo.jpg --out shuffled.png --option seed=3
  sdjax hint tile_resample frames --out blurred-frames --option down_sampling_rate=4

{}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax hint`."""
    parser = options.make_command_parser(
        "hint", DESCRIPTION, EPILOG.format("\n".join(_listing()), "\n".join(_files()), EXIT_STATUS)
    )
    add = parser.add_argument
    add("preprocessor", type=_name, metavar="PREPROCESSOR", help="how the hint is made: one of the list below")
    add("picture", metavar="PICTURE", help="a picture (PNG, JPEG or WebP), or a folder of them")
    add("--out", required=True, metavar="OUT", help="the new PNG file, or for a folder the folder of the new PNG files")
    add("--option", action="append", default=[], metavar="NAME=VALUE",
        help="an option of the preprocessor; may be repeated")  # fmt: skip
    add("--annotator", action="append", default=[], metavar="FILE",
        help="the file of a network that the preprocessor needs (see the list below); may be repeated")  # fmt: skip
    add("--resolution", type=values.positive, default=RESOLUTION, metavar="N",
        help="the hint's shorter side in pixels; both sides become multiples of 64; default: %(default)s")  # fmt: skip
    return parser


def run(args: argparse.Namespace) -> None:
    """Makes and writes the hints. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    from sdjax.preprocessors import checked_options
    from sdjax.storage import files

    chosen = checked_options(args.preprocessor, _read(args.preprocessor, args.option))
    several = Path(args.picture).is_dir()
    pairs = list(_pairs(args, several))
    if several:
        files.check_folder(args.out, "writing the hints")
    else:
        files.check_folder(Path(args.out).parent, "writing the hint")
    for _, out in pairs:
        files.check_free(out, overwrite=False)

    from sdjax.pictures.image import save_png
    from sdjax.tasks.hints import load_annotators, make_hint

    annotators = list(load_annotators(args.preprocessor, args.annotator).values())
    for picture, out in pairs:
        pixels = input_pictures.read_picture(picture, "PICTURE").pixels
        save_png(out, make_hint(pixels, args.preprocessor, annotators=annotators, resolution=args.resolution, **chosen))
        print(out)


def _pairs(args: argparse.Namespace, several: bool) -> Iterator[tuple[Path, Path]]:
    """Yields each picture's path and that of its hint. Raises ValueError if two hints would have one name."""
    if not several:
        out = Path(args.out)
        if out.suffix.lower() != ".png":
            raise ValueError(f"--out {args.out}: a hint is written as PNG; give a name that ends in .png")
        yield Path(args.picture), out
        return
    from sdjax import pictures

    taken: dict[Path, Path] = {}
    for picture in pictures.list_pictures(args.picture):
        out = Path(args.out) / f"{picture.stem}.png"
        if out in taken:
            raise ValueError(f"the hints of {taken[out].name} and {picture.name} would both be {out}: rename one")
        taken[out] = picture
        yield picture, out


def _read(name: str, settings: list[str]) -> dict[str, Any]:
    """Returns options of a preprocessor from NAME=VALUE texts. Unknown names and texts that are no numbers stay."""
    known = PREPROCESSORS[name].options
    texts = read_options(settings, "--option", f"the option {{}} of {name}")
    return {key: _number(known[key], text) if key in known else text for key, text in texts.items()}


def _number(option: Option, text: str) -> Any:
    try:
        return int(text) if isinstance(option.default, int) else float(text)
    except ValueError:
        return text


def _name(text: str) -> str:
    if text not in PREPROCESSORS:
        raise argparse.ArgumentTypeError(
            f"there is no preprocessor {text!r}{meant(text, PREPROCESSORS)}; "
            f"the known ones are {', '.join(PREPROCESSORS)}"
        )
    return text


if __name__ == "__main__":
    sys.exit(main(["hint", *sys.argv[1:]]))
