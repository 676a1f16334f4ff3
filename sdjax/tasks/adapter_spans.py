"""The adapters of a batch as arrays for the network, with the timesteps at which they work."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sdjax.adapters.delta import Strength
from sdjax.adapters.image_arrays import for_images, share_by_images
from sdjax.adapters.lora import ImageLoRA, SharedLoRA
from sdjax.prompts.tag_spans import WHOLE, Span
from sdjax.tasks.adapters import AdapterUse, is_linear, unet_adapter, unet_changes
from sdjax.typing import Params


def spans_of(uses: Sequence[AdapterUse]) -> list[Span]:
    """Returns the different spans of a picture's adapters, in order."""
    return list(dict.fromkeys(use.span for use in uses))


def arrays(
    pictures: Sequence[Sequence[AdapterUse]], timesteps: Sequence[np.ndarray], base: Params
) -> list[tuple[SharedLoRA | None, ImageLoRA]]:
    """Returns the adapters of a batch: one entry, for a patch of its own, for each span that a picture has.

    `timesteps[i]` are those of all calls of picture i. `base` are the UNet's parameters. All pictures have as many
    spans.
    """
    spans = [spans_of(uses) for uses in pictures]
    out = []
    for of_slot in zip(*spans, strict=True):
        chosen = [[use for use in uses if use.span == span] for uses, span in zip(pictures, of_slot)]
        shared, own = _arrays_of_slot(chosen, base)
        if any(span != WHOLE for span in of_slot):
            during = [timesteps_of(span, t) for span, t in zip(of_slot, timesteps)]
            own = dataclasses.replace(own, during=jnp.asarray(during, jnp.float32))
        out.append((shared, own))
    return out


def _arrays_of_slot(pictures: Sequence[Sequence[AdapterUse]], base: Params) -> tuple[SharedLoRA | None, ImageLoRA]:
    """Returns adapters of one span each: kept once if one picture has them all, else for each picture."""
    keyed = [{_key(use): use for use in uses} for uses in pictures]
    several = {key: use for own in keyed for key, use in own.items()}
    if len(several) > max(map(len, keyed)):
        return None, for_images([(unet_adapter(uses, base), 1.0) for uses in pictures])
    adapters = [unet_changes(use, key[1] or Strength(), base) for key, use in several.items()]
    weights = [
        [(1.0 if key[1] else own[key].strength) if key in own else 0.0 for key in several] for own in keyed
    ]  # fmt: skip
    return share_by_images(adapters, weights)


def _key(use: AdapterUse) -> tuple[int, Strength | None]:
    """Returns what two uses of one adapter have in common. Changes that are not linear are those of one strength."""
    return id(use.adapter), None if is_linear(use.adapter) else use.strength


def timesteps_of(span: Span, timesteps: np.ndarray) -> tuple[float, float]:
    """Returns (highest, lowest): calls at timesteps t with highest >= t > lowest lie in the span.

    Of n calls these are the ones from number round(start n) to before number round(end n). Timesteps fall; those of an
    inversion rise, and its last calls are the first ones of a span.
    """
    if len(timesteps) > 1 and timesteps[0] < timesteps[-1]:
        timesteps = timesteps[::-1]
    first, last = (round(share * len(timesteps)) for share in span)
    highest = math.inf if first == 0 else -math.inf if first == len(timesteps) else float(timesteps[first])
    return highest, -math.inf if last == len(timesteps) else float(timesteps[last])
