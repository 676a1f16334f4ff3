"""The noise of a training step: unit normal, or with a share that is constant or coarse over the picture."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from sdjax.train.objectives import draws
from sdjax.typing import Key, Keys, Latent

if TYPE_CHECKING:
    from sdjax.train.objectives.diffusion import DiffusionObjective


def step_noise(objective: "DiffusionObjective", keys: Keys, x0: Latent) -> Latent:
    """Returns the noise that is added to latents [b, h, w, c] and predicted, in the objective's form.

    - `offset_noise`: plus k times a normal number for each channel. k is `offset_noise` plus `offset_adaptive` times
      the magnitude of the channel's mean in x0, and at least 0; with `offset_random` `offset_noise` is multiplied by a
      number from [0, 1), drawn for each example.
    - `multires_noise`: then `multires`.
    """
    noise = draws.normal(keys, draws.NOISE, x0.shape[1:])
    if objective.offset_noise:
        strength = jnp.full((x0.shape[0], 1, 1, 1), objective.offset_noise)
        if objective.offset_random:
            strength *= draws.uniform(keys, draws.OFFSET_STRENGTH, (1, 1, 1))
        if objective.offset_adaptive:
            means = jnp.abs(x0.mean((1, 2), keepdims=True))
            strength = jnp.maximum(strength + objective.offset_adaptive * means, 0)
        noise += strength * draws.normal(keys, draws.OFFSET, (1, 1, x0.shape[-1]))
    if objective.multires_noise:
        noise = multires(keys, noise, objective.multires_noise, objective.multires_discount)
    return noise


def step_perturbation(objective: "DiffusionObjective", keys: Keys, x0: Latent) -> Latent | None:
    """Returns the noise that is added to the network's input alone; None for none.

    It is `perturbation` times normal noise; with `perturbation_random` also times a number from [0, 1), drawn for each
    example.
    """
    if not objective.perturbation:
        return None
    strength: float | jax.Array = objective.perturbation
    if objective.perturbation_random:
        strength = strength * draws.uniform(keys, draws.PERTURBATION_STRENGTH, (1, 1, 1))
    return strength * draws.normal(keys, draws.PERTURBATION, x0.shape[1:])


def multires(keys: Keys, noise: Latent, levels: int, discount: float) -> Latent:
    """Returns noise [b, h, w, c] plus ever coarser normal noise, scaled to a standard deviation of 1 an example.

    Level i = 0, 1, ... is of size h / r^i, w / r^i (rounded down, at least 1), is enlarged bilinearly, and counts
    discount^i; r is drawn from [2, 4) at each level. The first level with a side of 1 is the last. Source: Whitaker
    2023 (wandb.ai/johnowhitaker/multires_noise), in the form of kohya-ss/sd-scripts (pyramid_noise_like), where the
    scale is that
    of the batch.
    """
    return jax.vmap(lambda key, one: _multires(key, one, levels, discount))(keys, noise)


def _multires(key: Key, noise: jax.Array, levels: int, discount: float) -> jax.Array:
    h, w, c = noise.shape
    going = jnp.bool_(True)
    for i in range(levels):
        level = jax.random.fold_in(jax.random.fold_in(key, draws.MULTIRES), i)
        ratio = 2 + 2 * jax.random.uniform(jax.random.fold_in(level, 0))
        rows, columns = (jnp.maximum(1, jnp.floor(side / ratio**i).astype(jnp.int32)) for side in (h, w))
        most = max(1, h // 2**i), max(1, w // 2**i)  # the ratio is at least 2
        coarse = jax.random.normal(jax.random.fold_in(level, 1), (*most, c))
        fine = jnp.einsum("ih,hwc,jw->ijc", _enlarging(h, rows, most[0]), coarse, _enlarging(w, columns, most[1]))
        noise = noise + jnp.where(going, discount**i, 0.0) * fine
        going &= (rows > 1) & (columns > 1)
    return noise / jnp.std(noise, ddof=1)


def _enlarging(size: int, used: jax.Array, held: int) -> jax.Array:
    """Returns the matrix [size, held] that enlarges the first `used` of `held` values bilinearly to `size`.

    Value i of the result lies at (i + 1/2) used / size - 1/2 among them; places before the first and after the last
    take these.
    """
    at = jnp.clip((jnp.arange(size) + 0.5) * used / size - 0.5, 0, used - 1)
    return jnp.maximum(1 - jnp.abs(at[:, None] - jnp.arange(held)), 0)
