"""Flags for large and for seamless pictures, and for patches of the network. Imports nothing heavy."""

import argparse
from typing import Any

from sdjax.scripts.shared import values
from sdjax.scripts.shared.flags import alone, together

# Repeated here because importing JAX takes a second; a test compares them
PATCHES = (
    "deep_shrink", "rau_net", "window_attention", "token_merging", "token_downsampling", "hypertile", "deep_cache",
    "t_gate",
)  # fmt: skip
BLENDS = ("mean", "gaussian")
AXES = ("x", "y", "xy")


def add_large_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of seamless tiling, windows and patches."""
    add = parser.add_argument_group("large and seamless pictures").add_argument
    add(
        "--seamless",
        choices=AXES,
        help="let the picture continue over its edges along these axes, so that copies of it fit together; default: no",
    )
    add("--tiling", action="store_true", needs=alone("--seamless"), help="short for --seamless xy")
    add(
        "--patch",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help=f"change the network: one of {', '.join(PATCHES)}, with options such as deep_shrink:factor=2,stop=0.35; "
        "may be repeated",
    )
    add(
        "--window",
        type=values.positive,
        metavar="PIXELS",
        help="draw a large picture in overlapping windows of this side; then --H and --W may be up to 8192",
    )
    add(
        "--window-overlap",
        type=values.natural,
        metavar="PIXELS",
        needs=together("--window"),
        help="how much neighbouring windows share at least; default: half of --window",
    )
    add(
        "--window-blend",
        choices=BLENDS,
        needs=together("--window"),
        help="average the windows, or with less weight at their borders (gaussian); default: mean",
    )


def large_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of `sdjax.Request` that these flags set; those that are not given are left out."""
    given = {
        "seamless": "xy" if args.tiling else args.seamless,
        "patches": args.patch,
        "window": args.window,
        "window_overlap": args.window_overlap,
        "window_blend": args.window_blend,
    }
    return {name: value for name, value in given.items() if value is not None}


def check_large(args: argparse.Namespace) -> None:
    """Raises ValueError for a patch that does not exist, and for options out of range."""
    from sdjax.tasks.request import Request

    Request(**large_options(args))
