"""sdjax's own text about a picture: a JSON object with every setting exactly."""

from typing import Any

from sdjax.pictures.metadata.found import Found, item, number, shorten, table, unknown, whole, words

RENAMED = {"steps": "num_steps"}
READERS: dict[str, Any] = {
    "prompt": words,
    "negative_prompt": words,
    "seed": whole,
    "steps": whole,
    "guidance_scale": number,
    "guidance_rescale": number,
    "height": whole,
    "width": whole,
    "strength": number,
}
# How the picture was computed, and with what: not settings of the picture
ABOUT = (
    "task", "model", "vae", "safety_checker", "variant", "ema", "config", "prediction", "dtype", "exact", "parallel",
    "split_picture", "devices", "versions", "jax_settings", "batch", "watermark", "safety", "weak", "hashes",
    "low_memory",
)  # fmt: skip
# The final texts have them, so that no file is read again that a picture names
CHOICES = ("styles", "styles_file", "wildcards", "wildcard_seed")
INPUTS = {  # files that a picture was made from
    "init_img": "a picture", "mask": "a mask", "depth": "a depth map", "depth_model": "a network for depth",
    "latents": "starting noise", "vae": "another autoencoder", "weak": "a weaker model", "detector": "a detector",
    "backdrop": "a background", "upscaler": "an upscaler's file", "widen": "differences to its UNet",
    "prior": "a prior", "vision": "an image tower", "noise_stats": "statistics of embeddings",
}  # fmt: skip
COMPARED = ("prediction", "dtype", "exact", "parallel", "split_picture", "batch", "devices", "versions", "jax_settings")
# Settings of one command, which are its flags
OF_TASK = {
    "method", "feather", "padding", "only_masked", "composite", "expand", "overlap", "fill", "boxes", "confidence",
    "most", "grow", "background", "noise_level", "weights", "mix_noise_level", "dialect", "prior_prompt",
    "prior_steps", "prior_scale", "times", "light", "backdrop_name", "enlarge", "hires_strength", "style_of",
}  # fmt: skip


def read(text: str) -> Found:
    """Returns what the text says. Raises ValueError if it is not of a single picture, or a value is not of its kind."""
    given = table(text)
    if "grid" in given:
        raise ValueError("this is a grid of several pictures; use the file of one of them")
    if "frames" in given:
        raise ValueError(
            "this is an animation or a frame of one, and only single pictures can be made again: run sdjax animate "
            "with the settings in its text"
        )
    if not isinstance(given.get("task"), str) or not {"prompt", "upscaler", "preprocessor"} & given.keys():
        raise ValueError("it names no task and no prompt")
    given = _with_upscaler(_with_mixed(given))
    for key in "prompt", "negative_prompt":
        given[key] = given.pop(f"expanded_{key}", given.get(key))
    items = []
    for key, value in given.items():
        if key in (*ABOUT, *CHOICES, *INPUTS) or value is None:
            continue
        if key in OF_TASK:
            items.append(item(key, value, f"task.{key}"))
            continue
        try:
            read_value = READERS[key](value) if key in READERS else value
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        if isinstance(value, dict):
            items += [
                item(f"{key} {entry}", one, f"{RENAMED.get(key, key)}.{entry}")
                for entry, one in value.items()
                if one is not None
            ]
        elif isinstance(value, str | int | float | list):
            items.append(item(key, read_value, RENAMED.get(key, key)))
        else:
            items.append(unknown(key, value))
    inputs = {key: _files(given[key]) for key in INPUTS if given.get(key) is not None}
    needs = tuple(INPUTS[key] for key in inputs)
    about = {key: given[key] for key in COMPARED if key in given}
    return Found(
        "sdjax", tuple(items), _model(given.get("model")), needs, given["task"], inputs, about, _computed(given)
    )


def _with_upscaler(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries, with the file that enlarged the picture between two passes as an entry of its own."""
    hires = given.get("hires")
    if not isinstance(hires, dict) or "upscaler" not in hires:
        return given
    rest = {name: value for name, value in hires.items() if name not in ("upscaler", "upscale")}
    return {**given, "hires": rest, "upscaler": hires["upscaler"]}


def _with_mixed(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries, with those of a mixture of pictures as lists. Raises ValueError if it is none."""
    mixed = given.pop("mixed", None)
    if mixed is None:
        return given
    if not isinstance(mixed, list) or not all(isinstance(one, dict) and "init_img" in one for one in mixed):
        raise ValueError("mixed: expected a list of pictures")
    names = {"init_img": "init_img", "weight": "weights", "noise_level": "noise_level"}
    return {**given, **{ours: [one.get(name) for one in mixed] for name, ours in names.items()}}


def _files(given: Any) -> list[dict[str, str]]:
    """Returns names and hashes of files: a file's name, or a mapping with its name and hash, or a list of them."""
    out = []
    for one in given if isinstance(given, list) else [given]:
        about = one if isinstance(one, dict) else {"name": one}
        out.append(
            {key: shorten(str(about.get(key, "?"))) for key in ("name", "sha256") if key == "name" or key in about}
        )
    return out


def _computed(given: dict[str, Any]) -> dict[str, Any]:
    """Returns how the picture was computed, in values that flags may have."""
    kinds = {
        "dtype": str, "exact": bool, "batch": int, "ema": str, "variant": str, "watermark": str, "parallel": str,
        "low_memory": bool,
    }  # fmt: skip
    return {key: given[key] for key, kind in kinds.items() if type(given.get(key)) is kind}


def _model(given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        return {}
    return {key: str(given[key])[:200] for key in ("name", "commit", "bytes", "sha256_of_ends") if key in given}
