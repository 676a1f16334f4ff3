"""Which commands make which pictures of ours again, and what they need that a picture's file does not hold."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sdjax.scripts.shared.flags import alone
from sdjax.storage import addresses


class Remaker(NamedTuple):
    """The module of a command; its flags for files, by the entries that `Found.inputs` may have; its own settings."""

    module: str
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


INPAINTED = ("method", "feather", "padding")
REMAKERS = {
    "txt2img": Remaker("txt2img", ("latents", "upscaler")),
    "img2img": Remaker("img2img", ("init_img",)),
    "inpaint": Remaker(
        "inpaint", ("init_img", "mask"), (*INPAINTED, "only_masked", "composite", "expand", "overlap", "fill")
    ),
    "detail": Remaker("detail", ("init_img", "mask", "detector"), (*INPAINTED, "boxes", "confidence", "most", "grow")),
    "depth2img": Remaker("depth2img", ("init_img", "depth", "depth_model")),
    "relight": Remaker(
        "relight", ("init_img", "mask", "backdrop", "widen"), ("light", "backdrop_name", "enlarge", "hires_strength")
    ),
    "upscale": Remaker("upscale", ("init_img", "upscaler"), ("noise_level", "times")),
    "variations": Remaker(
        "variations", ("init_img", "prior", "vision", "noise_stats"),
        ("noise_level", "weights", "mix_noise_level", "dialect", "prior_prompt", "prior_steps", "prior_scale"),
    ),
}  # fmt: skip
OF_OTHER_TOOLS = ("txt2img", "img2img")  # what can be made again of other tools' pictures
PICTURES = ("init_img", "mask", "depth")
# Flags of entries that have other names
FLAGS = {"boxes": "--box", "dialect": "--clip-preprocess", "backdrop_name": "--backdrop"}
HELP = {
    "init_img": "the picture that this one was made from; repeat it for a mixture of several, in the same order",
    "mask": "the mask that says what was replaced",
    "depth": "the depth map that was kept",
    "depth_model": "the network that estimated the depth, if it was not the checkpoint's own",
    "backdrop": "the background, if it was a picture",
    "widen": "the differences that were added to the model's UNet",
    "latents": "the starting noise, if it was a file",
    "upscaler": "the upscaler that enlarged the picture: --upscaler of txt2img, --model of upscale",
    "detector": "the detector that found the parts",
    "prior": "the prior that guessed the embedding",
    "vision": "CLIP's image tower, if it was not the checkpoint's own",
    "noise_stats": "statistics of the embeddings, if they were not the checkpoint's own",
}
WHOLE = ("vae", "weak")  # parts of the model that all commands take, by flags that are copied


def flag_of(entry: str) -> str:
    """Returns the flag of an entry of a picture's file."""
    return FLAGS.get(entry, "--noise_level" if entry == "noise_level" else f"--{entry.replace('_', '-')}")


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what a picture was made from."""
    add = parser.add_argument_group("what the picture was made from, which its file only names").add_argument
    for entry, text in HELP.items():
        action = "append" if entry == "init_img" else "store"
        add(flag_of(entry), dest=entry, action=action, metavar="PATH", needs=alone("--dry-run"), help=text)


def remaker_of(picture: str, found: Any) -> Remaker:
    """Returns what makes a picture again, from what its file says. Raises ValueError if nothing does."""
    known = tuple(REMAKERS) if found.tool == "sdjax" else OF_OTHER_TOOLS
    if found.task not in known:
        joined = f"{', '.join(known[:-1])} and {known[-1]}"
        raise ValueError(f"{picture} was made by {found.task}; only {joined} can be made again")
    remaker = REMAKERS[found.task]
    if strange := sorted(set(found.inputs) - {*remaker.inputs, *WHOLE}):
        raise ValueError(
            f"{picture} says that {found.task} made it from {' and '.join(strange)}, which it does not take"
        )
    if found.task == "txt2img" and found.tool != "sdjax" and found.needs:
        raise ValueError(f"{picture} was made from {' and '.join(found.needs)}, and cannot be made again")
    return remaker


def inputs_given(args: argparse.Namespace, found: Any, remaker: Remaker) -> list[str]:
    """Returns the command's arguments for the files that a picture was made from.

    Raises ValueError, naming the flag, for a file that is missing or that the picture was not made from. A note says if
    a file is not the one that was used.
    """
    needed = dict(found.inputs)
    if found.task == "img2img":
        needed.setdefault("init_img", [])
    for entry, about in needed.items():
        called = ", ".join(one["name"] for one in about)
        if getattr(args, "weak_ckpt" if entry == "weak" else entry) is None:
            flag = "--weak-ckpt" if entry == "weak" else flag_of(entry)
            raise ValueError(
                f"{args.picture} was made from more than its file holds{called and f', namely {called}'}: give {flag}"
            )
    out = []
    for entry in HELP:
        given = getattr(args, entry)
        paths = [] if given is None else given if isinstance(given, list) else [given]
        if paths and entry not in needed:
            raise ValueError(f"{flag_of(entry)} has no effect: {args.picture} was not made from such a file")
        if paths and needed[entry] and len(paths) != len(needed[entry]):
            raise ValueError(
                f"{args.picture} was made from {len(needed[entry])} pictures: give {flag_of(entry)} for each; "
                f"got {len(paths)}"
            )
        for path, about in zip(paths, needed.get(entry, [])):
            check_file(flag_of(entry), path, about)
        out += [f"{flag_of(entry)}={path}" for path in paths]
    return out


def of_small_upscaler(settings: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of `sdjax upscale --model` for a picture's settings, besides its files."""
    named = {"prompt": "--prompt", "negative_prompt": "--negative-prompt", "seed": "--seed", "sampler": "--sampler",
             "num_steps": "--steps", "guidance_scale": "--scale"}  # fmt: skip
    return [f"{flag}={settings[name]}" for name, flag in named.items() if settings.get(name) not in (None, "")]


def check_file(flag: str, path: str, about: Mapping[str, str]) -> None:
    """Notes if a file is not the one of this hash. Files that cannot be read are left to the command."""
    from sdjax.scripts.shared.job import note

    if "sha256" not in about or addresses.scheme(path) or not Path(path).is_file():
        return
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
            note(f"{flag} {path} is not the file that was used, {about['name']}: its contents differ")


def settings_given(values: Mapping[str, Any], remaker: Remaker) -> list[str]:
    """Returns the command's arguments for settings of its own, which its parser checks."""
    out = []
    coloured = "init_img" in remaker.inputs and remaker.module != "relight"
    for entry in (*remaker.settings, *(("background",) if coloured else ())):
        value, flag = values.get(entry), flag_of(entry)
        if entry == "composite":
            value, flag = value is False, "--no-composite"
        if entry == "boxes":
            out += [f"{flag}={_text(one)}" for one in value or []]
        elif value is True:
            out.append(flag)
        elif value is not None and value is not False:
            out.append(f"{flag}={_text(value)}")
    return out


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
