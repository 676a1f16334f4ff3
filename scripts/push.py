"""`sdjax push`: uploads a model to the Hugging Face hub with its model card."""

import argparse
import sys

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import card_flags, model_flags, options

IF_OUT_OF_MEMORY = "close other programs"

DESCRIPTION = """\
Uploads a model to the Hugging Face hub as one commit: a single file, a diffusers or an
sdjax folder, or what a training made, with a model card. A new repository is private
unless --public is given; that of an existing one stays as it is. Log in first with
`hf auth login`, or set HF_TOKEN."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax push`."""
    parser = options.make_command_parser("push", DESCRIPTION, EXIT_STATUS)
    card_flags.add_model_argument(parser)
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository; it is made if it does not exist")
    card_flags.add_card_flags(parser)
    parser.add_argument("--public", action="store_true", help="make a new repository that everybody can see")
    parser.add_argument("--branch", metavar="NAME", help="commit to this branch; default: main")
    parser.add_argument(
        "--message",
        metavar="TEXT",
        default="Upload a model",
        help="the commit's message; default: %(default)s",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and the card; no network")
    model_flags.add_variant_flag(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Uploads, and prints the address of the commit."""
    from sdjax.errors import size
    from sdjax.loading.model_card import states_licence
    from sdjax.loading.uploading import CARD, check_repository, gathered, upload, weights_with_code
    from sdjax.scripts.shared.job import note

    check_repository(args.repository)
    path = card_flags.local_model(args.path)
    own = card_flags.own_card(args, path)
    text = card_flags.card_of(args, path, args.repository) if own is None else own
    if not states_licence(text) and own is None:
        note("the card states no licence, and without one others may not use the model: give --license")
    elif not states_licence(text):
        note(
            f"the hub will show no licence, because the head of {path / CARD} names none: begin the file with three "
            "lines, ---, license: WORD, ---"
        )
    with gathered(path, args.variant) as files:
        whole = files.with_card(text)
        if run_by_others := weights_with_code(list(whole.sizes)):
            note(f"{run_by_others[0]} can hold code that other tools run: `sdjax convert` writes .safetensors")
        if args.dry_run:
            for name, count in sorted(whole.sizes.items()):
                print(f"{size(count):>10}  {name}")
            kind = "public" if args.public else "private"
            print(f"to {args.repository} ({kind} if it is new); the card:\n\n{text}", end="")
            return
        print(upload(args.repository, whole, private=not args.public, revision=args.branch, message=args.message))


if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
