"""`sdjax reproduce`: reads how a picture was made from its file, and makes it again."""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options
from sdjax.scripts.shared.flags import alone

IF_OUT_OF_MEMORY = "--dtype bfloat16"

DESCRIPTION = """\
Reads from a picture's file how it was made, prints what it understands and what
not, and makes the picture again. It reads the texts of sdjax, A1111 and Forge
(also in EXIF), ComfyUI (the usual graph of text to image), InvokeAI and
stable-diffusion.cpp, from PNG, JPEG and WebP files.

The file never chooses a model: name it with --ckpt. Only a picture of the model
inside the package needs no --ckpt."""

EPILOG = f"""\
A picture of sdjax is computed as it was, in the same type and in a batch of the
same size, unless you say otherwise. On the same device and with the same versions
it has the same bits; at the end a note says how far it is from the original.

{EXIT_STATUS}"""

OUTDIR = "outputs/reproduced"
# Flags of the second pass, by the names of its settings in our files and in those of other tools
SECOND_PASS = {
    "hires_steps": ("hires_steps", "num_steps"),
    "hires_sampler": ("hires_sampler", "sampler"),
    "hires_prompt": ("hires_prompt", "prompt"),
    "hires_negative_prompt": ("hires_negative_prompt", "negative_prompt"),
    "hires_scale": ("hires_scale", "guidance_scale"),
}
STEP = 8  # sides are multiples of this
TASKS = {"txt2img": "txt2img", "img2img": "img2img"}
COPIED = ("dtype", "exact", "parallel", "ema", "variant", "watermark")  # from a picture of ours, unless a flag is given


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax reproduce`."""
    parser = options.make_command_parser("reproduce", DESCRIPTION, EPILOG)
    parser.add_argument("picture", metavar="PICTURE", help="the picture: PNG, JPEG or WebP")
    parser.add_argument("--dry-run", action="store_true", help="only print what the file says")
    parser.add_argument(
        "--init-img",
        metavar="PATH",
        needs=alone("--dry-run"),
        help="the picture that this one was made from, if it was made by image to image",
    )
    options.add_model_flags(parser)
    options.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, OUTDIR)
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints what the picture says, and makes it again. Raises what `sdjax.scripts.main` turns into a sentence."""
    data = _read(args.picture)
    from sdjax.pictures.metadata import read_metadata

    found = read_metadata(data)
    from sdjax.tasks.from_metadata import understand

    understood = understand(found)
    print(_report(args.picture, found, understood), flush=True)
    if args.dry_run:
        return
    command = _command(args, found)
    made = _arguments(args, command, found, understood)
    _compare(args.picture, data, command.run(made), marked=made.watermark)


def _read(path: str) -> bytes:
    """Returns the file's bytes. Raises ValueError for a missing, endless or too large file."""
    from sdjax import pictures

    try:
        return pictures.read_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _report(path: str, found: Any, understood: Any) -> str:
    """Returns the text that says what is understood and what not."""
    from sdjax.tasks.from_metadata import TITLES

    lines = [f"{path}: made by {TITLES.get(found.tool, found.tool)}, {found.task}"]
    model = ", ".join(f"{key} {value}" for key, value in found.model.items())
    lines.append(f"model: {model or 'not named'}")
    lines.append("understood:")
    lines += [f"  {item.key}: {item.text}" for item in understood.items]
    for name in ("sampler", "schedule", "compat"):
        if name in understood.settings:
            lines.append(f"  ({name} here: {understood.settings[name]})")
    if understood.unknown:
        lines.append("not understood, and left out:")
        lines += [f"  {item.key}: {item.text}" for item in understood.unknown]
    if found.needs:
        lines.append(f"it was not made from text alone, but also from {' and '.join(found.needs)}")
    return "\n".join(lines)


def _command(args: argparse.Namespace, found: Any) -> Any:
    """Returns the module of the command that makes such pictures. Raises ValueError if it cannot be made again."""
    if found.task not in TASKS:
        raise ValueError(f"{args.picture} was made by {found.task}; only txt2img and img2img can be made again")
    if found.task == "img2img" and args.init_img is None:
        raise ValueError(f"{args.picture} was made from another picture, which its file does not hold: give --init-img")
    if found.task == "txt2img" and found.needs:
        raise ValueError(f"{args.picture} was made from {' and '.join(found.needs)}, and cannot be made again")
    if found.task == "txt2img" and args.init_img is not None:
        raise ValueError(f"--init-img has no effect: {args.picture} was made from text alone")
    from sdjax.scripts import img2img, txt2img

    return {"txt2img": txt2img, "img2img": img2img}[found.task]


def _arguments(args: argparse.Namespace, command: Any, found: Any, understood: Any) -> argparse.Namespace:
    """Returns the arguments of the command that makes the picture."""
    settings = dict(understood.settings)
    from_picture = [] if found.task == "txt2img" else ["--init-img", args.init_img]
    made = command.make_parser().parse_args(from_picture)
    for name, value in vars(args).items():
        if name in vars(made):
            setattr(made, name, value)
    for name in COPIED:
        if name in found.computed and not {name, "precision" if name == "dtype" else name} & set(args.given):
            setattr(made, name, found.computed[name])
    made.ckpt = _checkpoint(args, found)
    made.lines, made.n_iter, made.n_samples, made.skip_grid = [settings], 1, 1, True
    made.batch_of = found.computed.get("batch", 1)
    if found.task == "img2img":
        made.H, made.W = settings.pop("height", None), settings.pop("width", None)
    elif "strength" in settings:
        understood.hires.setdefault("strength", settings.pop("strength"))
    if "enlarge" in understood.hires and found.tool == "sdjax":  # our file has the size after the second pass
        for name in "height", "width":
            settings[name] = round(settings[name] / understood.hires["enlarge"] / STEP) * STEP
    if "enlarge" in understood.hires:
        made.hires = understood.hires["enlarge"]
        made.hires_upscale = understood.hires.get("upscale")
        made.hires_strength = understood.hires.get("strength")
        for flag, names in SECOND_PASS.items():
            setattr(made, flag, next((understood.hires[name] for name in names if name in understood.hires), None))
    return made


def _checkpoint(args: argparse.Namespace, found: Any) -> str | None:
    """Returns the checkpoint: --ckpt, or the built-in model's name if the picture was made by it.

    Raises ValueError if another model is needed. A note says if --ckpt is not the picture's model.
    """
    from sdjax.loading import builtin
    from sdjax.scripts.shared import picture_settings
    from sdjax.scripts.shared.job import note

    name = found.model.get("name", "a model that its file does not name")
    if args.ckpt is None:
        own = picture_settings.fingerprint(builtin.folder())["sha256_of_ends"]
        if found.tool == "sdjax" and found.model.get("sha256_of_ends") == own:
            return options.BUILTIN[0]
        raise ValueError(f"{args.picture} was made with {name}: name the model's file or folder with --ckpt")
    path = Path(args.ckpt)
    expected = found.model.get("hash", "").lower()
    if path.is_file() and len(expected) in (8, 10, 64) and not _has_hash(path, expected):
        note(f"--ckpt {args.ckpt} is not the model of the picture, {name}, whose hash is {expected}")
    ours = found.model.get("sha256_of_ends")
    if ours is not None and path.exists() and picture_settings.fingerprint(path)["sha256_of_ends"] != ours:
        note(f"--ckpt {args.ckpt} is not the model of the picture, {name}: its contents differ")
    return args.ckpt


def _has_hash(path: Path, expected: str) -> bool:
    """Returns whether a file has this hash of A1111: the start of its SHA-256, or the old one of 64 KiB in it."""
    with open(path, "rb") as file:
        if len(expected) == 8:
            file.seek(2**20)
            return hashlib.sha256(file.read(2**16)).hexdigest().startswith(expected)
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(expected)


def _compare(path: str, data: bytes, made: Any, *, marked: str | None) -> None:
    """Prints how far the new picture is from the original."""
    import numpy as np

    from sdjax import pictures
    from sdjax.scripts.shared import saving
    from sdjax.scripts.shared.job import note

    original, new = pictures.open_picture(data).pixels, saving.mark(made.picture, marked)
    if original.shape != new.shape:
        note(
            f"{path} has {original.shape[1]} x {original.shape[0]} pixels, the new one {new.shape[1]} x {new.shape[0]}"
        )
        return
    apart = np.abs(original.astype(int) - new)
    if not apart.any():
        note(f"every pixel is that of {path}")
    else:
        note(f"the levels differ from those of {path} by {apart.mean():.2f} of 255 on average, {apart.max()} at most")


if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
