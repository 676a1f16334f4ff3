"""Rewrites the library's messages for the command line: names of Python arguments become flags.

`in_flags` handles the arguments of reading a model, for all commands and their notes. `translate` handles a task's
arguments, for the errors of one command. Imports nothing heavy.
"""

import re
from collections.abc import Collection

from sdjax.storage.files import OR_OVERWRITE

FLAGS_OF_READING = {
    "config": "--config", "depth": "--depth-model", "dtype": "--dtype", "ema": "--ema", "noise_stats": "--noise-stats",
    "prediction": "--prediction", "revision": "--revision", "vae": "--vae", "variant": "--variant",
    "vision": "--vision", "vocab": "--vocab",
}  # fmt: skip
_ARGUMENT = re.compile(
    rf"(?<![^\s(])(?P<name>{'|'.join(FLAGS_OF_READING)})=(?:(?P<quote>['\"])(?P<quoted>[\w.-]{{1,40}})(?P=quote)|(?P<bare>[\w.-]*\w))?"
    r"(?: \(--[\w-]+ on the command line\))?"
)


def in_flags(text: str, form: str = "{}") -> str:
    """Returns the text with a flag in place of each of the library's arguments.

    For training, which has settings instead of flags, `form` is "model.{}": model.vae for vae=.
    """

    def flag(match: re.Match[str]) -> str:
        value = match["quoted"] or match["bare"]
        if form == "{}":
            return FLAGS_OF_READING[match["name"]] + (f" {value}" if value else "")
        return form.format(match["name"]) + (f"={value}" if value else "")

    return _ARGUMENT.sub(flag, text)


# Flags whose names differ from the task's arguments; the first that a command has is used
FLAGS_OF_TASKS: dict[str, tuple[str, ...]] = {
    "num_steps": ("--steps",),
    "guidance_scale": ("--scale",),
    "num_images": ("--n_samples",),
    "height": ("--H",),
    "width": ("--W",),
    "eta": ("--ddim_eta",),
    "spacing": ("--sampler-option spacing",),
    "styles": ("--style",),
    "image": ("--init-img",),
    "prompts": ("--prompt",),
    "seeds": ("--seed", "--seeds"),
    "enlarge": ("--hires",),
    "upscale": ("--hires-upscale",),
    "upscaler": ("--upscaler", "--model"),
    "devices": ("--device",),
    "path": ("--ckpt",),
    "depth_map": ("--depth-map", "--depth"),
    "vision": ("--vision",),
    "mix_noise_level": ("--mix-noise-level",),
    "prior_prompt": ("--prior-prompt",),
    "prior_steps": ("--prior-steps",),
    "prior_scale": ("--prior-scale",),
    "batch": ("--batch", "--n_samples"),
}
SAME = (
    "negative_prompt", "noise_batch", "noise_level", "noise_source", "only_masked", "prompt_strength", "seed_resize",
    "strength_counting", "variation_seed", "variation_strength", "window_overlap", "hires_prompt", "split_picture",
)  # fmt: skip
_BEFORE = r"(?<![\w./'\"-])"  # no part of a path, of a quotation, of a longer name


def translate(text: str, flags: Collection[str]) -> str:
    """Returns an error's text with the names of Python arguments replaced by the command's flags, if it has them.

    A name is replaced only if it cannot be a plain word: if it has an underscore, stands before an equals sign, or is
    the text's subject. A subject that differs from the flag's name stays behind the flag ("--H: height is ...").
    """

    def flag_of(name: str) -> str | None:
        if "_" in name and name not in FLAGS_OF_TASKS and name not in SAME:
            return None  # a value, as dpm_solver
        own = FLAGS_OF_TASKS.get(name, ()) + (f"--{name}", f"--{name.replace('_', '-')}")
        return next((flag for flag in own if flag.partition(" ")[0] in flags), None)

    def replaced(match: re.Match) -> str:
        flag = flag_of(match["name"])
        return match[0] if flag is None else match[0].replace(match["name"], flag, 1)

    def subject(match: re.Match) -> str:
        flag = flag_of(match["name"])
        return match[0] if flag is None else flag if flag.endswith(f"-{match[0]}") else f"{flag}: {match[0]}"

    def without_equals(match: re.Match) -> str:
        return flag_of(match["name"]) or match[0]

    text = text.replace(OR_OVERWRITE, ", or overwrite it with --overwrite" if "--overwrite" in flags else "")
    if not text.startswith("--"):
        text = re.sub(r"^(?P<name>[a-z]+)(?= (is|are|needs|has|lies|chooses)\b)", subject, text)
    text = re.sub(rf"{_BEFORE}(?P<name>[a-z]\w*_\w+)\b(?![./'\"])", replaced, text)
    text = re.sub(rf"{_BEFORE}(?P<name>[a-z]\w*)=(?=[\s;:,.)]|$)", without_equals, text)
    return re.sub(r"(--\S+) \(\1 on the command line\)", r"\1", text)
