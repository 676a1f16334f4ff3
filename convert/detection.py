"""Which released model a single file holds, told from a few of its tensors' shapes."""

from collections.abc import Mapping

from sdjax import configs
from sdjax.config import ModelConfig

from . import keys
from .errors import CheckpointError

UNET = keys.LDM_PREFIXES["unet"]

# Beginnings of names that mean something else than a Stable Diffusion v1 or v2 model, and what
_FOREIGN = (
    ("lora_", "LoRA weights, which belong to a model and are none"),
    ("control_model.", "a ControlNet"),
    ("string_to_param", "a textual inversion"),
    ("emb_params", "a textual inversion"),
    ("conditioner.embedders.", "Stable Diffusion XL, which sdjax does not run"),
    (UNET + "joint_blocks.", "Stable Diffusion 3, which sdjax does not run"),
    ("double_blocks.", "Flux, which sdjax does not run"),
    (UNET + "double_blocks.", "Flux, which sdjax does not run"),
    ("optimizer", "a training state"),
)


def detect(shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Returns the released model whose UNet these tensors are; of two that differ in prediction alone, epsilon's.

    Tensors may be missing or misshapen: what is looked at are width, inputs, context and labels, wherever they show.
    Raises CheckpointError, saying what it looks like, if it is none of them.
    """
    seen = _seen(shapes)
    if seen is None:
        for beginning, what in _FOREIGN:
            if any(name.startswith(beginning) for name in shapes):
                raise CheckpointError(f"it holds {what}")
        names = ", ".join(list(shapes)[:3])
        raise CheckpointError(
            f"it holds no Stable Diffusion UNet: none of its {len(shapes)} tensors ({names}, ...) begins with {UNET}"
        )
    for beginning, what in _FOREIGN[4:]:
        if any(name.startswith(beginning) for name in shapes):
            raise CheckpointError(f"it holds {what}")
    known = {name: _facts(configs.get(name)) for name in configs.NAMES}
    fitting = [name for name, facts in known.items() if all(seen.get(key) in (None, facts[key]) for key in facts)]
    if fitting:
        return configs.get(fitting[0])
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
    averaged = keys.ema_name(UNET)
    if not any(name.startswith((UNET, averaged)) for name in shapes):
        return None

    def shape(name: str, rank: int) -> tuple[int, ...] | None:
        found = shapes.get(UNET + name, shapes.get(keys.ema_name(UNET + name)))
        return found if found is not None and len(found) == rank else None

    def axis(name: str, rank: int, index: int, absent: int | None = None) -> int | None:
        found = shape(name, rank)
        return absent if found is None else found[index]

    tails = ("attn2.to_k.weight", "attn2to_kweight")
    contexts = {s[1] for name, s in shapes.items() if name.endswith(tails) and len(s) == 2}
    return {
        "width": axis("time_embed.0.weight", 2, 1),
        "inputs": axis("input_blocks.0.0.weight", 4, 1),
        "context": contexts.pop() if len(contexts) == 1 else None,
        "label embeddings": axis("label_emb.weight", 2, 0, 0),
        "label vector": axis("label_emb.0.0.weight", 2, 1, 0),
    }
