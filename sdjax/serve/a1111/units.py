"""The scripts that run with a request, `alwayson_scripts`: ControlNet's units, and ADetailer's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax.checks.arguments import shown
from sdjax.preprocessors import ANNOTATORS, PREPROCESSORS
from sdjax.serve.bodies import Refused, file_from_text, open_input
from sdjax.serve.engine.options import BUILT_IN_CONTROLS
from sdjax.serve.server import Server
from sdjax.spelling import meant

CONTROLNET, ADETAILER = ("controlnet", "controlnet++"), ("adetailer",)
MOST_UNITS = 8
MODES = ("balanced", "prompt", "control")
MODE_NAMES = {"balanced": 0, "my prompt is more important": 1, "controlnet is more important": 2}
RESIZES = ("stretch", "crop", "pad")
RESIZE_NAMES = {"just resize": 0, "crop and resize": 1, "scale to fit (inner fit)": 1, "inner fit (scale to fit)": 1,
                "resize and fill": 2, "envelope (outer fit)": 2, "outer fit (shrink to fit)": 2}  # fmt: skip
NO_MODULE = (None, "", "none", "None")
INPAINT = ("inpaint", "inpaint_only", "inpaint_global_harmonious", "inpaint_only+lama")
UNIT = (
    "enabled", "module", "model", "weight", "image", "input_image", "mask", "mask_image", "resize_mode",
    "guidance_start",
    "guidance_end", "control_mode", "pixel_perfect", "processor_res", "threshold_a", "threshold_b", "lowvram",
    "low_vram",
    "guidance", "save_detected_map", "hr_option", "batch_images", "is_ui", "input_mode", "loopback", "output_dir",
    "guessmode", "union_control_type", "ipadapter_input", "inpaint_crop_input_image", "effective_region_mask",
)  # fmt: skip
DETAILER = {
    "ad_prompt": "prompt", "ad_negative_prompt": "negative_prompt", "ad_confidence": "confidence",
    "ad_dilate_erode": "grow", "ad_mask_blur": "feather", "ad_denoising_strength": "strength",
    "ad_inpaint_only_masked_padding": "padding", "ad_steps": "num_steps", "ad_cfg_scale": "guidance_scale",
    "ad_mask_k_largest": "most", "ad_mask_k": "most",
}  # fmt: skip
NEEDS_USE = {"ad_steps": "ad_use_steps", "ad_cfg_scale": "ad_use_cfg_scale"}
IGNORED = ("ad_model", "ad_tab_enable", "ad_inpaint_only_masked", *NEEDS_USE.values())


@dataclasses.dataclass
class Found:
    """The controls and their inputs, the settings of details, and warnings."""

    controls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    inputs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    details: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def read(server: Server, scripts: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> Found:
    """Returns what the scripts of a request ask for. Raises Refused for wrong values."""
    found = Found()
    for name, script in scripts.items():
        args = script.get("args") if isinstance(script, Mapping) else None
        if not isinstance(args, list):
            raise Refused(f"alwayson_scripts is an object of scripts with a list of args; got {shown(script)}", 422)
        if name.lower() in CONTROLNET:
            for number, unit in enumerate(args[:MOST_UNITS]):
                _unit(server, unit, number, found, inputs)
        elif name.lower() in ADETAILER:
            for unit in args:
                _detailer(server, unit, found)
        else:
            found.warnings.append(f"the script {name[:80]!r} is unknown")
    return found


def _unit(server: Server, unit: Any, number: int, found: Found, inputs: Mapping[str, np.ndarray]) -> None:
    """Adds a unit of ControlNet."""
    if not isinstance(unit, Mapping):
        raise Refused(f"a ControlNet unit is an object; got {shown(unit)}", 422)
    if not unit.get("enabled", True) or unit.get("model") in NO_MODULE:
        return
    found.warnings += [f"ControlNet's {name[:80]!r} is unknown" for name in unit if name not in UNIT]
    network = str(unit["model"])
    if network not in BUILT_IN_CONTROLS:
        network = server.library.find("control", network).name
    control: dict[str, Any] = {
        "network": network,
        "weight": unit.get("weight", 1.0),
        "start": unit.get("guidance_start", 0.0),
        "end": unit.get("guidance_end", 1.0),
        "mode": MODES[_choice("control_mode", unit.get("control_mode", 0), MODE_NAMES)],
        "resize": RESIZES[_choice("resize_mode", unit.get("resize_mode", 1), RESIZE_NAMES)],
    }
    image: Any = unit.get("image", unit.get("input_image"))
    mask: Any = unit.get("mask", unit.get("mask_image"))
    if isinstance(image, Mapping):
        image, mask = image.get("image"), image.get("mask", mask)
    for what, text in ("hint", image), ("mask", mask):
        if text:
            name = f"{what}_{number}"
            found.inputs[name] = open_input(file_from_text(server, text, f"ControlNet's {what}"), name)
            control[what] = name
    if not image and not inputs:
        raise Refused("a ControlNet unit needs an image", 422)
    module = unit.get("module")
    if module in INPAINT:
        control["preprocess"] = "inpaint"
        if "mask" in control:
            control["hidden"] = control.pop("mask")
    elif module not in NO_MODULE:
        control |= preprocessing(server, str(module), unit)
    found.controls.append(control)


def preprocessing(server: Server, module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the preprocessor, its options and networks: thresholds a and b are its first two options.

    Raises Refused for an unknown preprocessor.
    """
    if not isinstance(module, str) or module not in PREPROCESSORS:
        raise Refused(
            f"there is no preprocessor {shown(module)}{meant(module, PREPROCESSORS)}; "
            f"there are {', '.join(PREPROCESSORS)}",
            422,
        )
    wanted = PREPROCESSORS[module]
    own: dict[str, Any] = {}
    for field, name in zip(("threshold_a", "threshold_b"), wanted.options):
        value = given.get(field)
        if value is not None and value != -1:
            own[name] = value
    networks = [annotator(server, kind) for kind in wanted.needs]
    return {"preprocess": module, "options": own, "annotators": networks}


def annotator(server: Server, kind: str) -> str:
    """Returns the library's file of a kind of annotator. Raises Refused without one."""
    what, published = ANNOTATORS[kind]
    for entry in server.library.entries("detector"):
        if entry.path.name in published:
            return entry.name
    raise Refused(f"this preprocessor needs {what}: put {published} into the folder annotators of the models", 422)


def _detailer(server: Server, unit: Any, found: Found) -> None:
    """Adds a unit of ADetailer."""
    if isinstance(unit, bool):  # its switches come first
        return
    if not isinstance(unit, Mapping):
        raise Refused(f"an ADetailer unit is an object; got {shown(unit)}", 422)
    model = unit.get("ad_model", "None")
    if model in NO_MODULE or unit.get("ad_tab_enable") is False:
        return
    settings: dict[str, Any] = {"detector": server.library.find("detector", str(model)).name, "grow": 4, "feather": 4}
    for name, value in unit.items():
        needed = NEEDS_USE.get(name)
        if name in DETAILER:
            unset = value in (None, "", 0) and name not in ("ad_denoising_strength", "ad_mask_blur")
            if not unset and (needed is None or unit.get(needed)):
                settings[DETAILER[name]] = value
        elif name not in IGNORED:
            found.warnings.append(f"ADetailer's {name[:80]!r} is not followed")
    found.details.append(settings)


def _choice(name: str, value: Any, known: Mapping[str, int]) -> int:
    """Returns the number of a choice that is given by its number or its name."""
    number = known.get(value.lower()) if isinstance(value, str) else value
    if type(number) is not int or not 0 <= number <= 2:
        raise Refused(f"{name} is one of {', '.join(known)}; got {shown(value)}", 422)
    return number
