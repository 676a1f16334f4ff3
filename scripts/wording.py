"""Messages of the library in a command's words: an argument's name, as `variant=`, becomes the flag of that name."""

import re

FLAGS = {
    "config": "--config", "depth": "--depth-model", "dtype": "--dtype", "ema": "--ema", "noise_stats": "--noise-stats",
    "prediction": "--prediction", "revision": "--revision", "vae": "--vae", "variant": "--variant",
    "vision": "--vision", "vocab": "--vocab",
}  # fmt: skip
_ARGUMENT = re.compile(
    rf"(?<![^\s(])(?P<name>{'|'.join(FLAGS)})=(?:(?P<quote>['\"])(?P<quoted>[\w.-]{{1,40}})(?P=quote)|(?P<bare>[\w.-]*\w))?"
    r"(?: \(--[\w-]+ on the command line\))?"
)


def in_flags(text: str, form: str = "{}") -> str:
    """Returns the text with a flag in the place of each of the library's arguments.

    Of training, whose checkpoint is described by settings, `form` is "model.{}": model.vae for vae=.
    """

    def flag(match: re.Match[str]) -> str:
        value = match["quoted"] or match["bare"]
        if form == "{}":
            return FLAGS[match["name"]] + (f" {value}" if value else "")
        return form.format(match["name"]) + (f"={value}" if value else "")

    return _ARGUMENT.sub(flag, text)
