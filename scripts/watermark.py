"""`sdjax watermark`: reads the invisible watermark of pictures, or writes one."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, options, saving, values
from sdjax.scripts.shared.flags import alone, together

IF_OUT_OF_MEMORY = "smaller pictures"

DESCRIPTION = """\
Reads the invisible watermark that the scripts of both releases write, or writes
one (--embed). For each picture it prints which text it found, and how certain that
is. Without --text it looks for the texts of the two releases."""

EPILOG = f"""\
A watermark is no proof: anybody can write one, and resizing, cropping or strong
compression removes it. Most pictures return only some of the text's bits. So the
command counts how many blocks of the picture agree with the text, in standard
deviations above chance. From {{certain}} on it reports the text.

{EXIT_STATUS}"""

RELEASES = (
    "StableDiffusionV1",
    "SDV2",
)  # sdjax.pictures.watermark.TEXTS: importing it takes time. A test compares them
CERTAIN = 8.0  # standard deviations; reached by chance once in 10^15 pictures. Some letters alone match half a text


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax watermark`."""
    parser = options.make_command_parser("watermark", DESCRIPTION, EPILOG.format(certain=f"{CERTAIN:g}"))
    parser.add_argument("files", nargs="+", metavar="FILE", help="a picture (PNG, JPEG or WebP), or a folder of them")
    parser.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        needs=(alone("--embed"), alone("--bytes")),
        help=f"a text to look for; may be repeated; default: {' and '.join(RELEASES)}",
    )
    parser.add_argument(
        "--bytes",
        type=values.positive,
        metavar="N",
        needs=alone("--embed"),
        help="read N unknown bytes and print them",
    )
    parser.add_argument("--embed", metavar="TEXT", help="write this text into the pictures, as new PNG files")
    parser.add_argument(
        "--outdir",
        type=values.folder,
        default="outputs/watermarked",
        metavar="DIR",
        needs=together("--embed"),
        help="where --embed writes; default: %(default)s",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Reads or writes. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    from sdjax import pictures

    files = [
        file
        for path in map(Path, args.files)
        for file in (pictures.list_pictures(path) if path.is_dir() else [path])
    ]  # fmt: skip
    if args.embed is not None:
        saving.check_outdir(args.outdir)
    failed = []
    for file in files:
        try:
            print(treat(args, file))
        except ValueError as error:
            if len(files) == 1:
                raise
            failed.append(error)
            print(f"note: {error}", file=sys.stderr)
    if failed:
        raise ValueError(f"{len(failed)} of {len(files)} pictures failed; the first: {failed[0]}")


def treat(args: argparse.Namespace, file: Path) -> Any:
    """Returns the line to print for a file. Raises ValueError, naming it, if it is not a picture or too small."""
    from sdjax import pictures

    try:
        picture = pictures.open_picture(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {input_pictures.reason(error)}") from None
    for notice in picture.notices:
        print(f"note: {file}: {notice}", file=sys.stderr)
    try:
        return write(args, picture.pixels) if args.embed is not None else f"{file}: {read(args, picture.pixels)}"
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read(args: argparse.Namespace, pixels: Any) -> str:
    """Returns what is read, as a line."""
    from sdjax.pictures import watermark

    if args.bytes:
        data, agreement = watermark.decode(pixels, args.bytes)
        return f"{data!r}, {agreement:.0%} of the blocks agree"
    scores = {text: watermark.evidence(pixels, text) for text in args.text or RELEASES}
    best = max(scores, key=lambda text: scores[text])
    listed = ", ".join(f"{text} {score:.1f}" for text, score in scores.items())
    found = best if scores[best] >= CERTAIN else "no watermark"
    return f"{found} (standard deviations above chance: {listed})"


def write(args: argparse.Namespace, pixels: Any) -> Path:
    """Returns the path of the new file."""
    from sdjax.pictures import image, watermark

    marked = watermark.embed(pixels, args.embed)
    return image.save_numbered(args.outdir, marked)


if __name__ == "__main__":
    sys.exit(main(["watermark", *sys.argv[1:]]))
