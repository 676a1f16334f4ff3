"""Frozen, validated descriptions of a model. Modules are built from them, and config.json stores them.

A value that changes from level to level of a UNet or autoencoder is a tuple, finest level first. So no module needs to
know which release it belongs to. Source of the released values: the configs folders of CompVis/stable-diffusion and
Stability-AI/stablediffusion; `sdjax.configs` has them all.
"""

import dataclasses
import math
from typing import Literal

from sdjax.description import ConfigError, Description, check
from sdjax.few_step import Recipe, recipe_of

__all__ = [
    "ConfigError", "DepthConfig", "ModelConfig", "Prediction", "PriorConfig", "ScheduleConfig",
    "TextConfig", "UNetConfig", "VAEConfig", "VisionConfig",
]  # fmt: skip

Prediction = Literal["epsilon", "v", "x0"]
ScheduleKind = Literal["scaled_linear", "linear", "squaredcos"]


@dataclasses.dataclass(frozen=True)
class UNetConfig(Description):
    """The denoising network. The defaults are Stable Diffusion v1's.

    `heads[i]` is the number of attention heads of level i (0: no attention), `mid_heads` that of the middle block.
    If `self_attention[i]` is False, the first attention of level i's transformer blocks attends to the context too (x4
    upscaler). `num_classes` adds an embedding of integer labels to the time embedding (x4 upscaler: the noise level).
    `label_dim` adds an MLP of label vectors (unCLIP). `guidance_dim` is the width of a sinusoid of the guidance scale,
    which the time embedding takes too (latent consistency models). `mid_block` says whether there is a middle block:
    small distilled models have none. `linear_projection` says how released files store `proj_in` and
    `proj_out`: as matrices (v2) or as 1x1 convolutions (v1). The network is the same.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 0)
    mid_heads: int = 8
    transformer_depth: tuple[int, ...] = (1, 1, 1, 1)
    self_attention: tuple[bool, ...] = (True, True, True, True)
    mid_self_attention: bool = True
    context_dim: int = 768
    num_classes: int | None = None
    label_dim: int | None = None
    guidance_dim: int | None = None
    mid_block: bool = True
    norm_groups: int = 32
    linear_projection: bool = False

    def _validate(self) -> None:
        levels = len(self.channels)
        check(levels >= 1, "UNetConfig.channels needs at least one level")
        for name in ("heads", "transformer_depth", "self_attention"):
            count = len(getattr(self, name))
            check(count == levels, f"UNetConfig.{name} has {count} entries for {levels} levels of channels")
        for name in ("in_channels", "out_channels", "num_res_blocks", "mid_heads", "context_dim", "norm_groups"):
            check(getattr(self, name) >= 1, f"UNetConfig.{name} is at least 1, got {getattr(self, name)}")
        for channels, heads in zip(self.channels, self.heads):
            check(
                channels >= 1 and channels % self.norm_groups == 0,
                f"UNetConfig.channels are multiples of norm_groups = {self.norm_groups}, got {channels}",
            )
            check(
                heads >= 0 and (heads == 0 or channels % heads == 0),
                f"UNetConfig.heads divide the level's channels: {heads} does not divide {channels}",
            )
        check(
            self.channels[-1] % self.mid_heads == 0,
            f"UNetConfig.mid_heads = {self.mid_heads} does not divide {self.channels[-1]} channels",
        )
        check(
            self.guidance_dim is None or self.guidance_dim >= 4,
            f"UNetConfig.guidance_dim is at least 4, got {self.guidance_dim}",
        )
        check(self.channels[0] % 2 == 0, "UNetConfig.channels[0] is even: half of the time embedding is cosines")
        check(all(depth >= 1 for depth in self.transformer_depth), "UNetConfig.transformer_depth is at least 1")
        check(
            self.num_classes is None or self.label_dim is None,
            "UNetConfig has either num_classes (integer labels) or label_dim (label vectors), not both",
        )


@dataclasses.dataclass(frozen=True)
class VAEConfig(Description):
    """An autoencoder. The defaults are the f8 one of v1 and v2; a latent is `scale_factor` times its sample.

    `kind` is "kl" or "tiny". "tiny" is TAESD (`sdjax.nn.taesd`), which has one width, one residual block at the finest
    level, and no norms.
    """

    image_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    scale_factor: float = 0.18215
    norm_groups: int = 32
    kind: Literal["kl", "tiny"] = "kl"

    @property
    def factor(self) -> int:
        """Side of a picture divided by the side of its latent: 8 for f8, 4 for f4."""
        return 2 ** (len(self.channels) - 1)

    def _validate(self) -> None:
        check(len(self.channels) >= 1, "VAEConfig.channels needs at least one level")
        for channels in self.channels:
            check(
                channels >= 1 and channels % self.norm_groups == 0,
                f"VAEConfig.channels are multiples of norm_groups = {self.norm_groups}, got {channels}",
            )
        check(self.scale_factor > 0, f"VAEConfig.scale_factor is positive, got {self.scale_factor}")
        check(
            min(self.image_channels, self.latent_channels, self.num_res_blocks) >= 1,
            "VAEConfig.image_channels, latent_channels and num_res_blocks are at least 1",
        )
        check(
            self.kind == "kl" or len(set(self.channels)) == 1,
            f'VAEConfig.channels of the kind "tiny" are equal, got {self.channels}',
        )


@dataclasses.dataclass(frozen=True)
class TextConfig(Description):
    """A text encoder. The defaults are CLIP ViT-L/14's. `layers` counts only the layers used (23 of ViT-H/14's 24).

    `kind` is "clip" or "bert". "bert" is the LAION-400M model's transformer on BERT's tokens; its heads have the size
    `head_dim`. `mlp_width` is the width of CLIP's MLPs; None means four times `width`.
    """

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    max_length: int = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407
    kind: Literal["clip", "bert"] = "clip"
    head_dim: int | None = None
    mlp_width: int | None = None

    def _validate(self) -> None:
        bert = self.kind == "bert"
        check(
            (self.head_dim is not None and self.head_dim >= 1 and self.activation == "gelu")
            if bert
            else self.head_dim is None,
            'TextConfig.head_dim is given for the kind "bert" alone, whose activation is "gelu"',
        )
        check(
            self.heads >= 1 and (bert or self.width % self.heads == 0),
            f"TextConfig.heads = {self.heads} does not divide width = {self.width}",
        )
        check(
            self.mlp_width is None or (self.mlp_width >= 1 and not bert),
            f"TextConfig.mlp_width is positive, and CLIP's alone; got {self.mlp_width}",
        )
        check(self.layers >= 1 and self.max_length >= 2, "TextConfig needs a layer and room for two tokens")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            check(
                0 <= getattr(self, name) < self.vocab_size,
                f"TextConfig.{name} = {getattr(self, name)} is outside the vocabulary of {self.vocab_size}",
            )


@dataclasses.dataclass(frozen=True)
class VisionConfig(Description):
    """A CLIP image tower. The defaults are OpenAI's ViT-L/14's; `projection` is the width of its embeddings.

    `mlp_width` is the width of its MLPs; None means four times `width`.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    projection: int = 768
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    mlp_width: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of a picture: its patches and the class token."""
        return 1 + (self.image_size // self.patch_size) ** 2

    def _validate(self) -> None:
        check(
            self.patch_size >= 1 and self.image_size >= 1 and self.image_size % self.patch_size == 0,
            f"VisionConfig.image_size is a multiple of patch_size = {self.patch_size}, got {self.image_size}",
        )
        check(
            self.heads >= 1 and self.width % self.heads == 0,
            f"VisionConfig.heads = {self.heads} does not divide width = {self.width}",
        )
        check(min(self.width, self.layers, self.projection) >= 1, "VisionConfig needs a width, layers, a projection")
        check(
            self.mlp_width is None or self.mlp_width >= 1, f"VisionConfig.mlp_width is positive, got {self.mlp_width}"
        )


@dataclasses.dataclass(frozen=True)
class PriorConfig(Description):
    """A prior: it predicts an image embedding from a text. The defaults are Karlo's.

    `embedding` is the length of text and image embeddings, and the width of the `text` tower. `scheduler` chooses the
    timesteps ("unclip": from the last to 0; "ddpm": DDPM's "leading" ones). `clip` is the largest absolute value in a
    predicted embedding; None means no limit.
    """

    width: int = 2048
    heads: int = 32
    layers: int = 20
    embedding: int = 768
    scheduler: Literal["unclip", "ddpm"] = "unclip"
    clip: float | None = 5.0
    text: TextConfig = TextConfig()

    def _validate(self) -> None:
        check(
            self.heads >= 1 and self.width % self.heads == 0 and self.width % 2 == 0,
            f"PriorConfig.heads = {self.heads} does not divide width = {self.width}, or that is odd",
        )
        check(self.layers >= 1, "PriorConfig.layers is at least 1")
        check(
            self.embedding == self.text.width,
            f"PriorConfig.embedding = {self.embedding} is not the text encoder's width = {self.text.width}",
        )
        check(self.clip is None or self.clip > 0, f"PriorConfig.clip is positive, got {self.clip}")


@dataclasses.dataclass(frozen=True)
class DepthConfig(Description):
    """MiDaS's depth network, DPT-Hybrid. The defaults are those of Stable Diffusion 2 depth.

    A ResNet of three stages (`stage_widths`, `stage_depths`) turns every 16 x 16 pixels into one token. The tokens go
    through a vision transformer (`width`, `layers`, `heads`). The outputs of its blocks `taps` (counted from 0) go to
    the decoder, as maps of `neck_widths` channels. `image_size` is the side that it was trained at and has position
    embeddings for; pictures are resized to about this side. `norm_epsilon` is the transformer's: 1e-6, or 1e-12 in
    folders of the transformers library.
    """

    image_size: int = 384
    stem_width: int = 64
    stage_widths: tuple[int, ...] = (256, 512, 1024)
    stage_depths: tuple[int, ...] = (3, 4, 9)
    norm_groups: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    taps: tuple[int, ...] = (8, 11)
    neck_widths: tuple[int, ...] = (768, 768)
    features: int = 256
    norm_epsilon: float = 1e-6

    @property
    def grid(self) -> int:
        """Tokens along a side of a picture of `image_size`."""
        return self.image_size // 16

    def _validate(self) -> None:
        check(
            self.image_size >= 32 and self.image_size % 32 == 0,
            f"DepthConfig.image_size is a multiple of 32, got {self.image_size}",
        )
        for name, count in ("stage_widths", 3), ("stage_depths", 3), ("taps", 2), ("neck_widths", 2):
            values = getattr(self, name)
            check(len(values) == count, f"DepthConfig.{name} has {count} entries, got {len(values)}")
        for width in (self.stem_width, *self.stage_widths):
            quarter = width if width == self.stem_width else width // 4
            check(
                width >= 4 and width % 4 == 0 and quarter % self.norm_groups == 0,
                f"a quarter of DepthConfig.stage_widths, and stem_width, divide into norm_groups = {self.norm_groups}; "
                f"got {width}",
            )
        check(
            self.heads >= 1 and self.width % self.heads == 0,
            f"DepthConfig.heads = {self.heads} does not divide width = {self.width}",
        )
        check(
            0 <= self.taps[0] < self.taps[1] < self.layers,
            f"DepthConfig.taps rise and are below layers = {self.layers}, got {self.taps}",
        )
        check(
            min(*self.stage_depths, *self.neck_widths, self.features // 2) >= 1,
            "DepthConfig.stage_depths and neck_widths are at least 1, features at least 2",
        )
        check(self.norm_epsilon > 0, f"DepthConfig.norm_epsilon is positive, got {self.norm_epsilon}")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Description):
    """The noise schedule and what the network predicts. "scaled_linear" is linear in sqrt(beta), as ldm's "linear"."""

    kind: ScheduleKind = "scaled_linear"
    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False
    prediction: Literal["epsilon", "v", "x0"] = "epsilon"

    def _validate(self) -> None:
        check(self.num_timesteps >= 2, f"ScheduleConfig.num_timesteps is at least 2, got {self.num_timesteps}")
        check(0 < self.beta_start < 1 and 0 < self.beta_end < 1, "ScheduleConfig's betas lie between 0 and 1")
        check(
            not (self.zero_terminal_snr and self.prediction == "epsilon"),
            "zero terminal SNR needs v or x0 prediction: at the last timestep epsilon says nothing about the image",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Description):
    """A whole model. `image_size` is the side it was trained at, in pixels; `guidance_scale` is the release's default.

    `name` is the family of the release, as `sdjax.configs` spells it ("sd1", "sd2_base", ...); nothing depends on it.
    `depth` is the depth network of a depth model; without it, users must give depth maps. `vision` is the image tower
    of an unCLIP model; without it, users must give image embeddings. `noise_stats` is the length of the mean and
    standard deviation of the embeddings, which scale the noise on them; None means mean 0 and standard deviation 1.
    `few_step` is how a distilled model is sampled (`sdjax.few_step`); None if it is not distilled. `beside` is what the
    UNet's channels beside the noisy latent are, if their number does not say it (`sdjax.purpose.kind_of`): the latents
    of a foreground, or of a foreground and a background (IC-Light); or "given", whatever `Request.concat` holds.
    """

    name: str
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: TextConfig = TextConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    image_size: int = 512
    guidance_scale: float = 7.5
    depth: DepthConfig | None = None
    vision: VisionConfig | None = None
    noise_stats: int | None = None
    few_step: str | None = None
    beside: str | None = None

    @property
    def recipe(self) -> Recipe | None:
        """How a distilled model is sampled. One that takes the guidance scale as an input keeps its own scale."""
        if self.few_step is None:
            return None
        recipe = recipe_of(self.few_step)
        embedded = self.unet.guidance_dim is not None
        return dataclasses.replace(recipe, guidance_scale=self.guidance_scale) if embedded else recipe

    def _validate(self) -> None:
        check(
            self.unet.context_dim == self.text.width,
            f"the UNet's context_dim = {self.unet.context_dim} is not the text encoder's width = {self.text.width}",
        )
        check(
            self.unet.out_channels == self.vae.latent_channels,
            f"the UNet makes {self.unet.out_channels} channels, a latent has {self.vae.latent_channels}",
        )
        check(
            self.unet.in_channels >= self.vae.latent_channels,
            f"the UNet takes {self.unet.in_channels} channels, fewer than a latent's {self.vae.latent_channels}",
        )
        more, latent = self.unet.in_channels - self.vae.latent_channels, self.vae.latent_channels
        wanted = {"foreground": latent, "foreground+background": 2 * latent, "given": max(more, 1)}
        check(
            self.beside is None or self.beside in wanted,
            f"ModelConfig.beside is one of {', '.join(wanted)}; got {self.beside!r}",
        )
        check(
            self.beside is None or more == wanted[self.beside],
            f"ModelConfig.beside = {self.beside!r} does not fit a UNet with {more} channels beside the latent",
        )
        check(
            0 < len(self.name) <= 100 and self.name.isprintable(),
            f"ModelConfig.name is up to 100 printable characters, got {ascii(self.name[:100])}",
        )
        if self.few_step is not None:
            try:
                recipe_of(self.few_step)
            except ValueError as error:
                raise ConfigError(f"ModelConfig.few_step: {error}") from None
        check(math.isfinite(self.guidance_scale), f"ModelConfig.guidance_scale is finite, got {self.guidance_scale}")
        check(self.image_size >= 1, f"ModelConfig.image_size is positive, got {self.image_size}")
        embedding = None if self.vision is None else self.vision.projection
        for name, size in ("vision", embedding), ("noise_stats", self.noise_stats):
            label = self.unet.label_dim
            check(
                size is None or (label is not None and 1 <= 2 * size == label),
                f"ModelConfig.{name}: an image embedding is half as long as the UNet's label_dim = {label}, got {size}",
            )
