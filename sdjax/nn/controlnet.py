"""ControlNet: a copy of a UNet's encoder that also sees a hint, such as edges, and steers the UNet by residuals.

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv 2302.05543), section 3;
lllyasviel/ControlNet, cldm/cldm.py:ControlNet. Names are those of diffusers' ControlNetModel.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import UNetConfig
from sdjax.description import Description, check
from sdjax.nn.layers.conv import POINT, Conv
from sdjax.nn.unet import Residuals, encoder, time_embedding
from sdjax.typing import Context, Latent, Length, Map, NewMap, Params, Timestep

HINT_WIDTHS = (16, 32, 96, 256)  # of a hint encoder for latents of an eighth of the picture's side
COPIED = ("conv_in", "time_embedding", "down_blocks", "mid_block")  # beginnings of the layers that a UNet has too


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(Description):
    """A ControlNet. `unet` is the UNet whose encoder it copies; its `in_channels` are the ControlNet's.

    `hint_channels`: of the hint (3: RGB; 6: two pictures). `hint_widths`: of the hint encoder, which halves the hint's
    size once less than they are. `pooled`: every residual is averaged over its height and width (the net "shuffle",
    which sees what is in the hint but not where). `blue_first`: the hint's channels are in the order BGR.
    """

    unet: UNetConfig
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = HINT_WIDTHS
    pooled: bool = False
    blue_first: bool = False

    @property
    def factor(self) -> int:
        """Side of a hint divided by the side of a latent."""
        return 2 ** (len(self.hint_widths) - 1)

    @property
    def outputs(self) -> int:
        """The number of residuals: one for each skip of the UNet, and one for the middle block."""
        return len(self.unet.channels) * (self.unet.num_res_blocks + 1) + 1

    def _validate(self) -> None:
        check(len(self.hint_widths) >= 1, "ControlNetConfig.hint_widths needs at least one width")
        check(
            min(self.hint_channels, *self.hint_widths) >= 1,
            "ControlNetConfig.hint_channels and hint_widths are at least 1",
        )


class HintEncoder(nn.Module):
    """Convolutions that bring a hint to the size of the latent; SiLU after each but the last, which starts as zero."""

    features: int
    widths: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hint: Map) -> NewMap:
        y = jax.nn.silu(Conv(self.widths[0], dtype=self.dtype, name="conv_in")(hint))
        for i, (width, wider) in enumerate(zip(self.widths, self.widths[1:])):
            y = jax.nn.silu(Conv(width, dtype=self.dtype, name=f"blocks_{2 * i}")(y))
            y = jax.nn.silu(Conv(wider, strides=(2, 2), dtype=self.dtype, name=f"blocks_{2 * i + 1}")(y))
        zeros = nn.initializers.zeros
        return Conv(self.features, kernel_init=zeros, dtype=self.dtype, name="conv_out")(y)


class ControlNet(nn.Module):
    """Returns the residuals for a UNet with the same input, timesteps and context, in `dtype`.

    `x` [b, h, w, in_channels]: the noisy latent scaled to unit variance. `hint` [b, factor h, factor w, hint_channels]:
    a picture in [0, 1], for nets of inpainting -1 where pixels are hidden. New nets give zeros: their last layers start
    as zero. Pooled residuals have height and width 1. `remat` is a name of `sdjax.nn.unet.REMATS`.

    Raises ValueError if x or hint have another number of channels, or sizes that do not fit each other.
    """

    config: ControlNetConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Latent, t: Timestep, context: Context, hint: Float[Array, "b h2 w2 c2"], *,
        context_length: Length | None = None,
    ) -> Residuals:  # fmt: skip
        c, unet = self.config, self.config.unet
        if x.shape[-1] != unet.in_channels or hint.shape[-1] != c.hint_channels:
            raise ValueError(
                f"this ControlNet takes latents of {unet.in_channels} channels and hints of {c.hint_channels}; "
                f"got {x.shape} and {hint.shape}"
            )
        if hint.shape[1:3] != (x.shape[1] * c.factor, x.shape[2] * c.factor):
            raise ValueError(f"the hint's sides are {c.factor} times the latent's; got {hint.shape} for {x.shape}")
        if c.blue_first:
            hint = hint[..., ::-1]
        hint = HintEncoder(unet.channels[0], c.hint_widths, self.dtype, name="controlnet_cond_embedding")(hint)
        time = time_embedding(unet, t, self.dtype)
        x = Conv(unet.channels[0], dtype=self.dtype, name="conv_in")(x) + hint
        context = context.astype(self.dtype)
        x, skips = encoder(unet, x, time, context, context_length, dtype=self.dtype, remat=self.remat)
        residuals = [self._last(f"controlnet_down_blocks_{i}", skip) for i, skip in enumerate(skips)]
        return Residuals(residuals, self._last("controlnet_mid_block", x))

    def _last(self, name: str, x: Map) -> NewMap:
        zeros = nn.initializers.zeros
        y = Conv(x.shape[-1], (1, 1), padding=POINT, kernel_init=zeros, dtype=self.dtype, name=name)(x)
        return y.mean((1, 2), keepdims=True) if self.config.pooled else y


def of_unet(unet: UNetConfig, *, factor: int = 8, hint_channels: int = 3, pooled: bool = False) -> ControlNetConfig:
    """Returns the description of a ControlNet for a UNet. `factor`: side of a picture divided by the latent's.

    Nets see the latent alone, not the extra channels of an inpainting or depth model.
    """
    plain = dataclasses.replace(
        unet, in_channels=unet.out_channels, num_classes=None, label_dim=None, guidance_dim=None
    )
    return ControlNetConfig(plain, hint_channels, HINT_WIDTHS[: factor.bit_length()], pooled)


def copy_encoder(config: ControlNetConfig, new: Params, unet: Params) -> Params:
    """Returns the parameters of a new ControlNet with the UNet's encoder copied into it.

    `new` are freshly initialised ones (`sdjax.nn.networks.NETWORKS["controlnet"].init`), whose last layers are zero. So
    the UNet is not changed at first. Source: ControlNet's tool_add_control.py.
    """
    copied = {name: unet[name] if name.startswith(COPIED) else layer for name, layer in new.items()}
    first = unet["conv_in"]
    return {**copied, "conv_in": {**first, "kernel": first["kernel"][:, :, : config.unet.in_channels]}}
