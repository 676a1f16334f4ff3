"""T-GATE: after some steps the prompt's attention hardly changes; it is kept, and guidance ends.

Source: Zhang et al. 2024, "Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models"
(arXiv 2404.02747), section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from sdjax.adapters.memory import Moment, Recall, level_shape
from sdjax.adapters.patch import Context, Interceptor, path_of
from sdjax.adapters.perturbed import transformers
from sdjax.adapters.spans import Run, set_fields
from sdjax.checks.arguments import number
from sdjax.config import UNetConfig


@dataclass(frozen=True)
class TGate:
    """The settings of T-GATE for one picture: the share `gate` of the steps after which the attention is kept.

    Up to then, everything is computed and guided. Afterwards there is no guidance, and each cross-attention gives the
    mean of what it gave with and without the prompt in the last step before. The paper's gate is 10 of 25 steps.

    Raises ValueError for values out of range.
    """

    gate: float = 0.4

    def __post_init__(self) -> None:
        set_fields(self, {"gate": number("gate", self.gate, 0, 1)})

    @property
    def patch(self) -> "KeptAttention":
        """The static part."""
        return KeptAttention()

    def numbers(self, run: Run) -> np.ndarray:
        """Returns the picture's own share."""
        return np.asarray(self.gate, np.float32)

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError for a network without cross-attention."""
        if not cross_attentions(config):
            raise ValueError("t_gate needs a network with cross-attention; this one has none")


def cross_attentions(config: UNetConfig) -> dict[str, int]:
    """Returns the level of each cross-attention of a UNet, by its path."""
    return {f"{path}/attn2": level for path, level, _ in transformers(config)}


@struct.dataclass
class Attentions:
    """The memory: the output of each cross-attention by its path, and whether it has been computed."""

    outputs: dict[str, Float[Array, "b n c"]]
    made: Bool[Array, "b"]


@dataclass(frozen=True)
class KeptAttention:
    """Keeps the outputs of cross-attentions. Its per-image arrays are shares of the steps (`TGate.numbers`)."""

    def begin(self, config: UNetConfig, shape: tuple[int, ...], dtype: DTypeLike) -> Attentions:
        """Returns the memory before the first call."""
        outputs = {}
        for path, level in cross_attentions(config).items():
            b, height, width = level_shape(config, shape, level)
            outputs[path] = jnp.zeros((b, height * width, config.channels[level]), dtype)
        return Attentions(outputs, jnp.zeros(shape[0], bool))

    def needed(self, own: Float[Array, "b"], moment: Moment, memory: Attentions) -> Bool[Array, "b"]:
        """Returns which entries compute their attention."""
        return (moment.step < jnp.floor(own * moment.num_steps)) | ~memory.made

    def intercept(self, shared: None, own: Recall) -> Interceptor:
        """Returns the interceptor of `.../attn2`."""
        memory: Attentions = own.memory
        if own.needed is not None:
            own.kept = Attentions(dict(memory.outputs), memory.made | own.needed)

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            path = path_of(context)
            if path not in memory.outputs:
                return method(*args, **kwargs)
            before = memory.outputs[path]
            if own.needed is None:
                return before.astype(args[0].dtype)
            out = method(*args, **kwargs)
            needed = own.needed[:, None, None]
            own.kept.outputs[path] = jnp.where(needed, averaged(out, own.moment.branches).astype(before.dtype), before)
            return jnp.where(needed, out, before.astype(out.dtype))

        return intercept


def averaged(x: Float[Array, "b n c"], branches: tuple[str, ...]) -> Float[Array, "b n c"]:
    """Returns the mean of each entry and that of its picture's unconditional branch, if the call has one."""
    if "unconditional" not in branches:
        return x
    apart = x.reshape(-1, len(branches), *x.shape[1:])
    at = branches.index("unconditional")
    return ((apart + apart[:, at : at + 1]) / 2).reshape(x.shape)
