"""The flag of ControlNets and T2I-Adapters. Imports nothing heavy: every --help reads it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdjax.scripts.shared.flags import Needs

if TYPE_CHECKING:
    from sdjax.scripts.shared.prompts import PromptBatch

OF_PICTURES = Needs(
    lambda args: hasattr(args, "sweep") and (args.from_file is not None or args.sweep is not None),
    "without JSON lines of --from-file or a --sweep, which name files in it: add one, or leave this flag out",
)


def add_control_flags(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """Adds the flags of ControlNets and T2I-Adapters. `named`: also that of a folder whose files pictures name."""
    add = parser.add_argument_group("ControlNet and T2I-Adapter").add_argument
    add(
        "--control",
        dest="controls",
        action="append",
        type=control,
        metavar="FILE[:WEIGHT][=[PREPROCESSOR:]HINT][,NAME=VALUE...]",
        help="steer the picture by a hint, such as canny.safetensors:0.8=edges.png, or with a preprocessor (see `sdjax "
        "hint`) canny.safetensors=canny:photo.png; HINT may be a folder, whose k-th picture is for the k-th picture; "
        "without HINT it is the command's input picture; NAME is start or end (shares of the steps), mode (balanced, "
        "prompt, control, guess), resize (crop, pad, stretch), mask (a picture: the control counts where this is "
        "white), hidden (the mask of the preprocessor inpaint), annotator (a network that the preprocessor needs), or "
        "an option of the preprocessor; may be repeated",
    )
    if not named:
        return
    add(
        "--control-dir",
        metavar="DIR",
        needs=OF_PICTURES,
        help="a folder of networks and hints: lines of --from-file, such as "
        '{"control": "canny:0.8=a.png"}, and --sweep control=canny:0.5=a.png,canny:1=a.png name files in it',
    )


def control(text: str) -> str:
    """Returns the text of a control, for argparse."""
    from sdjax.tasks.controls import read_text

    try:
        read_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def check_files(controls: Sequence[str]) -> None:
    """Raises ValueError for hints and masks that cannot be read, CheckpointError for networks that are not there."""
    if not controls:
        return
    from sdjax.tasks.controls import read_pictures, read_text, resolved

    for text in controls:
        use = read_pictures(read_text(_for_picture(text, 0)))
        assert isinstance(use.network, str)
        resolved(use.network)


def with_hints(args: argparse.Namespace, batches: "list[PromptBatch]", swept: bool) -> "list[PromptBatch]":
    """Returns the batches whose pictures have controls of their own, if a hint is a folder.

    Picture k of the folder, by name, is for picture k of the run, or with several input pictures for the k-th of those;
    after the last the first follows. All pictures of a sweep have one hint.
    """
    controls = getattr(args, "controls", None) or ()
    if all(_for_picture(text, 0) == text for text in controls):
        return batches
    several = any(number for batch in batches for number in batch.inputs)
    out, count = [], 0
    for batch in batches:
        settings = []
        for own, number in zip(batch.settings, batch.inputs, strict=True):
            k = number if several else count
            settings.append({"controls": tuple(_for_picture(text, k) for text in controls), **own})
            count += not swept
        count += swept
        out.append(batch._replace(settings=settings))
    return out


def _for_picture(text: str, k: int) -> str:
    """Returns the text of a control, with picture k of the folder as its hint if the hint is a folder."""
    from sdjax.tasks.controls import read_text

    use: Any = read_text(text)
    if not isinstance(use.hint, str) or not Path(use.hint).is_dir():
        return text
    from sdjax import pictures
    from sdjax.tasks.flag_texts import quoted, split_at, split_options

    files = pictures.list_pictures(use.hint)
    head, given = split_options("a control", text)
    prefix = "" if use.preprocess is None else f"{use.preprocess}:"
    hint = f"{split_at(head, '=')[0]}={prefix}{quoted(str(files[k % len(files)]))}"
    return ",".join([hint, *(f"{name}={quoted(value)}" for name, value in given)])
