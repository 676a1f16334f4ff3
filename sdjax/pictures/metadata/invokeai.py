"""InvokeAI's text about a picture: a JSON object, in the form since version 3 and in the older one."""

from typing import Any

from sdjax.pictures.metadata.found import Found, Item, item, number, table, unknown, whole, words

OLD = {  # the samplers of versions 1 and 2
    "k_euler": "euler", "k_euler_a": "euler_a", "k_heun": "heun", "k_lms": "lms", "k_dpm_2": "kdpm_2",
    "k_dpm_2_a": "kdpm_2_a", "k_dpmpp_2": "dpmpp_2m", "k_dpmpp_2_a": "dpmpp_2s", "plms": "pndm", "ddim": "ddim",
}  # fmt: skip
# Our setting and its reader, by InvokeAI's names
KEYS: dict[str, tuple[str, Any]] = {
    "positive_prompt": ("prompt", words),
    "negative_prompt": ("negative_prompt", words),
    "seed": ("seed", whole),
    "steps": ("num_steps", whole),
    "cfg_scale": ("guidance_scale", number),
    "cfg_rescale_multiplier": ("guidance_rescale", number),
    "width": ("width", whole),
    "height": ("height", whole),
    "clip_skip": ("clip_skip", whole),
}
ABOUT = ("app_version", "generation_mode", "canvas_v2_metadata", "model", "vae", "rand_device", "scheduler")
EMPTY: tuple[Any, ...] = (None, [], {}, False, "", 0)


def read(text: str) -> Found:
    """Returns what the text of a version since 3 says. Raises ValueError if a value is not of its kind."""
    given = table(text)
    if "positive_prompt" not in given and "seed" not in given:
        raise ValueError("it has neither positive_prompt nor seed")
    items: list[Item] = []
    for key, (name, reader) in KEYS.items():
        if given.get(key) is None:
            continue
        try:
            items.append(item(key, reader(given[key]), name))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    items += _of_scheduler(given.get("scheduler"))
    axes = "".join(axis for axis in "xy" if given.get(f"seamless_{axis}") is True)
    if axes:
        items.append(item("seamless", axes, "seamless"))
    if given.get("rand_device") not in (None, "cpu"):
        items.append(unknown("rand_device", given["rand_device"]))
    others = set(given) - set(KEYS) - set(ABOUT) - {"seamless_x", "seamless_y"}
    items += [unknown(key, given[key]) for key in sorted(others) if given[key] not in EMPTY]
    mode = str(given.get("generation_mode", "txt2img")).removeprefix("sd_")
    needs = () if mode == "txt2img" else ("a picture",)
    return Found("invokeai", tuple(items), _model(given.get("model")), needs, mode)


def read_old(text: str) -> Found:
    """Returns what the text of versions 2 says. Raises ValueError if a value is not of its kind."""
    given = table(text)
    image = given.get("image")
    if not isinstance(image, dict):
        raise ValueError('it has no entry "image"')
    prompt = image.get("prompt")
    if isinstance(prompt, list):
        prompt = prompt[0].get("prompt") if len(prompt) == 1 and isinstance(prompt[0], dict) else None
    positive, negative = _apart(words(prompt))
    sampler = image.get("sampler")
    items = [item("prompt", positive, "prompt"), item("negative prompt", negative, "negative_prompt")]
    for key in "seed", "steps", "cfg_scale", "width", "height":
        if image.get(key) is not None:
            name, reader = KEYS[key]
            items.append(item(key, reader(image[key]), name))
    items += _of_scheduler(OLD.get(sampler, sampler) if isinstance(sampler, str) else sampler)
    known = {"prompt", "seed", "steps", "cfg_scale", "width", "height", "sampler", "type"}
    items += [unknown(key, image[key]) for key in sorted(set(image) - known) if image[key] not in EMPTY]
    kind = str(image.get("type", "txt2img"))
    weights = given.get("model_weights")
    model = {"name": weights[:200]} if isinstance(weights, str) else {}
    return Found("invokeai", tuple(items), model, () if kind == "txt2img" else ("a picture",), kind)


def _of_scheduler(name: Any) -> list[Item]:
    """Returns the item of the sampler, whose name may say Karras's sigmas too ("dpmpp_2m_k")."""
    if name is None:
        return []
    return [item("scheduler", name, "sampler")] if isinstance(name, str) else [unknown("scheduler", name)]


def _model(given: Any) -> dict[str, str]:
    """Returns name and hash of the model, in the forms of several versions."""
    if not isinstance(given, dict):
        return {}
    names = {"name": given.get("name") or given.get("model_name"), "hash": given.get("hash")}
    return {key: value[:200] for key, value in names.items() if isinstance(value, str)}


def _apart(prompt: str) -> tuple[str, str]:
    """Returns prompt and negative prompt: the old form has the latter in brackets."""
    negative: list[str] = []
    positive: list[str] = []
    for part in prompt.replace("]", "[").split("["):
        (positive if len(positive) == len(negative) else negative).append(part)
    return " ".join(part.strip() for part in positive if part.strip()), " ".join(part.strip() for part in negative)
