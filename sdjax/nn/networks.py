"""The table of all networks: those of a model (`sdjax.nn.parts`), and those that are loaded or trained separately."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from sdjax.config import PriorConfig, TextConfig, VisionConfig
from sdjax.nn.annotators.hed import HED, HEDConfig
from sdjax.nn.annotators.lineart import LineartConfig, LineartGenerator
from sdjax.nn.annotators.pose import PoseConfig, PoseNetwork
from sdjax.nn.controlnet import ControlNet, ControlNetConfig
from sdjax.nn.detector import STEP as CELL
from sdjax.nn.detector import Detector, DetectorConfig
from sdjax.nn.esrgan import CompactConfig, CompactNet, RRDBConfig, RRDBNet
from sdjax.nn.ip_adapter import IPAdapter, IPAdapterConfig
from sdjax.nn.latent_upscaler import LatentUpscaler, LatentUpscalerConfig, PooledText, condition
from sdjax.nn.metrics.aesthetic import AestheticConfig, AestheticPredictor
from sdjax.nn.metrics.clip_pair import ClipConfig, ClipPair
from sdjax.nn.metrics.dinov2 import DINOv2, DINOv2Config
from sdjax.nn.metrics.discriminator import SMALLEST, Discriminator
from sdjax.nn.metrics.inception import SMALLEST as SMALLEST_JUDGED
from sdjax.nn.metrics.inception import Inception, InceptionConfig
from sdjax.nn.metrics.lpips import LPIPS
from sdjax.nn.metrics.lpips import SMALLEST as SMALLEST_COMPARED
from sdjax.nn.motion import MotionConfig, MotionModules
from sdjax.nn.parts import PARTS, NetworkEntry, image
from sdjax.nn.prior import PriorTransformer, ProjectedTextEncoder
from sdjax.nn.safety import SafetyScorer
from sdjax.nn.t2i import FACTOR, T2IAdapter, T2IConfig


def _controlnet_inputs(config: ControlNetConfig) -> tuple[Array | None, ...]:
    x, t, context, *_ = PARTS["unet"].inputs(config.unet)
    assert x is not None
    side = x.shape[1] * config.factor
    return x, t, context, jnp.zeros([1, side, side, config.hint_channels])


def _t2i_inputs(config: T2IConfig) -> tuple[Array, ...]:
    side = FACTOR * 2 ** (len(config.channels) - 1)
    return (jnp.zeros([1, side, side, config.hint_channels]),)


def _ip_adapter_inputs(config: IPAdapterConfig) -> tuple[Array, ...]:
    return (jnp.zeros([1, 1, *([1] if config.takes_tokens else []), config.embedding]),)


def _motion_inputs(config: MotionConfig) -> tuple[Array, ...]:
    return tuple(jnp.zeros([1, 1, 1, 1, channels]) for _, channels, _ in config.places())


def _latent_upscaler_inputs(config: LatentUpscalerConfig) -> tuple[Array, ...]:
    side = 2 ** len(config.channels)
    x = jnp.zeros([1, side, side, config.latent_channels])
    return x, x, jnp.zeros([1]), jnp.zeros([1, 1, config.context_dim]), condition(jnp.zeros([1, config.pooled]))


def _clip_inputs(config: ClipConfig) -> tuple[Array | None, ...]:
    return *PARTS["vision"].inputs(config.vision), *PARTS["text"].inputs(config.text)


def _prior_inputs(config: PriorConfig) -> tuple[Array, ...]:
    x, text = jnp.zeros([1, config.embedding]), jnp.zeros([1, config.text.max_length, config.embedding])
    return x, jnp.zeros([1]), x, text, jnp.ones(text.shape[:2], bool)


NETWORKS: Mapping[str, NetworkEntry] = {
    **PARTS,
    "prior": NetworkEntry("prior", PriorConfig, PriorTransformer, _prior_inputs),
    "prior_text": NetworkEntry(
        "text encoder with a projection", TextConfig, ProjectedTextEncoder, PARTS["text"].inputs
    ),
    "safety": NetworkEntry("safety checker", VisionConfig, SafetyScorer, PARTS["vision"].inputs),
    "controlnet": NetworkEntry("ControlNet", ControlNetConfig, ControlNet, _controlnet_inputs),
    "t2i": NetworkEntry("T2I-Adapter", T2IConfig, T2IAdapter, _t2i_inputs),
    "detector": NetworkEntry("detector", DetectorConfig, Detector, lambda config: (image(CELL),)),
    "ip_adapter": NetworkEntry("IP-Adapter", IPAdapterConfig, IPAdapter, _ip_adapter_inputs),
    "latent_upscaler": NetworkEntry("latent upscaler", LatentUpscalerConfig, LatentUpscaler, _latent_upscaler_inputs),
    "pooled_text": NetworkEntry("text tower with a pool", TextConfig, PooledText, PARTS["text"].inputs),
    "rrdb": NetworkEntry("upscaler (RRDBNet)", RRDBConfig, RRDBNet, lambda config: (image(2 * config.unshuffle),)),
    "compact": NetworkEntry("upscaler (compact)", CompactConfig, CompactNet, lambda config: (image(2),)),
    "lpips": NetworkEntry("LPIPS", None, lambda config: LPIPS(), lambda config: (image(SMALLEST_COMPARED),) * 2),
    "motion": NetworkEntry("motion modules", MotionConfig, MotionModules, _motion_inputs),
    "discriminator": NetworkEntry(
        "discriminator", None, lambda config: Discriminator(), lambda config: (image(SMALLEST),)
    ),
    "hed": NetworkEntry("network of soft edges", HEDConfig, HED, lambda config: (image(16),)),
    "pose": NetworkEntry("network of poses", PoseConfig, PoseNetwork, lambda config: (image(8),)),
    "inception": NetworkEntry("Inception v3", InceptionConfig, Inception, lambda config: (image(SMALLEST_JUDGED),)),
    "dinov2": NetworkEntry("DINOv2", DINOv2Config, DINOv2, lambda config: (image(config.patch_size),)),
    "clip_pair": NetworkEntry("CLIP", ClipConfig, ClipPair, _clip_inputs),
    "aesthetic": NetworkEntry(
        "aesthetic predictor", AestheticConfig, AestheticPredictor, lambda config: (jnp.zeros([1, config.width]),)
    ),
    "lineart": NetworkEntry("network of line drawings", LineartConfig, LineartGenerator, lambda config: (image(8),)),
}
