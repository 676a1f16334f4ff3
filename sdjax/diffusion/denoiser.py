"""The denoiser: a network as samplers see it, with input scaling, prediction type, conditioning and guidance.

Samplers use x = x0 + sigma noise; the network was trained on x / sqrt(1 + sigma^2). Only this module knows both, and
only this module knows the prediction type.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sdjax.diffusion.conditioning import Conditioning, stack
from sdjax.diffusion.guidance import Call, Guidance
from sdjax.diffusion.network import Network
from sdjax.samplers.rows import Rows, per_image
from sdjax.samplers.rule import Denoised, Memory, Noisy
from sdjax.schedule import PREDICTIONS
from sdjax.typing import Params


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """The denoiser of a network with the prediction type `prediction`. Its memory is (guidance's, network's).

    One call of the network computes all branches of guidance, interleaved as in `conditioning.stack`. Between calls the
    network's memory has the axes [b, branches, ...].
    """

    network: Network
    params: Params
    prediction: str
    conditioning: Conditioning  # of all branches
    guidance: Guidance

    def init(self, x: Noisy) -> Memory:
        """Returns the memory before the first call."""
        return self.guidance.init(x), self._apart(self.network.init(self.params, self._repeated(x)))

    def __call__(self, x: Noisy, row: Rows, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns x0 and the memory. The row's timestep and sigma are [b], or one number for all images."""
        guided, kept = memory
        b = x.shape[0]
        sigma = per_image(row.sigma, x)
        t = self._repeated(jnp.broadcast_to(jnp.asarray(row.timestep, jnp.float32), (b,)))
        joined = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), kept)
        x_in = self._repeated(x / jnp.sqrt(1 + sigma**2))
        out, kept = self.network(self.params, x_in, t, self.conditioning, joined)
        outputs = self._apart(out.astype(jnp.float32))
        named = {name: outputs[:, i] for i, name in enumerate(self.guidance.branches)}
        call = Call(x, row, *PREDICTIONS[self.prediction].x0(sigma))
        denoised, guided = self.guidance.combine(named, call, guided)
        return denoised, (guided, self._apart(kept))

    def _repeated(self, x: jax.Array) -> jax.Array:
        """Returns one copy of each entry for each branch."""
        branches = len(self.guidance.branches)
        return x if branches == 1 else jnp.repeat(x, branches, axis=0)

    def _apart(self, tree: Memory) -> Memory:
        """Returns arrays [b * branches, ...] as [b, branches, ...]."""
        branches = len(self.guidance.branches)
        return jax.tree.map(lambda a: a.reshape(-1, branches, *a.shape[1:]), tree)


def make_denoiser(
    network: Network, params: Params, prediction: str, branches: Sequence[Conditioning], guidance: Guidance
) -> NetworkDenoiser:
    """Returns the denoiser of a network that predicts "epsilon", "v" or "x0".

    `branches` are the conditionings of `guidance.branches`, in that order.

    Raises ValueError for an unknown prediction, a wrong number of branches, and branches that cannot be stacked
    (`conditioning.stack`).
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}; the known ones are {', '.join(PREDICTIONS)}")
    if len(branches) != len(guidance.branches):
        raise ValueError(
            f"this guidance needs {len(guidance.branches)} conditionings, {', '.join(guidance.branches)}; "
            f"got {len(branches)}"
        )
    return NetworkDenoiser(network, params, prediction, stack(branches), guidance)
