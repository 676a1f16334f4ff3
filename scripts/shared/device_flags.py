"""Checks the flag --split-picture, before the model is read."""

import argparse
from collections.abc import Sequence
from typing import Any


def check_split(args: argparse.Namespace, devices: Sequence[Any] | None) -> None:
    """Raises ValueError if the devices cannot be divided as --split-picture asks. `devices` None: all."""
    from sdjax.tasks.computing import Computing

    if args.split_picture > 1:
        Computing(parallel=args.parallel, split_picture=args.split_picture, devices=devices)


def check_height(args: argparse.Namespace, devices: Sequence[Any] | None, config: Any) -> None:
    """Raises ValueError if pictures of the flag --H, or of the model's own size, cannot be divided."""
    from sdjax.pipeline import placement

    if args.split_picture > 1 and hasattr(args, "H"):
        from_text = getattr(args, "init_img", None) is None  # otherwise the picture has a height
        height = config.image_size if args.H is None and from_text else args.H
        if height is not None:
            placement.check_rows(placement.make_mesh(devices, args.split_picture), height, config.vae.factor)
