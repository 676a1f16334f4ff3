"""The flag of ControlNets and T2I-Adapters. Imports nothing heavy: every --help reads it."""

import argparse


def add_control_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of ControlNets and T2I-Adapters."""
    parser.add_argument_group("ControlNet and T2I-Adapter").add_argument(
        "--control",
        dest="controls",
        action="append",
        type=control,
        metavar="FILE[:WEIGHT][=[PREPROCESSOR:]HINT][,NAME=VALUE...]",
        help="steer the picture by a hint, such as canny.safetensors:0.8=edges.png, or with a preprocessor (see `sdjax "
        "hint`) canny.safetensors=canny:photo.png; without HINT it is the command's input picture; NAME is start or "
        "end (shares of the steps), mode (balanced, prompt, control, guess), resize (crop, pad, stretch), mask (a "
        "picture: it counts where this is white), hidden (the mask of the preprocessor inpaint), or an option of the "
        "preprocessor; may be repeated",
    )


def control(text: str) -> str:
    """Returns the text of a control, for argparse."""
    from sdjax.tasks.controls import read_text

    try:
        read_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
