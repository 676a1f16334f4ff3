"""ControlNets and T2I-Adapters as a patch of the UNet: each image with hints, weights, steps and masks of its own.

Source: Zhang et al. 2023 (arXiv 2302.05543), section 3.3; Mou et al. 2023 (arXiv 2302.08453), section 3.3. Weights of
the modes: lllyasviel/ControlNet, gradio scripts and cldm/cldm.py (guess mode); diffusers' ControlNetModel (guess_mode).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor, is_aside, patched, path_of, unpatched
from sdjax.config import UNetConfig
from sdjax.nn.controlnet import ControlNet, ControlNetConfig
from sdjax.nn.t2i import T2IAdapter, T2IConfig, halved
from sdjax.nn.unet import Residuals, add_residual
from sdjax.typing import Length, Map, Maps, NewMap, Params, Timestep

Numbers: TypeAlias = Array | np.ndarray
Config: TypeAlias = ControlNetConfig | T2IConfig
MODES = {  # what they mean in sd-webui-controlnet, and the guess modes of two tools
    "balanced": "the hint and the prompt count alike",
    "prompt": "the prompt is more important: deeper layers of the hint count more",
    "control": "the hint is more important: as prompt, and the branch without the prompt does not see the hint "
    "(guess mode of lllyasviel's scripts)",
    "guess": "guess mode of diffusers: weights from 0.1 to 1, and the branch without the prompt does not see the hint",
}


def scales(mode: str, outputs: int) -> np.ndarray:
    """Returns the weights of a ControlNet's outputs in a mode, the middle block's last."""
    if mode == "balanced":
        return np.ones(outputs, np.float32)
    if mode == "guess":
        return np.logspace(-1, 0, outputs).astype(np.float32)
    return np.float32(0.825) ** np.arange(outputs - 1, -1, -1, dtype=np.float32)


def seen_without_prompt(mode: str, config: Config) -> bool:
    """Returns whether branches of guidance without the prompt see the hint. Pooled nets are made for the other."""
    return mode in ("balanced", "prompt") and not (isinstance(config, ControlNetConfig) and config.pooled)


@struct.dataclass
class ImageControl:
    """One network's arrays for each image of a batch.

    `hint` [b, h f, w f, c]: in [0, 1] (-1 where an inpainting net must not look). `weights` [b, k]: of the outputs.
    `mask` [b, h, w, 1], in [0, 1], in the latent's size: how much of the outputs counts where. `during` [b, 2]: the
    network works at timesteps t with during[..., 0] >= t > during[..., 1].
    """

    hint: Float[Numbers, "b h2 w2 c"]
    weights: Float[Numbers, "b k"]
    mask: Float[Numbers, "b h w 1"]
    during: Float[Numbers, "b 2"]

    def at(self, t: Timestep) -> Float[Array, "b k"]:
        """Returns the weights at the timesteps t [b]."""
        on = (self.during[:, 0] >= t) & (t > self.during[:, 1])
        return jnp.where(on[:, None], self.weights, 0)

    def cut(self, rows: Array, columns: Array) -> "ImageControl":
        """Returns the arrays of the part with these rows and columns of the latent."""
        factor = self.hint.shape[1] // self.mask.shape[1]
        pixels = [(at[:, None] * factor + jnp.arange(factor)).ravel() for at in (rows, columns)]
        return dataclasses.replace(self, hint=_taken(self.hint, *pixels), mask=_taken(self.mask, rows, columns))


@dataclasses.dataclass(frozen=True)
class Features:
    """Adds one map each to the outputs of these layers. The per-image arrays are the maps, [b, h, w, c]."""

    layers: tuple[str, ...]

    def intercept(self, shared: None, own: Sequence[Float[Array, "b _ _ _"]]) -> Interceptor:
        """Returns the interceptor of the layers."""

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            out = method(*args, **kwargs)
            path = path_of(context)
            if path not in self.layers or is_aside():
                return out
            return add_residual(out, own[self.layers.index(path)])

        return intercept


@dataclasses.dataclass(frozen=True)
class Controls:
    """ControlNets and T2I-Adapters. They compute in `dtype`, and their outputs are added up.

    The shared arrays are the networks' parameters, a tuple. The per-image arrays are a tuple of `ImageControl`. A
    network that no image needs at a timestep is not computed. An image with weights 0 gets nothing added.

    ControlNets see the latent, the timestep and the context that the UNet gets, without its patches.
    """

    networks: tuple[Config, ...]
    dtype: str = "float32"

    def cut(self, own: Sequence[ImageControl], rows: Array, columns: Array) -> tuple[ImageControl, ...]:
        """Returns the per-image arrays of a window of the latent (`sdjax.diffusion.windows`)."""
        return tuple(one.cut(rows, columns) for one in own)

    def intercept(self, shared: Sequence[Params], own: Sequence[ImageControl]) -> Interceptor:
        """Returns the interceptor of the UNet itself."""

        def intercept(
            method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
        ) -> Any:
            if path_of(context) or is_aside():
                return method(*args, **kwargs)
            x, t, text, *_ = args
            sums: dict[bool, Maps] = {}  # of ControlNets' residuals, and of T2I-Adapters' features (True)
            with unpatched():
                for config, params, image in zip(self.networks, shared, own, strict=True):
                    made = self._outputs(config, params, image, x, t, text, kwargs.get("context_length"))
                    before = sums.get(isinstance(config, T2IConfig))
                    both = made if before is None else [a + b for a, b in zip(before, made, strict=True)]
                    sums[isinstance(config, T2IConfig)] = both
            if residuals := sums.get(False):
                kwargs = {**kwargs, "residuals": Residuals(residuals[:-1], residuals[-1])}
            if not (features := sums.get(True)):
                return method(*args, **kwargs)
            with patched([Features(last_layers(context.module.config))], None, [features]):
                return method(*args, **kwargs)

        return intercept

    def _outputs(
        self,
        config: Config,
        params: Params,
        image: ImageControl,
        x: Map,
        t: Timestep,
        text: Array,
        length: Length | None,
    ) -> Maps:
        """Returns a network's outputs times weights and mask; zeros, not computed, where no image needs them."""
        weights = image.at(t)
        at_level: Maps = [jnp.asarray(image.mask)]
        for _ in range(len(config.channels if isinstance(config, T2IConfig) else config.unet.channels) - 1):
            at_level.append(halved(at_level[-1], keeps_rest=True))

        def run() -> Maps:
            maps = _maps(config, jnp.dtype(self.dtype), params, image, x, t, text, length)
            if isinstance(config, ControlNetConfig):
                each = config.unet.num_res_blocks + 1  # skips of a level
                masks = [at_level[min(i // each, len(at_level) - 1)] for i in range(len(maps))]
            else:
                masks = [mask[:, : one.shape[1], : one.shape[2]] for one, mask in zip(maps, at_level)]
            return [_weighted(*pair, weights[:, i]) for i, pair in enumerate(zip(maps, masks, strict=True))]

        nothing = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(run))
        return jax.lax.cond(jnp.any(weights != 0), run, lambda: nothing)


def _maps(
    config: Config, dtype: jnp.dtype, params: Params, image: ImageControl, x: Map, t: Timestep, text: Array,
    length: Length | None,
) -> Maps:  # fmt: skip
    """Returns a network's outputs."""
    if isinstance(config, T2IConfig):
        return cast(Maps, T2IAdapter(config, dtype).apply({"params": params}, image.hint))
    latent = x[..., : config.unet.in_channels]  # not the mask or depth of models that take these too
    out = ControlNet(config, dtype).apply({"params": params}, latent, t, text, image.hint, context_length=length)
    residuals = cast(Residuals, out)
    return [*residuals.skips, residuals.middle]


def _weighted(
    output: Float[Array, "b _ _ c"], mask: Float[Array, "b _ _ 1"], weight: Float[Array, "b"]
) -> Float[Array, "b _ _ c"]:
    weight = weight[:, None, None, None]
    factors = (weight * mask).astype(output.dtype)
    return jnp.where(weight == 0, jnp.zeros((), output.dtype), factors * output)


def last_layers(unet: UNetConfig) -> tuple[str, ...]:
    """Returns the paths of the last layer of each level of the encoder, before its downsampler."""
    last = unet.num_res_blocks - 1
    return tuple(f"down_blocks_{i}/{'attentions' if heads else 'resnets'}_{last}" for i, heads in enumerate(unet.heads))


def _taken(x: Float[Numbers, "b h w c"], rows: Array, columns: Array) -> NewMap:
    return jnp.take(jnp.take(x, rows, axis=1), columns, axis=2)
