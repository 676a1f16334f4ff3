"""The settings in a picture's file: every setting exactly as JSON, and in the form that other tools read."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax import names
from sdjax.storage import addresses

# AUTOMATIC1111's nearest schedule types for spacings that it does not have; others keep our names
WEB_UI_NEAREST = {
    "even": "DDIM", "leading": "DDIM", "compvis": "DDIM", "trailing": "SGM Uniform", "linspace": "Uniform",
    "time_uniform": "Uniform",
}  # fmt: skip
WEB_UI_OPTIONS = {  # of schedules
    "rho": "Schedule rho", "sigma_min": "Schedule min sigma", "sigma_max": "Schedule max sigma",
    "alpha": "Beta schedule alpha", "beta": "Beta schedule beta", "discard_penultimate": "Discard penultimate sigma",
}  # fmt: skip
WEB_UI_NOISE = {"torch_cpu": "CPU", "torch_cuda": "NV"}  # its random number generator source
MODEL_FILES = (".safetensors", ".ckpt", ".gguf", ".bin", ".json", ".txt")
ENDS = 2**20  # bytes at a file's start and end that its fingerprint covers


def describe_model(name: str | Path, local: Path) -> dict[str, Any]:
    """Returns the identity of a model: a hub repository's name and commit, or a local model's fingerprint.

    The hub's cache is not read: its contents depend on earlier downloads.
    """
    from sdjax.loading import hub

    if addresses.scheme(name) in addresses.PACKAGES:
        return {**(fingerprint(local) if isinstance(local, Path) else {}), "name": addresses.address(name)}
    if not hub.is_local(name):
        return {"name": hub.name_of(name, local), "commit": hub.commit_of(local)}
    return fingerprint(local)


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns a model's name, size and a SHA-256 of the size and the first and last MiB of each file.

    This is cheap for 4 GB, and differs for all released files.
    """
    path = Path(path)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in MODEL_FILES and p.is_file())
    digest, total = hashlib.sha256(), 0
    for file in files:
        size = file.stat().st_size
        total += size
        label = "" if file == path else file.relative_to(path).as_posix()
        digest.update(json.dumps([label, size]).encode())
        with open(file, "rb") as data:
            digest.update(data.read(ENDS))
            data.seek(max(size - ENDS, 0))
            digest.update(data.read(ENDS))
    return {"name": name, "bytes": total, "sha256_of_ends": digest.hexdigest()}


def to_json(settings: Mapping[str, Any]) -> str:
    """Returns the settings as JSON in ASCII, the same text every time."""
    return json.dumps(settings, ensure_ascii=True, allow_nan=False)


def web_ui_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `Key: value` pairs of AUTOMATIC1111's `parameters` text.

    Clip skip, Schedule type and Version are always there, because readers replace missing keys by their own defaults.
    RNG is there only if the noise is one that the web UI draws.
    """
    from sdjax.tasks.two_pass import A1111_UPSCALES

    spacing = settings["sampler_options"].get("spacing", "compvis")  # A1111's DDIM, PLMS and UniPC have only their own
    described = spacing if isinstance(spacing, dict) else {"name": spacing}
    options = {WEB_UI_OPTIONS[key]: value for key, value in described.items() if key in WEB_UI_OPTIONS}
    hires = settings.get("hires") or {}
    upscalers = {ours: theirs for theirs, ours in reversed(A1111_UPSCALES.items())}  # the first name of each
    own = {
        "Emphasis": {"no_norm": "No norm", "ignore": "Ignore", "none": "None"}.get(settings.get("emphasis", "")),
        "Old prompt editing timelines": settings.get("old_prompt_editing"),
        "Denoising strength": settings.get("strength", hires.get("strength")),
        "Hires upscale": hires.get("enlarge"),
        "Hires steps": hires.get("hires_steps"),
        "Hires upscaler": upscalers.get(hires.get("upscale", ""), hires.get("upscale")),
        "Hires sampler": None if hires.get("hires_sampler") is None else _sampler_of_web_ui(hires["hires_sampler"]),
        "Hires prompt": hires.get("hires_prompt"),
        "Hires negative prompt": hires.get("hires_negative_prompt"),
        "Hires CFG Scale": hires.get("hires_scale"),
        "Tiling": True if settings.get("seamless") == "xy" else None,
        "Token merging ratio": _merging(settings.get("patches")),
        "Token merging ratio hr": _merging(hires.get("hires_patches", settings.get("patches"))) if hires else None,
        **_skips(settings),
        "Lora hashes": _hashes(settings, "lora"),
        "TI hashes": _hashes(settings, "embedding"),
    }
    return {
        "Steps": settings["steps"],
        "Sampler": _sampler_of_web_ui(settings["sampler"]),
        "Schedule type": WEB_UI_NEAREST.get(described["name"]) or of_web_ui(described["name"], names.SCHEDULES),
        "CFG scale": settings["guidance_scale"],
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        "Model": _stem(settings["model"]["name"].rpartition("/")[2]),
        **{key: value for key, value in (own | options).items() if value not in (None, False)},
        **_noise_fields(settings),
        "Clip skip": skip if isinstance(skip := settings.get("clip_skip"), int) and skip > 0 else 1,
        "Version": f"sdjax {settings['versions']['sdjax']}",
    }


def _sampler_of_web_ui(name: str) -> str:
    return of_web_ui(name, {name: one.names for name, one in names.SAMPLERS.items()})


def of_web_ui(name: str, table: Mapping[str, names.Names]) -> str:
    """Returns AUTOMATIC1111's name of a sampler or schedule; our own if it has none."""
    return [*(table[name].of("a1111") if name in table else ()), name][0]


def texts(picture: Mapping[str, Any]) -> dict[str, str]:
    """Returns the text chunks of the PNG file of a picture with these settings."""
    from sdjax.pictures.image import infotext

    prompt, negative = (
        picture.get(f"expanded_{name}", picture.get(name, "")) for name in ("prompt", "negative_prompt")
    )
    parameters = infotext(prompt + _lora_tags(picture), negative, web_ui_fields(picture))
    return {"parameters": parameters, "sdjax": to_json(picture)}


def recorded_options(sampler: Any) -> dict[str, Any]:
    """Returns the fields of a sampler that have an effect, as JSON can hold them."""
    from sdjax.checks.effects import in_use
    from sdjax.samplers.diffusers.by_name import SCHEDULES
    from sdjax.samplers.diffusers.scheduler import DiffusersSampler
    from sdjax.samplers.known_schedules import describe
    from sdjax.samplers.tool_sampler import ToolSampler

    if isinstance(sampler, ToolSampler):
        options = {key: value for key, value in in_use(sampler.recipe.sampler).items() if key != "spacing"}
        return options | ({} if sampler.recipe.on_timesteps else {"spacing": describe(sampler.recipe.schedule)})
    if isinstance(sampler, DiffusersSampler):
        grid, method = sampler.method.spacing, sampler.method
        found = [getattr(grid, "sigmas", ""), getattr(grid, "spacing", ""), getattr(method, "timestep_spacing", "")]
        eta = getattr(method, "eta", 0)
        own = {"eta": eta} if eta else {}
        return {"spacing": next((name for name in found if name in SCHEDULES), "leading"), **own}
    options = in_use(sampler)
    return options | ({"spacing": describe(options["spacing"])} if "spacing" in options else {})


def _merging(patches: Any) -> float | None:
    """Returns the share of places that patches join; None if they join none."""
    if not patches:
        return None
    from sdjax.adapters.table import TokenMerging, make_settings

    return next((one.ratio for one in make_settings(patches) if isinstance(one, TokenMerging)), None)


def _skips(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the web UI's fields about calls without the negative prompt."""
    guidance, options = settings.get("guidance"), settings.get("guidance_options")
    if not isinstance(guidance, str):
        return {}
    from sdjax.diffusion.rules import SkipUnconditional, make_rules

    found = next((one for one in make_rules(guidance, options) if isinstance(one, SkipUnconditional)), None)
    if found is None:
        return {}
    low = {"NGMS": found.sigma, "NGMS all steps": bool(found.all_steps)} if found.sigma else {}
    return {**low, "Skip Early CFG": found.early or None}


def _hashes(settings: Mapping[str, Any], kind: str) -> str | None:
    """Returns the hashes of a picture's files of a kind as the web UI writes them, "name: 0123456789ab, ..."."""
    hashes = settings.get("hashes", {}).get(kind, {})
    return ", ".join(f"{re.sub('[:,]', '', name)}: {value}" for name, value in hashes.items()) or None


def _lora_tags(settings: Mapping[str, Any]) -> str:
    """Returns tags for the adapters that were not in the prompt, as the web UI reads them: text encoder, then UNet."""
    tags = []
    for text in (*settings.get("lora", ()), *(settings.get("loras") or "").split("+")):
        found = re.fullmatch(r"(.+?)(?::([-+.\de]+))?(?::([-+.\de]+))?", text.strip())
        if found is not None:
            name, unet, encoder = found.groups()
            weights = [unet or "1"] if encoder is None else [encoder, unet]
            tags.append(f" <lora:{':'.join([_stem(name), *weights])}>")
    return "".join(tags)


def _noise_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the web UI's fields about the noise."""
    fields: dict[str, Any] = {}
    if settings.get("variation_strength"):
        fields["Variation seed"] = settings.get("variation_seed") or 0
        fields["Variation seed strength"] = settings["variation_strength"]
    if settings.get("seed_resize"):
        height, width = settings["seed_resize"]
        fields["Seed resize from"] = f"{width}x{height}"
    if settings.get("ensd"):
        fields["ENSD"] = settings["ensd"]
    if settings.get("noise_source") in WEB_UI_NOISE:
        fields["RNG"] = WEB_UI_NOISE[settings["noise_source"]]
    return fields


def _stem(name: str) -> str:
    from sdjax.loading import hub

    return name.rpartition(".")[0] if hub.is_single_file(name) else name  # the dot in "sd-1.5" does not start an ending
