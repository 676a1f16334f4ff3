"""Nodes that add LoRAs and hypernetworks to a model."""

import dataclasses

from sdjax.adapters.delta import Strength
from sdjax.serve.comfy.definitions import file, link, node, real
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.values import Clip, Model
from sdjax.tasks.adapters import AdapterUse, read_use
from sdjax.tasks.hypernetworks import HypernetworkUse, read_file

WEIGHT = (-100.0, 100.0)


@node(
    "LoraLoader", "loaders",
    (link("model", "MODEL"), link("clip", "CLIP"), file("lora_name", "lora"), real("strength_model", 1.0, *WEIGHT),
     real("strength_clip", 1.0, *WEIGHT)), ("MODEL", "CLIP"), title="Load LoRA",
)  # fmt: skip
def load_lora(
    run: Run, model: Model, clip: Clip, lora_name: str, strength_model: float, strength_clip: float
) -> tuple[Model, Clip]:
    """Adds a file of the LoRA family to the UNet and to the text encoder, each with its strength."""
    if strength_model == 0 and strength_clip == 0:
        return model, clip
    return _with(run, model, lora_name, strength_model), _on_text(run, clip, lora_name, strength_clip)


@node(
    "LoraLoaderModelOnly", "loaders", (link("model", "MODEL"), file("lora_name", "lora"),
    real("strength_model", 1.0, *WEIGHT)), ("MODEL",),
)  # fmt: skip
def load_lora_on_model(run: Run, model: Model, lora_name: str, strength_model: float) -> tuple[Model]:
    """Adds a file of the LoRA family to the UNet."""
    return (_with(run, model, lora_name, strength_model) if strength_model else model,)


def _with(run: Run, model: Model, name: str, weight: float) -> Model:
    use = _use(run, model, name, Strength(weight, 0.0))
    return dataclasses.replace(model, adapters=(*model.adapters, use))


def _on_text(run: Run, clip: Clip, name: str, weight: float) -> Clip:
    return dataclasses.replace(clip, adapters=(*clip.adapters, _use(run, clip, name, Strength(0.0, weight))))


def _use(run: Run, of: Model | Clip, name: str, strength: Strength) -> AdapterUse:
    read = read_use(str(run.host.file("lora", name)), of.pipe.config)
    return dataclasses.replace(read, strength=strength)


@node(
    "HypernetworkLoader", "loaders", (link("model", "MODEL"), file("hypernetwork_name", "hypernetwork"),
    real("strength", 1.0, -10.0, 10.0)), ("MODEL",),
)  # fmt: skip
def load_hypernetwork(run: Run, model: Model, hypernetwork_name: str, strength: float) -> tuple[Model]:
    """Adds a hypernetwork to the UNet's attentions."""
    loaded = read_file(str(run.host.file("hypernetwork", hypernetwork_name)), model.pipe.config)
    use = HypernetworkUse(loaded.network, strength, loaded.name)
    return (dataclasses.replace(model, hypernetworks=(*model.hypernetworks, use)),)
