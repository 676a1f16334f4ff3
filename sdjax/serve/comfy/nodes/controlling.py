"""Nodes of ControlNets and T2I-Adapters."""

import dataclasses

from sdjax.serve.comfy.definitions import file, link, node, real
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.values import Conditioning, Control, Images, Vae

NET, IMAGE = link("control_net", "CONTROL_NET"), link("image", "IMAGE")
STRENGTH = real("strength", 1.0, 0.0, 10.0)
SPAN = real("start_percent", 0.0, step=0.001), real("end_percent", 1.0, step=0.001)


@node(
    "ControlNetLoader",
    "loaders",
    (file("control_net_name", "control"),),
    ("CONTROL_NET",),
    title="Load ControlNet Model",
)
def load_controlnet(run: Run, control_net_name: str) -> tuple[str]:
    """Names a ControlNet, control-LoRA or T2I-Adapter. It is read for the model that it steers."""
    return (str(run.host.file("control", control_net_name)),)


@node(
    "DiffControlNetLoader", "loaders", (link("model", "MODEL"), file("control_net_name", "control")),
    ("CONTROL_NET",), title="Load ControlNet Model (diff)",
)  # fmt: skip
def load_controlnet_for(run: Run, model: object, control_net_name: str) -> tuple[str]:
    """Names a ControlNet. It is read for the model that it steers."""
    return load_controlnet(run, control_net_name)


@node(
    "ControlNetApply", "conditioning/controlnet", (link("conditioning", "CONDITIONING"), NET, IMAGE, STRENGTH),
    ("CONDITIONING",), title="Apply ControlNet (OLD)",
)  # fmt: skip
def apply(
    run: Run, conditioning: Conditioning, control_net: str, image: Images, strength: float
) -> tuple[Conditioning]:
    """Steers a conditioning by a hint; the negative one too, if it has no control of its own."""
    return (_add(conditioning, Control(control_net, image, strength, both=True)),)


@node(
    "ControlNetApplyAdvanced", "conditioning/controlnet",
    (link("positive", "CONDITIONING"), link("negative", "CONDITIONING"), NET, IMAGE, STRENGTH, *SPAN,
     link("vae", "VAE", optional=True)), ("CONDITIONING", "CONDITIONING"), ("positive", "negative"),
    title="Apply ControlNet",
)  # fmt: skip
def apply_to_both(
    run: Run, positive: Conditioning, negative: Conditioning, control_net: str, image: Images, strength: float,
    start_percent: float, end_percent: float, vae: Vae | None = None,
) -> tuple[Conditioning, Conditioning]:  # fmt: skip
    """Steers both conditionings by a hint in a part of the schedule."""
    control = Control(control_net, image, strength, start_percent, end_percent)
    return _add(positive, control), _add(negative, control)


def _add(conditioning: Conditioning, control: Control) -> Conditioning:
    if control.strength == 0:
        return conditioning
    return tuple(dataclasses.replace(entry, controls=(*entry.controls, control)) for entry in conditioning)
