"""The flags of mixtures of models, which are made while sampling. Imports nothing heavy: every --help reads it."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdjax.scripts.shared import values
from sdjax.scripts.shared.flags import together

# The names of sdjax.convert.merge.table.LINEAR, repeated because importing them is slow. A test compares.
METHODS = (
    "weighted_sum", "add_difference", "train_difference", "task_arithmetic", "magnitude_prune", "ties", "dare_linear",
    "dare_ties",
)  # fmt: skip
METHOD = "weighted_sum"
WITHOUT_OTHER = "merge is the ratio of two models: name the other one with --merge-with"


def add_mixture_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a mixture of the model with others."""
    add = parser.add_argument_group("a mixture of models, without writing it").add_argument
    add(
        "--merge-with",
        action="append",
        metavar="PATH",
        help="the other model of a mixture, as --ckpt; may be repeated, for methods of three models. --sweep "
        "merge=0,0.25,0.5 makes pictures of several mixtures in one program",
    )
    add("--merge", type=values.finite, metavar="X", needs=together("--merge-with"), help="the ratio of the mixture")
    add(
        "--merge-method",
        choices=METHODS,
        metavar="NAME",
        needs=together("--merge-with"),
        help=f"one of {', '.join(METHODS)}, as `sdjax merge` has them; default: {METHOD}",
    )


def check_ratios(args: argparse.Namespace, pictures: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError for a ratio without another model, and for another model without a ratio.

    `pictures` are the settings of single pictures.
    """
    ratios = args.merge is not None or any(own.get("merge") is not None for own in pictures)
    if ratios and not args.merge_with:
        raise ValueError(WITHOUT_OTHER)
    if args.merge_with and not ratios:
        raise ValueError("--merge-with has no effect without a ratio: add --merge 0.5, or --sweep merge=0,0.5,1")


def direction(args: argparse.Namespace, pipe: Any, others: Sequence[Any]) -> Any:
    """Returns the direction to the models of --merge-with, which are at these places (`sdjax.merge_direction`)."""
    import sdjax

    try:
        return sdjax.merge_direction(pipe, *others, method=args.merge_method or METHOD)
    except ValueError as error:
        if isinstance(error, sdjax.convert.CheckpointError):
            raise
        raise ValueError(f"--merge-with: {error}") from None
