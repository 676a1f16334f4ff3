"""`sdjax reproduce-merge`: runs the recipe of a merged checkpoint again."""

import argparse
import sys

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options
from sdjax.scripts.shared.flags import together

IF_OUT_OF_MEMORY = "close other programs, or use a computer whose memory holds a few tensors of each model"

DESCRIPTION = """\
Runs the recipe in a merged checkpoint's metadata again, and compares every parameter
bit for bit. The models and adapters are found among --models by their SHA-256, under
whatever name they have."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax reproduce-merge`."""
    parser = options.make_command_parser("reproduce-merge", DESCRIPTION, EXIT_STATUS)
    add = parser.add_argument
    add("file", metavar="FILE", help="a checkpoint that sdjax merge wrote")
    add(
        "--models",
        nargs="+",
        required=True,
        metavar="DIR|NAME=PATH",
        help="the models and adapters, or folders of them",
    )
    add("--out", metavar="OUT", help="also write the result to this file or folder")
    add("--to", choices=("auto", "native", "ldm", "gguf", "diffusers"), default="auto", needs=together("--out"),
        help="the format to write; default: as OUT's name says")  # fmt: skip
    add("--overwrite", action="store_true", needs=together("--out"), help="replace OUT if it exists")
    return parser


def run(args: argparse.Namespace) -> None:
    """Runs the recipe and prints it."""
    from sdjax.convert import reproduce_merge

    recipe = reproduce_merge(args.file, args.models, args.out, to=args.to, overwrite=args.overwrite)
    print("\n".join([*recipe.lines(), "the same, bit for bit"]))
    if args.out is not None:
        print(args.out)


if __name__ == "__main__":
    sys.exit(main(["reproduce-merge", *sys.argv[1:]]))
