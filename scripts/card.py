"""`sdjax card`: writes the model card of a model."""

import argparse
import sys

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import card_flags, model_flags, options

IF_OUT_OF_MEMORY = "close other programs"

DESCRIPTION = """\
Writes the model card of a model, a README.md as the hub shows it: settings, how and on
what it was trained (of a training's folder), an evaluation, and the licence. Reads no
weights and uploads nothing; `sdjax push` uploads."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax card`."""
    parser = options.make_command_parser("card", DESCRIPTION, EXIT_STATUS)
    card_flags.add_model_argument(parser)
    card_flags.add_card_flags(parser)
    parser.add_argument(
        "--repository", metavar="OWNER/NAME", help="where it will be at the hub, for the card's example; default: none"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the file to write; default: README.md in the model's folder; -: print it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    model_flags.add_variant_flag(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Writes the card, and prints its path."""
    from pathlib import Path

    from sdjax.loading.uploading import CARD, check_repository
    from sdjax.storage.files import write_file

    if args.repository is not None:
        check_repository(args.repository)
    path = card_flags.local_model(args.path)
    out = Path(args.out) if args.out else (path if path.is_dir() else path.parent) / CARD
    text = card_flags.card_of(args, path, args.repository, alone=True)
    if args.out == "-":
        print(text, end="")
        return
    write_file(out, text.encode(), overwrite=args.overwrite, what="writing the model card")
    print(out)


if __name__ == "__main__":
    sys.exit(main(["card", *sys.argv[1:]]))
