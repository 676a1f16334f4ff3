"""The flags of reference pictures and of pictures that share a style. Imports nothing heavy: every --help reads it."""

import argparse
from collections.abc import Sequence

from sdjax.scripts.shared import values


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of reference pictures and of pictures that share a style."""
    add = parser.add_argument_group("pictures that share their looks").add_argument
    add(
        "--reference",
        dest="references",
        action="append",
        type=reference,
        metavar="FILE[,NAME=VALUE...]",
        help="take over the looks of this picture (reference-only); NAME is weight (from 0 to 2, default 1), fidelity "
        "(from 0 to 1, default 0.5: 0 gives the prompt the most weight, 1 the reference), mode (reference_only, "
        "reference_adain, reference_adain+attn), start or end (shares of the steps), or resize (crop, pad, stretch); "
        "may be repeated",
    )
    add(
        "--style-aligned",
        type=values.share,
        metavar="X",
        help="how much the pictures of a batch (--n_samples) take over the style of its first one (StyleAligned), from "
        "0 to 1",
    )


def reference(text: str) -> str:
    """Returns the text of a reference, for argparse."""
    from sdjax.tasks.references import parse

    try:
        parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def check_files(references: Sequence[str]) -> None:
    """Raises ValueError for pictures that cannot be read."""
    if not references:
        return
    from sdjax.tasks.references import read_reference

    for text in references:
        read_reference(text)
