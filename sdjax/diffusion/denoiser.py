"""The denoiser: a network seen as (x, row) -> x0, with input scaling, prediction type, conditioning and guidance.

Samplers live in x = x0 + sigma noise; the network was trained on x / sqrt(1 + sigma^2). This is the only place that
knows both, and the only one that knows what the network predicts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sdjax.checks.arguments import number
from sdjax.checks.notes import note
from sdjax.schedule import PREDICTIONS
from sdjax.typing import Context, Latent, Timestep

Apply = Callable[[Latent, Timestep, Context | None, jax.Array | None], Latent]  # (x, t, context, label) -> output
Denoiser = Callable[[Latent, Any], Latent]  # (x, row) -> x0


@struct.dataclass
class Conditioning:
    """What the network is told besides x and t, batch first.

    `context`: encoded text. `concat`: channels put beside the latent (mask, depth, low-resolution image), [b, h, w, c].
    `label`: int [b] (the upscaler's noise level) or float [b, d] (unCLIP's image embedding).
    """

    context: Context | None
    concat: Latent | None = None
    label: jax.Array | None = None


def make_denoiser(
    apply: Apply,
    prediction: str,
    conditioning: Conditioning,
    *,
    unconditional: Conditioning | None = None,
    guidance_scale: jax.Array | float = 1.0,
    guidance_rescale: jax.Array | float | None = None,
) -> Denoiser:
    """Returns (x, row) -> x0 of a network that predicts `prediction`: "epsilon", "v" or "x0".

    Without `unconditional` there is no guidance and the network runs once a call. With it one call holds both passes as
    interleaved pairs, unconditional first: on a batch spread over devices a concatenation would move data between them.
    `guidance_scale` and `guidance_rescale` are numbers, or one a picture [b]. `row` gives `timestep` and `sigma`, each
    a number or one a picture.

    Raises ValueError for an unknown prediction, and where only one of the two conditionings has an input.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}; the known ones are {', '.join(PREDICTIONS)}")
    told = conditioning if unconditional is None else interleave(unconditional, conditioning)

    def network(x: Latent, timestep: jax.Array) -> Latent:
        if told.concat is not None:
            x = jnp.concatenate([x, told.concat.astype(x.dtype)], axis=-1)
        t = jnp.broadcast_to(timestep, x.shape[:1])
        return apply(x, t, told.context, told.label).astype(jnp.float32)

    def denoise(x: Latent, row: Any) -> Latent:
        sigma = per_image(row.sigma, x)
        x_in = x / jnp.sqrt(1 + sigma**2)
        if unconditional is None:
            out = network(x_in, row.timestep)
        else:
            t = jnp.repeat(jnp.broadcast_to(row.timestep, x.shape[:1]), 2)
            pairs = network(jnp.repeat(x_in, 2, axis=0), t)
            pairs = pairs.reshape(x.shape[0], 2, *pairs.shape[1:])
            out = guide(pairs[:, 0], pairs[:, 1], guidance_scale, guidance_rescale)
        of_x, of_out = PREDICTIONS[prediction].x0(sigma)
        return of_x * x + of_out * out

    return denoise


def interleave(unconditional: Conditioning, conditioning: Conditioning) -> Conditioning:
    """Returns the conditioning of pairs: entry 2 i is unconditional's entry i, entry 2 i + 1 conditioning's.

    Raises ValueError where only one of the two has an input.
    """
    both = {}
    for name in conditioning.__dataclass_fields__:
        first, second = getattr(unconditional, name), getattr(conditioning, name)
        if (first is None) != (second is None):
            raise ValueError(f"guidance needs {name} in both conditionings or in neither; only one of them has it")
        if first is not None:
            if first.shape != second.shape:
                raise ValueError(
                    f"guidance needs {name} of one shape in both conditionings; "
                    f"got {first.shape} (unconditional) and {second.shape}"
                )
            first = jnp.stack([first, second], axis=1).reshape(2 * second.shape[0], *second.shape[1:])
        both[name] = first
    return Conditioning(**both)


def guide(
    unconditional: Latent, conditional: Latent, scale: jax.Array | float, rescale: jax.Array | float | None = None
) -> Latent:
    """Returns the guided output, unconditional + scale (conditional - unconditional).

    Outputs of any prediction type may be combined, as x0 is linear in them. With `rescale` (0 to 1) that share of the
    result gets the conditional output's standard deviation, per picture: large scales then do not burn out.

    Source: Ho & Salimans 2022 (arXiv 2207.12598); for `rescale` Lin et al. 2023 (arXiv 2305.08891), eq. 15 and 16.
    """
    out = unconditional + per_image(scale, conditional) * (conditional - unconditional)
    if rescale is not None:
        axes = tuple(range(1, out.ndim))
        # ddof 1: torch's std, in which the rescaling was published
        ratio = jnp.std(conditional, axes, ddof=1, keepdims=True) / jnp.std(out, axes, ddof=1, keepdims=True)
        out = out * (1 + per_image(rescale, out) * (ratio - 1))
    return out


def check_guidance_scale(scale: float) -> float:
    """Returns the scale as Python's float. Raises ValueError unless it is a finite number."""
    return number("guidance_scale", scale)


def check_negatives(negatives: Sequence[str], scale: float) -> None:
    """Notes negative prompts where there is no guidance away from them."""
    if scale == 1 and any(negatives):
        note("negative_prompt has no effect at guidance_scale 1, which is no guidance: leave it out")


def per_image(value: jax.Array | float, x: Latent) -> jax.Array:
    """Returns a number unchanged, and one a picture [b] as [b, 1, 1, 1], to multiply x."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(-1, *(1,) * (x.ndim - 1)) if value.ndim else value
