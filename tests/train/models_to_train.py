"""A model small enough to be trained in a test."""

import dataclasses
import functools

import jax

from sdjax.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.convert.bundle import bundle_of_params
from sdjax.convert.write.writing import write_bundle
from sdjax.nn import init_params

MODEL = ModelConfig(
    name="small",
    image_size=64,
    unet=UNetConfig(
        channels=(16, 16), num_res_blocks=1, heads=(2, 2), mid_heads=2, transformer_depth=(1, 1),
        self_attention=(True, True), context_dim=16, norm_groups=4,
    ),
    vae=VAEConfig(channels=(8, 8, 8, 8), num_res_blocks=1, scale_factor=0.8, norm_groups=4),
    text=TextConfig(
        vocab_size=600, width=16, layers=1, heads=2, max_length=12, bos_token_id=598, eos_token_id=599,
        pad_token_id=599,
    ),
    schedule=ScheduleConfig(zero_terminal_snr=True, prediction="v"),
)  # fmt: skip

# One level of each network: what compiles fastest
TINY = dataclasses.replace(
    MODEL,
    name="tiny",
    image_size=16,
    unet=UNetConfig(
        channels=(8,), num_res_blocks=1, heads=(0,), mid_heads=2, transformer_depth=(1,), self_attention=(True,),
        context_dim=16, norm_groups=4,
    ),
    vae=VAEConfig(channels=(8, 8), num_res_blocks=1, scale_factor=0.8, norm_groups=4),
)  # fmt: skip


@functools.cache
def small_params():
    """Returns MODEL's initial parameters."""
    return jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))


def write_model(config, params, tokenizer, folder):
    """Writes a model as a native folder."""
    write_bundle(bundle_of_params(config, params, tokenizer), folder, "native")
