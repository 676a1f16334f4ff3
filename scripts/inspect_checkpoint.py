"""`sdjax inspect`: shows what a checkpoint holds, without loading its weights.

The file is not called inspect.py, because that would hide Python's module from the scripts beside it.
"""

import argparse
import json
import sys

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import model_flags, options
from sdjax.scripts.shared.wording import in_flags

IF_OUT_OF_MEMORY = "close other programs"

DESCRIPTION = """\
Shows what a checkpoint holds: family, parts, dtypes, counts, metadata, and anything
odd. Reads a .ckpt or .safetensors file, a diffusers or an sdjax folder, or a
repository of the hub, and never runs code from a file."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax inspect`."""
    parser = options.make_command_parser("inspect", DESCRIPTION, EXIT_STATUS)
    parser.add_argument("path", metavar="FILE", help="the checkpoint, as for --ckpt of txt2img")
    model_flags.add_revision_flag(parser)
    model_flags.add_variant_flag(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints the report."""
    from sdjax.convert import inspect
    from sdjax.convert.containers.places import read_place
    from sdjax.loading import hub
    from sdjax.scripts.shared.job import note

    place, path = read_place(args.path), args.path
    if place.path is None or place.path.exists() or path in options.BUILTIN:  # `inspect` reports a missing path
        path = hub.resolve(args.path, args.revision, args.variant, note)
    report = inspect(path, variant=args.variant)
    print(json.dumps(report.to_dict(), indent=2) if args.json else in_flags(report.text()))


if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
