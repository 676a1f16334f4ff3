"""sdjax's own text about a picture: a JSON object with every setting exactly."""

from typing import Any

from sdjax.pictures.metadata.found import Found, item, number, table, unknown, whole, words

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
    "devices", "versions", "jax_settings", "batch", "watermark", "safety", "init_img", "mask", "hashes",
)  # fmt: skip
# The final texts have them, so that no file is read again that a picture names
CHOICES = ("styles", "styles_file", "wildcards", "wildcard_seed")
FROM = {"init_img": "a picture", "mask": "a mask"}


def read(text: str) -> Found:
    """Returns what the text says. Raises ValueError if it is not of a single picture, or a value is not of its kind."""
    given = table(text)
    if "grid" in given:
        raise ValueError("this is a grid of several pictures; use the file of one of them")
    if "frames" in given:
        raise ValueError("this is an animation; only single pictures can be made again")
    if not isinstance(given.get("task"), str) or "prompt" not in given:
        raise ValueError("it names no task and no prompt")
    for key in "prompt", "negative_prompt":
        given[key] = given.pop(f"expanded_{key}", given.get(key))
    items = []
    for key, value in given.items():
        if key in (*ABOUT, *CHOICES) or value is None:
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
    needs = tuple(what for key, what in FROM.items() if given.get(key) is not None)
    return Found("sdjax", tuple(items), _model(given.get("model")), needs, given["task"], _computed(given))


def _computed(given: dict[str, Any]) -> dict[str, Any]:
    """Returns how the picture was computed, in values that flags may have."""
    kinds = {"dtype": str, "exact": bool, "batch": int, "ema": str, "variant": str, "watermark": str, "parallel": str}
    return {key: given[key] for key, kind in kinds.items() if type(given.get(key)) is kind}


def _model(given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        return {}
    return {key: str(given[key])[:200] for key in ("name", "commit", "bytes", "sha256_of_ends") if key in given}
