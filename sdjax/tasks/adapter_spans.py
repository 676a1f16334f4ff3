"""The adapters of a batch as arrays for the network, with the timesteps at which they work."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sdjax.adapters.lora import ImageLoRA, for_images
from sdjax.prompts.tag_spans import WHOLE, Span
from sdjax.tasks.adapters import AdapterUse, unet_adapter
from sdjax.typing import Params


def spans_of(uses: Sequence[AdapterUse]) -> list[Span]:
    """Returns the different spans of a picture's adapters, in order."""
    return list(dict.fromkeys(use.span for use in uses))


def arrays(
    pictures: Sequence[Sequence[AdapterUse]], timesteps: Sequence[np.ndarray], base: Params
) -> tuple[ImageLoRA, ...]:
    """Returns the adapters of a batch: one entry, for a patch of its own, for each span that a picture has.

    `timesteps[i]` are those of all calls of picture i. `base` are the UNet's parameters. All pictures have as many
    spans.
    """
    spans = [spans_of(uses) for uses in pictures]
    out = []
    for of_slot in zip(*spans, strict=True):
        chosen = [[use for use in uses if use.span == span] for uses, span in zip(pictures, of_slot)]
        made = for_images([(unet_adapter(uses, base), 1.0) for uses in chosen])
        if any(span != WHOLE for span in of_slot):
            during = [timesteps_of(span, t) for span, t in zip(of_slot, timesteps)]
            made = dataclasses.replace(made, during=jnp.asarray(during, jnp.float32))
        out.append(made)
    return tuple(out)


def timesteps_of(span: Span, timesteps: np.ndarray) -> tuple[float, float]:
    """Returns (highest, lowest): calls at timesteps t with highest >= t > lowest lie in the span.

    Of n calls these are the ones from number round(start n) to before number round(end n). Timesteps fall.
    """
    first, last = (round(share * len(timesteps)) for share in span)
    highest = math.inf if first == 0 else -math.inf if first == len(timesteps) else float(timesteps[first])
    return highest, -math.inf if last == len(timesteps) else float(timesteps[last])
