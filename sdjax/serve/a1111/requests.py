"""From a request for pictures to the engine's works: what the fields mean in our settings."""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax import names, pictures
from sdjax.checks.arguments import MAX_SEED, shown, whole
from sdjax.samplers import SAMPLERS
from sdjax.samplers.tool_schedules import A1111_TIMESTEPS
from sdjax.serve.a1111 import fields, options, units
from sdjax.serve.a1111.filling import filled
from sdjax.serve.bodies import Refused, file_from_text, open_input
from sdjax.serve.engine import Work
from sdjax.serve.server import Server
from sdjax.tasks.two_pass import A1111_UPSCALES

MOST_PIXELS = 2048  # of a side
AUTOMATIC = (None, "", "Automatic", "automatic", "Use same scheduler")
SAME = (None, "", "None", "Use same sampler")
# Samplers to which A1111 gives timesteps, so that a noise level means nothing there
ON_TIMESTEPS = tuple(names.find_sampler(name, "a1111").sampler for name in A1111_TIMESTEPS)
LATENT, LANCZOS = "Latent", "Lanczos"
FILLS = ("fill", "original", "latent noise", "latent nothing")
LATENT_FILLS = {"latent noise": "noise", "latent nothing": "nothing"}
RESIZES = ("just resize", "crop and resize", "resize and fill", "latent upscale")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request: its first work, those that refine each picture, the fields, and warnings."""

    work: Work
    details: list[Mapping[str, Any]]
    fields: Mapping[str, Any]
    warnings: list[str]


def read(server: Server, given: Mapping[str, Any], set_options: Mapping[str, Any], client: str, *, task: str) -> Asked:
    """Returns what a request for txt2img or img2img asks for. Raises ValueError for what cannot be made."""
    own, warnings = fields.read(given, fields.TXT2IMG if task == "txt2img" else fields.IMG2IMG)
    if own["script_name"] not in (None, "", "None"):
        raise Refused(f"there are no scripts here; got {shown(own['script_name'])}", 422)
    override, more = _overridden(own["override_settings"], set_options)
    warnings += more
    if own["s_min_uncond"] is not None:
        override["s_min_uncond"] = own["s_min_uncond"]
    settings = _settings(own)
    if override["s_min_uncond"] and settings["sampler"] in ON_TIMESTEPS:
        warnings.append(f"s_min_uncond has no effect on the sampler {settings['sampler']}")
        override["s_min_uncond"] = 0.0
    settings = {**settings, **options.settings_of(server, override, task)}
    if own["eta"] is not None and "eta" not in settings:
        warnings.append(f"eta has no effect on the sampler {settings['sampler']}")
    model = override["sd_model_checkpoint"]
    model = None if model is None else server.library.find("checkpoint", str(model)).name
    inputs: dict[str, np.ndarray] = {}
    if task == "img2img":
        task, of_picture, inputs, more = _picture(server, own)
        settings = {**settings, **of_picture}
        if task == "inpaint":  # its pictures keep their size
            settings = {name: value for name, value in settings.items() if name not in ("width", "height")}
        warnings += more
    elif own["enable_hr"]:
        settings["hires"] = _hires(server, own)
        again = options.patches_of(override, "hires")
        if again != settings.get("patches", []):
            settings["hires"]["hires_patches"] = again
    found = units.read(server, own["alwayson_scripts"], inputs)
    if found.controls:
        settings["controls"] = found.controls
    work = Work(task, settings, {**inputs, **found.inputs}, model, client, save=own["save_images"])
    return Asked(work, found.details, own, [*warnings, *found.warnings])


def _overridden(given: Mapping[str, Any], present: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    known = {name: value for name, value in given.items() if name in options.DEFAULTS}
    warnings = [
        f"the option {name[:80]!r} is unknown" for name in given if name not in (*options.DEFAULTS, *options.FIXED)
    ]
    if known.get("token_merging_ratio"):  # A request's own ratio comes before the option for pictures from pictures
        known["token_merging_ratio_img2img"] = 0.0
    return {**options.DEFAULTS, **present, "sd_model_checkpoint": None, **known}, warnings


def _settings(own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that both kinds of requests have."""
    width, height = (whole(name, own[name], 64, MOST_PIXELS) // 8 * 8 for name in ("width", "height"))
    count = whole("batch_size", own["batch_size"], 1, 64) * whole("n_iter", own["n_iter"], 1, 100)
    sampler = own["sampler_name"] or own["sampler_index"] or "Euler"
    found = names.find_sampler(str(sampler))
    settings: dict[str, Any] = {
        "compat": "a1111", "prompt": own["prompt"], "negative_prompt": own["negative_prompt"], "sampler": found.sampler,
        "num_steps": whole("steps", own["steps"], 1, 1000), "guidance_scale": own["cfg_scale"], "width": width,
        "height": height, "seed": seed(own["seed"]), "num_images": count,
    }  # fmt: skip
    scheduler = own["scheduler"]
    if scheduler not in AUTOMATIC:
        settings["schedule"] = names.find_schedule(str(scheduler))
    elif found.schedule is not None:
        settings["schedule"] = found.schedule
    if own["styles"]:
        settings["styles"] = own["styles"]
    if own["subseed_strength"]:
        settings |= {"variation_strength": own["subseed_strength"], "variation_seed": seed(own["subseed"])}
    resize = own["seed_resize_from_h"], own["seed_resize_from_w"]
    if min(resize) > 0:
        settings["seed_resize"] = list(resize)
    if own["tiling"]:
        settings["seamless"] = "xy"
    if own["eta"] is not None and has_eta(found.sampler):
        settings["eta"] = own["eta"]
    return settings


def has_eta(sampler: str) -> bool:
    """Returns whether a sampler has the number eta."""
    return sampler in SAMPLERS and hasattr(SAMPLERS[sampler](), "eta")


def seed(given: int) -> int:
    """Returns a seed; -1 is a random one."""
    return random.SystemRandom().randrange(2**32 - 1) if given == -1 else whole("seed", given, 0, MAX_SEED)


def _hires(server: Server, own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the second pass."""
    width, height, to_width, to_height = (own[name] for name in ("width", "height", "hr_resize_x", "hr_resize_y"))
    enlarge = own["hr_scale"]
    if to_width or to_height:
        shares = [to / side for to, side in ((to_width, width), (to_height, height)) if to]
        if len(shares) == 2 and abs(shares[0] - shares[1]) > 0.01:
            raise Refused("hr_resize_x and hr_resize_y keep the picture's shape here: give one of them", 422)
        enlarge = max(shares)
    hires: dict[str, Any] = {
        "enlarge": enlarge,
        "strength": 0.75 if own["denoising_strength"] is None else own["denoising_strength"],
    }
    name = own["hr_upscaler"] or LATENT
    if name in A1111_UPSCALES:
        hires["upscale"] = name
    else:
        hires["upscaler"] = server.library.find("upscaler", str(name)).name
    if own["hr_second_pass_steps"]:
        hires["hires_steps"] = own["hr_second_pass_steps"]
    if own["hr_sampler_name"] not in SAME:
        hires["hires_sampler"] = names.find_sampler(str(own["hr_sampler_name"])).sampler
    if own["hr_cfg"]:
        hires["hires_scale"] = float(own["hr_cfg"])
    return hires | {f"hires_{name}": own[f"hr_{name}"] for name in ("prompt", "negative_prompt") if own[f"hr_{name}"]}


def _picture(server: Server, own: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Returns the task, settings and inputs of a picture from a picture, and warnings."""
    given = own["init_images"]
    if not isinstance(given, list) or not given:
        raise Refused("init_images is a list of pictures as base64", 422)
    warnings = [f"the first of {len(given)} init_images is used"] if len(given) > 1 else []
    picture = open_input(file_from_text(server, given[0], "init_images"), "image")
    width, height = (own[name] // 8 * 8 for name in ("width", "height"))
    mode = whole("resize_mode", own["resize_mode"], 0, 3)
    settings: dict[str, Any] = {"strength": own["denoising_strength"]}
    if own["mask"] is None:
        return "img2img", settings, {"image": fitted(picture, height, width, mode)}, warnings
    mask = open_input(file_from_text(server, own["mask"], "mask"), "mask")
    if mask.shape != picture.shape[:2]:
        mask = pictures.resize(np.repeat(mask[..., None], 3, -1), *picture.shape[:2])[..., 0]
    if own["inpainting_mask_invert"]:
        mask = 255 - mask
    if not own["inpaint_full_res"]:
        picture = fitted(picture, height, width, mode)
        mask = fitted(np.repeat(mask[..., None], 3, -1), height, width, mode)[..., 0]
    fill = FILLS[whole("inpainting_fill", own["inpainting_fill"], 0, 3)]
    if fill == "fill":
        picture = filled(picture, mask >= 128)
    elif fill in LATENT_FILLS:
        settings["fill"] = LATENT_FILLS[fill]
    blur = own["mask_blur"] if own["mask_blur"] is not None else max(own["mask_blur_x"], own["mask_blur_y"])
    settings |= {"only_masked": own["inpaint_full_res"], "feather": int(blur)}
    if own["inpaint_full_res"]:
        settings["padding"] = own["inpaint_full_res_padding"]
    return "inpaint", settings, {"image": picture, "mask": mask}, warnings


def fitted(picture: np.ndarray, height: int, width: int, mode: int) -> np.ndarray:
    """Returns a picture in another size: stretched (0, 3), cut to its shape (1), whole with repeated edges (2)."""
    old_height, old_width = picture.shape[:2]
    if mode in (0, 3) or old_height * width == old_width * height:
        return pictures.resize(picture, height, width)
    choose = max if mode == 1 else min
    share = choose(height / old_height, width / old_width)
    whole_size = max(1, round(old_height * share)), max(1, round(old_width * share))
    resized = pictures.resize(picture, *whole_size)
    if mode == 1:
        top, left = ((have - want) // 2 for have, want in zip(whole_size, (height, width)))
        return resized[top : top + height, left : left + width]
    rest = [(want - have) for have, want in zip(whole_size, (height, width))]
    return np.pad(resized, [*((one // 2, one - one // 2) for one in rest), (0, 0)], mode="edge")
