"""A1111's and Forge's text about a picture ("infotext"): prompt, negative prompt, and `Key: value` pairs.

stable-diffusion.cpp and SD.Next write the same form. Source: modules/infotext_utils.py and modules/processing.py of
AUTOMATIC1111/stable-diffusion-webui (the form; the names of the keys).
"""

import json
import re
from collections.abc import Callable
from typing import Any

from sdjax.pictures.metadata.found import Found, item, number, unknown, whole, words

# A pair of the last line: a key, and a value that is quoted as JSON or has no comma. Lengths keep the search linear
_PAIR = re.compile(r'(\w[\w \-/]{1,100}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
MIN_PAIRS = 3  # a last line with fewer is part of the prompt
MAX_PAIRS = 500
MAX_LINE = 2**17  # characters of a last line with pairs
NEGATIVE = "Negative prompt:"


def _text(value: str) -> str:
    return value


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(f"expected True or False; got {value[:40]}")
    return value.lower() == "true"


def _merging(value: str) -> list[dict[str, Any]]:
    """Returns A1111's token merging as a patch, without random targets. It limits the ratio itself."""
    return [{"name": "token_merging", "ratio": min(number(value), 0.75), "random": False}]


def _emphasis(value: str) -> str:
    name = value.strip().lower().replace(" ", "_")
    if name not in ("original", "no_norm", "ignore", "none"):
        raise ValueError(f"expected Original, No norm, Ignore or None; got {value[:40]}")
    return name


def _size(value: str) -> tuple[int, int]:
    width, cross, height = value.lower().partition("x")
    if not cross:
        raise ValueError(f"expected WIDTHxHEIGHT; got {value[:40]}")
    return whole(width), whole(height)


def _height_and_width(value: str) -> tuple[int, int]:
    width, height = _size(value)
    return height, width


# Our setting and its reader, by the keys of the tool. "a.b" is entry b of the setting a
KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("num_steps", whole),
    "Sampler": ("sampler", _text),
    "Schedule type": ("schedule", _text),
    "Scheduler": ("schedule", _text),  # stable-diffusion.cpp, SD.Next
    "CFG scale": ("guidance_scale", number),
    "Seed": ("seed", whole),
    "Clip skip": ("clip_skip", whole),
    "Denoising strength": ("strength", number),
    "Variation seed": ("variation_seed", whole),
    "Variation seed strength": ("variation_strength", number),
    "Seed resize from": ("seed_resize", _height_and_width),
    "ENSD": ("ensd", whole),
    "RNG": ("noise_source", _text),
    "Emphasis": ("emphasis", _emphasis),
    "Old prompt editing timelines": ("old_prompt_editing", _flag),
    "Eta": ("eta", number),
    "Eta DDIM": ("eta", number),
    "Tiling": ("seamless", _flag),
    "Hires upscale": ("hires.enlarge", number),
    "Hires upscaler": ("hires.upscale", _text),
    "Hires steps": ("hires.hires_steps", whole),
    "Hires sampler": ("hires.hires_sampler", _text),
    "Hires schedule type": ("hires.hires_schedule", _text),
    "Hires prompt": ("hires.hires_prompt", words),
    "Hires negative prompt": ("hires.hires_negative_prompt", words),
    "Hires CFG Scale": ("hires.hires_scale", number),  # Forge
    "Sigma churn": ("sampler_options.s_churn", number),
    "Sigma tmin": ("sampler_options.s_tmin", number),
    "Sigma tmax": ("sampler_options.s_tmax", number),
    "Sigma noise": ("sampler_options.s_noise", number),
    "Schedule rho": ("schedule_options.rho", number),
    "Schedule min sigma": ("schedule_options.sigma_min", number),
    "Schedule max sigma": ("schedule_options.sigma_max", number),
    "Beta schedule alpha": ("schedule_options.alpha", number),
    "Beta schedule beta": ("schedule_options.beta", number),
    "Discard penultimate sigma": ("schedule_options.discard_penultimate", _flag),
    "NGMS": ("skip.sigma", number),
    "NGMS all steps": ("skip.all_steps", _flag),
    "Token merging ratio": ("patches", _merging),
    "Token merging ratio hr": ("hires.hires_patches", _merging),
    "Skip Early CFG": ("skip.early", number),
    "UniPC variant": ("sampler_options.variant", _text),
    "UniPC order": ("sampler_options.order", whole),
    "UniPC lower order final": ("sampler_options.lower_order_final", _flag),
}
# Names and hashes of the model's files, and what they are called in a report
MODEL = {"Model": "name", "Model hash": "hash", "VAE": "vae", "VAE hash": "vae hash"}
ABOUT = ("Version", "User", "App", "Backend")  # about the tool itself: without effect on the picture
# Settings that say that the picture was made from others
FROM_MASK = ("Mask blur", "Inpaint area", "Masked content", "Masked area padding", "Conditional mask weight")


def read(text: str) -> Found:
    """Returns what the text says. Raises ValueError if it has no line of pairs, or a value is not of its kind."""
    prompt, negative, pairs = split(text)
    if not pairs:
        raise ValueError('it has no line "Steps: ..., Sampler: ..., ..."')
    tool = _tool(pairs)
    items = [item("prompt", prompt, "prompt"), item("negative prompt", negative, "negative_prompt")]
    for key, value in pairs.items():
        if key in MODEL or key in ABOUT:
            continue
        if key == "Size":
            width, height = _size(value)
            items += [item("Size, width", width, "width"), item("Size, height", height, "height")]
        elif key in KEYS:
            name, reader = KEYS[key]
            try:
                items.append(item(key, reader(value), name, value))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        else:
            items.append(unknown(key, value))
    model = {ours: pairs[key] for key, ours in MODEL.items() if key in pairs}
    task = "txt2img"
    needs: tuple[str, ...] = ()
    if any(key in pairs for key in FROM_MASK):
        task, needs = "inpaint", ("a picture", "a mask")
    elif "Denoising strength" in pairs and not any(key.startswith("Hires ") for key in pairs):
        task, needs = "img2img", ("a picture",)
    return Found(tool, tuple(items), model, needs, task)


def split(text: str) -> tuple[str, str, dict[str, str]]:
    """Returns prompt, negative prompt and pairs of a text, as A1111 divides it. Quoted values are unquoted."""
    *lines, last = text.strip().split("\n")
    matches = _PAIR.finditer(last) if len(last) <= MAX_LINE else ()
    found = [match for match, _ in zip(matches, range(MAX_PAIRS))]
    if len(found) < MIN_PAIRS:
        lines, found = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            part, line = negative, line.removeprefix(NEGATIVE).strip()
        part.append(line)
    pairs: dict[str, str] = {}
    for match in found:
        pairs.setdefault(match[1].strip(), _unquoted(match[2].strip()))
    return words("\n".join(prompt).strip()), words("\n".join(negative).strip()), pairs


def _unquoted(value: str) -> str:
    if not (len(value) > 1 and value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except (ValueError, RecursionError):
        return value


def _tool(pairs: dict[str, str]) -> str:
    """Returns the tool that wrote the pairs."""
    version = pairs.get("Version", "")
    if version.startswith("stable-diffusion.cpp"):
        return "stable-diffusion.cpp"
    if version.startswith("ComfyUI") or "comfyui" in version.lower():
        return "comfyui"
    return "sdjax" if version.startswith("sdjax") else "a1111"
