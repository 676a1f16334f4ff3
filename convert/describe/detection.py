"""Finds the released model in a single file, from a few of its tensors' shapes."""

import dataclasses
from collections.abc import Mapping

from sdjax import configs
from sdjax.config import ModelConfig
from sdjax.convert.describe.other_kinds import kind_of_tensors
from sdjax.convert.describe.variants import fitted
from sdjax.convert.errors import CheckpointError
from sdjax.convert.names import naming

# What a released model of 4 channels with so many is: the end of its name, and `ModelConfig.beside`
_WIDER = {8: ("edit", None), 12: ("relight", "foreground+background")}
_TEXT = ("width", "context", "label embeddings", "label vector")
UNET = naming.LDM_PREFIXES["unet"]


def detect(shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Returns the released model with this UNet, with a smaller variant of it (`variants`), or with further inputs.

    If two models differ only in their prediction, it is the epsilon model.

    Tensors may be missing or misshapen: what is looked at are width, inputs, context and labels, wherever they show.
    Raises CheckpointError, saying what it looks like, if it is none of them.
    """
    seen = _seen(shapes)
    if kind := kind_of_tensors(shapes):
        raise CheckpointError(str(kind))
    if seen is None:
        names = ", ".join(list(shapes)[:3])
        raise CheckpointError(
            f"it holds no Stable Diffusion UNet: none of its {len(shapes)} tensors ({names}, ...) begins with {UNET}"
        )
    known = {name: _facts(configs.get(name)) for name in configs.NAMES}
    fitting = [name for name, facts in known.items() if all(seen.get(key) in (None, facts[key]) for key in facts)]
    if fitting:
        model = configs.get(fitting[0])
        return dataclasses.replace(model, unet=fitted(model.unet, shapes))
    inputs = seen["inputs"] or 0
    for name, facts in known.items():
        if inputs > facts["inputs"] == 4 and all(seen.get(k) in (None, facts[k]) for k in _TEXT):
            model = configs.get(name)
            end, beside = _WIDER.get(inputs, ("wide", None))
            unet = fitted(dataclasses.replace(model.unet, in_channels=inputs), shapes)
            return dataclasses.replace(model, name=f"{name}_{end}", unet=unet, beside=beside)
    described = ", ".join(f"{key} {value}" for key, value in seen.items() if value is not None)
    raise CheckpointError(
        f"its UNet is none of {', '.join(configs.NAMES)} ({described}); for a model of another make, give its "
        "description by config= (an ldm YAML file, say)"
    )


def _facts(config: ModelConfig) -> dict[str, int]:
    unet = config.unet
    return {
        "width": unet.channels[0],
        "inputs": unet.in_channels,
        "context": unet.context_dim,
        "label embeddings": unet.num_classes or 0,
        "label vector": unet.label_dim or 0,
    }


def _seen(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int | None] | None:
    """Returns the same facts as far as the tensors show them, from either set of weights; None if there is no UNet."""
    averaged, names = naming.ema_name(UNET), _LDM
    if not any(name.startswith((UNET, averaged)) for name in shapes):
        if not any(name.startswith("unet/") for name in shapes):
            return None
        names = _DIFFUSERS

    def shape(name: str, rank: int) -> tuple[int, ...] | None:
        name = names[name]
        found = shapes.get(name, shapes.get(naming.ema_name(name)))
        return found if found is not None and len(found) == rank else None

    def axis(name: str, rank: int, index: int, absent: int | None = None) -> int | None:
        found = shape(name, rank)
        return absent if found is None else found[index]

    tails = ("attn2.to_k.weight", "attn2to_kweight")
    contexts = {s[1] for name, s in shapes.items() if name.endswith(tails) and len(s) == 2}
    return {
        "width": axis("time", 2, 1),
        "inputs": axis("first", 4, 1),
        "context": contexts.pop() if len(contexts) == 1 else None,
        "label embeddings": axis("classes", 2, 0, 0),
        "label vector": axis("labels", 2, 1, 0),
    }


_LDM = {
    "time": f"{UNET}time_embed.0.weight", "first": f"{UNET}input_blocks.0.0.weight",
    "classes": f"{UNET}label_emb.weight", "labels": f"{UNET}label_emb.0.0.weight",
}  # fmt: skip
_DIFFUSERS = {
    "time": "unet/time_embedding.linear_1.weight", "first": "unet/conv_in.weight",
    "classes": "unet/class_embedding.weight", "labels": "unet/class_embedding.linear_1.weight",
}  # fmt: skip
