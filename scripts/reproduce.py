"""`sdjax reproduce`: reads how a picture was made from its file, and makes it again."""

import argparse
import hashlib
import importlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import control_flags, model_flags, options, prompt_flags, remaking

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
# Settings of the second pass, and their flags
SECOND_PASS = {
    **{name: name for name in ("hires_steps", "hires_sampler", "hires_prompt", "hires_negative_prompt", "hires_scale")},
    "hires_patches": "hires_patch",
}
OF_TASK = ("height", "width", "strength")
ADDED = {"controls": "--control", "image_prompts": "--image-prompt", "regions": "--region"}  # of files
STEP = 8  # sides are multiples of this


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax reproduce`."""
    parser = options.make_command_parser("reproduce", DESCRIPTION, EPILOG)
    parser.add_argument("picture", metavar="PICTURE", help="the picture: PNG, JPEG or WebP")
    parser.add_argument("--dry-run", action="store_true", help="only print what the file says")
    remaking.add_input_flags(parser)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    parser.add_argument("--weak-ckpt", metavar="PATH", help="the weaker model, if the guidance was autoguidance")
    prompt_flags.add_files_of_prompts(parser)
    prompt_flags.add_image_prompt_flags(parser, named=False)
    control_flags.add_control_flags(parser, named=False)
    prompt_flags.add_region_flag(parser)
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
    remaker = remaking.remaker_of(args.picture, found)
    command = importlib.import_module(f"sdjax.scripts.{remaker.module}")
    made = _arguments(args, command, remaker, found, understood)
    _compare(args.picture, data, command.run(made), found, marked=made.watermark)


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


def _arguments(
    args: argparse.Namespace, command: Any, remaker: remaking.Remaker, found: Any, understood: Any
) -> argparse.Namespace:
    """Returns the arguments of the command that makes the picture."""
    settings = dict(understood.settings)
    if args.lora_dir is None and settings.pop("loras", None) is not None:
        print("note: the picture's LoRAs are left out: give their folder with --lora-dir", file=sys.stderr)
    for item in understood.unknown:
        flag = ADDED.get(item.key)
        if flag is not None and not getattr(args, item.key):
            print(f"note: the picture's {item.key} are left out: give them again with {flag}", file=sys.stderr)
    files = remaking.inputs_given(args, found, remaker)
    copied = [
        f"--{name}={found.computed[name]}"
        for name in ("dtype", "parallel", "ema", "variant", "quantise")
        if name in found.computed and not {name, "precision" if name == "dtype" else name} & set(args.given)
    ]
    if found.task == "upscale" and "upscaler" in found.inputs:
        files = [one.replace("--upscaler=", "--model=", 1) for one in files]
        return _small_upscaler(
            args, command, found, settings, [*files, *remaking.settings_given(understood.of_task, remaker)]
        )
    if "upscaler" in found.inputs:
        copied.append(f"--hires={understood.hires.get('enlarge', 1)}")
    made = command.make_parser().parse_args([*files, *remaking.settings_given(understood.of_task, remaker), *copied])
    for name, value in vars(args).items():
        if name in vars(made) and name not in remaking.HELP and (name in args.given or name not in made.given):
            setattr(made, name, value)
    for name in "exact", "low_memory", "watermark":
        if name in found.computed and name not in args.given:
            setattr(made, name, found.computed[name])
    made.ckpt = _checkpoint(args, found)
    made.lines, made.n_iter, made.n_samples, made.skip_grid = [settings], 1, 1, True
    made.batch_of = found.computed.get("batch", 1)
    if "height" not in made.own:
        size = [settings.pop(name, None) for name in ("height", "width")]
        if hasattr(made, "H"):
            smaller = understood.of_task.get("enlarge", 1)  # the file has the size after the second pass
            made.H, made.W = (side and round(side / smaller / STEP) * STEP for side in size)
    if "strength" in settings and "strength" not in made.own:
        understood.hires.setdefault("strength", settings.pop("strength"))
    if "enlarge" in understood.hires and found.tool == "sdjax":  # our file has the size after the second pass
        for name in "height", "width":
            settings[name] = round(settings[name] / understood.hires["enlarge"] / STEP) * STEP
    if "enlarge" in understood.hires:
        made.hires = understood.hires["enlarge"]
        made.hires_upscale = understood.hires.get("upscale")
        made.hires_strength = understood.hires.get("strength")
        for name, flag in SECOND_PASS.items():
            setattr(made, flag, understood.hires.get(name))
    if settings.get("style_aligned") is not None:
        made.lines, made.n_samples = [*_style_of(understood, settings, made.own), settings], 2
    return made


def _style_of(understood: Any, settings: dict[str, Any], own: Collection[str]) -> list[dict[str, Any]]:
    """Returns the settings of the picture that a style aligned one follows. The first of a batch follows itself.

    Raises ValueError for settings that cannot be read.
    """
    from sdjax.tasks.settings import read

    given = understood.of_task.get("style_of")
    if given is None:
        settings.pop("style_aligned")
        return []
    if not isinstance(given, dict):
        raise ValueError("the file does not say which picture this style_aligned one follows: style_of is no object")
    return [
        {**settings, **{name: one for name, one in read(given, OF_TASK).items() if name not in OF_TASK or name in own}}
    ]


def _small_upscaler(
    args: argparse.Namespace, command: Any, found: Any, settings: dict[str, Any], given: list[str]
) -> argparse.Namespace:
    """Returns the arguments of `sdjax upscale --model` that make the picture. Raises ValueError for a --ckpt."""
    if args.ckpt is not None:
        raise ValueError(f"--ckpt has no effect: {args.picture} was made by an upscaler alone")
    if "dtype" not in args.given and "dtype" in found.computed:
        given.append(f"--dtype={found.computed['dtype']}")
    for name in "outdir", "device", "dtype", "precision":
        if name in args.given or name == "outdir":
            given.append(f"--{name}={getattr(args, name)}")
    made: argparse.Namespace = command.make_parser().parse_args([*given, *remaking.of_small_upscaler(settings)])
    made.watermark = args.watermark if "watermark" in args.given else found.computed.get("watermark")
    return made


def _checkpoint(args: argparse.Namespace, found: Any) -> str | None:
    """Returns the checkpoint: --ckpt, or the built-in model's name if the picture was made by it.

    Raises ValueError if another model is needed. A note says if --ckpt is not the picture's model.
    """
    from sdjax.loading import builtin
    from sdjax.scripts.shared.job import note
    from sdjax.tasks import recording

    name = found.model.get("name", "a model that its file does not name")
    if args.ckpt is None:
        for own in options.BUILTIN if found.tool == "sdjax" else ():
            if recording.fingerprint(builtin.place(own))["sha256_of_ends"] == found.model.get("sha256_of_ends"):
                return own
        raise ValueError(f"{args.picture} was made with {name}: name the model's file or folder with --ckpt")
    path = Path(args.ckpt)
    expected = found.model.get("hash", "").lower()
    if path.is_file() and len(expected) in (8, 10, 64) and not _has_hash(path, expected):
        note(f"--ckpt {args.ckpt} is not the model of the picture, {name}, whose hash is {expected}")
    ours = found.model.get("sha256_of_ends")
    if ours is not None and path.exists() and recording.fingerprint(path)["sha256_of_ends"] != ours:
        note(f"--ckpt {args.ckpt} is not the model of the picture, {name}: its contents differ")
    return args.ckpt


def _has_hash(path: Path, expected: str) -> bool:
    """Returns whether a file has this hash of A1111: the start of its SHA-256, or the old one of 64 KiB in it."""
    with open(path, "rb") as file:
        if len(expected) == 8:
            file.seek(2**20)
            return hashlib.sha256(file.read(2**16)).hexdigest().startswith(expected)
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(expected)


def _compare(path: str, data: bytes, made: Any, found: Any, *, marked: str | None) -> None:
    """Prints how far the new picture is from the original, and what else differs if it is not the same."""
    import numpy as np

    from sdjax import pictures
    from sdjax.checks.arguments import shown
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
        for name, was in found.about.items():
            if was != (now := made.description.get(name)):
                note(f"the original's {name} is {shown(was)}, this one's {shown(now)}")


if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
