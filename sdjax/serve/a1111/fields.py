"""The fields of requests with their defaults. A request's field that is in no table is named in a warning."""

from collections.abc import Mapping
from typing import Any

from sdjax.checks.arguments import shown
from sdjax.serve.bodies import Refused

SHARED: Mapping[str, Any] = {
    "prompt": "", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0.0,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": None, "sampler_index": None, "scheduler": None,
    "batch_size": 1, "n_iter": 1, "steps": 50, "cfg_scale": 7.0, "width": 512, "height": 512, "tiling": False,
    "eta": None, "s_min_uncond": None, "denoising_strength": None, "override_settings": {},
    "override_settings_restore_afterwards": True,
    "send_images": True, "save_images": False, "alwayson_scripts": {}, "do_not_save_samples": False,
    "do_not_save_grid": False, "script_name": None, "script_args": [], "force_task_id": None,
}  # fmt: skip
HIRES: Mapping[str, Any] = {
    "enable_hr": False, "hr_scale": 2.0, "hr_upscaler": None, "hr_second_pass_steps": 0, "hr_resize_x": 0,
    "hr_resize_y": 0, "hr_sampler_name": None, "hr_prompt": "", "hr_negative_prompt": "", "hr_cfg": None,
}  # fmt: skip
PICTURE: Mapping[str, Any] = {
    "init_images": None, "resize_mode": 0, "mask": None, "mask_blur": None, "mask_blur_x": 4, "mask_blur_y": 4,
    "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0,
    "include_init_images": False, "image_cfg_scale": None,
}  # fmt: skip
# Fields that sdjax knows and does not follow, and the values at which they have no effect
UNUSED: Mapping[str, tuple[Any, ...]] = {
    "restore_faces": (None, False), "s_churn": (None, 0), "s_tmax": (None, 0),
    "s_tmin": (None, 0), "s_noise": (None, 1), "refiner_checkpoint": (None, "", "None"), "refiner_switch_at": (None,
    0, 0.8),
    "disable_extra_networks": (None, False), "firstpass_image": (None,), "comments": (None, {}), "infotext": (None, ""),
    "firstphase_width": (None, 0), "firstphase_height": (None, 0), "hr_checkpoint_name": (None, "",
    "Use same checkpoint"),
    "hr_scheduler": (None, "Automatic", "Use same scheduler"), "initial_noise_multiplier": (None, 1),
    "latent_mask": (None,),
    "mask_round": (None, True),
}  # fmt: skip
TXT2IMG = {**SHARED, **HIRES}
IMG2IMG = {**SHARED, **PICTURE, "denoising_strength": 0.75}
OF_KIND: Mapping[str, Any] = {  # values of the kind of fields without a default
    "sampler_name": "", "sampler_index": "", "scheduler": "", "script_name": "", "hr_upscaler": "",
    "hr_sampler_name": "", "eta": 0.0, "s_min_uncond": 0.0, "denoising_strength": 0.0, "hr_cfg": 0.0, "mask_blur": 0.0,
}  # fmt: skip
KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a text"), (list, "a list"), (dict,
    "an object"),
)  # fmt: skip


def read(given: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns all fields of a request with the defaults of those not given, and warnings about fields without effect.

    Raises Refused for a value of another kind than the default's.
    """
    fields, warnings = dict(known), []
    for name, value in given.items():
        if name in UNUSED:
            if value not in UNUSED[name]:
                warnings.append(f"{name} is not followed")
        elif name not in known:
            warnings.append(f"{name[:80]!r} is unknown")
        elif value is not None:
            fields[name] = _checked(name, value, OF_KIND.get(name, known[name]))
    return fields, warnings


def _checked(name: str, value: Any, default: Any) -> Any:
    """Returns a value of the default's kind. A whole number may stand for a number, and the other way."""
    if isinstance(default, bool) and value in (0, 1):
        return bool(value)
    if type(default) in (int, float) and type(value) in (int, float):
        if isinstance(default, int) and int(value) != value:
            raise Refused(f"{name} is a whole number; got {shown(value)}", 422)
        return type(default)(value)
    if default is not None and not isinstance(value, type(default)):
        kind = next(words for kind, words in KINDS if isinstance(default, kind))
        raise Refused(f"{name} is {kind}; got {shown(value)}", 422)
    return value
