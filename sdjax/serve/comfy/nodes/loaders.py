"""Nodes that read models: checkpoints, autoencoders, text encoders, image towers."""

import dataclasses

import numpy as np

from sdjax.config import ModelConfig, UNetConfig, VAEConfig
from sdjax.convert.checkpoint import open_checkpoint
from sdjax.convert.parts.autoencoder import autoencoder
from sdjax.convert.parts.lone import read_whole
from sdjax.convert.parts.tower import load_vision
from sdjax.pipeline.model import Pipeline, cast
from sdjax.pipeline.placement import default_dtype
from sdjax.serve.comfy.definitions import choice, file, node
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.image_tower import ImageTower
from sdjax.serve.comfy.values import Clip, Model, Vae

WHOLE = ("MODEL", "CLIP", "VAE")
CONFIGS = (
    "anything_v3.yaml", "v1-inference.yaml", "v1-inference_clip_skip_2.yaml", "v1-inference_clip_skip_2_fp16.yaml",
    "v1-inference_fp16.yaml", "v1-inpainting-inference.yaml", "v2-inference-v.yaml", "v2-inference-v_fp32.yaml",
    "v2-inference.yaml", "v2-inference_fp32.yaml", "v2-inpainting-inference.yaml",
)  # fmt: skip


@node("CheckpointLoaderSimple", "loaders", (file("ckpt_name", "checkpoint"),), WHOLE, title="Load Checkpoint")
def load_checkpoint(run: Run, ckpt_name: str) -> tuple[Model, Clip, Vae]:
    """Reads a checkpoint: the UNet, the text encoder and the autoencoder."""
    pipe = run.host.checkpoint(ckpt_name)
    return Model(pipe), Clip(pipe), Vae(pipe)


@node(
    "CheckpointLoader", "advanced/loaders", (choice("config_name", CONFIGS), file("ckpt_name", "checkpoint")), WHOLE,
    title="Load Checkpoint With Config",
)  # fmt: skip
def load_checkpoint_with_config(run: Run, config_name: str, ckpt_name: str) -> tuple[Model, Clip, Vae]:
    """Reads a checkpoint. Its own tensors describe it; of the configuration only a clip skip has an effect."""
    model, clip, vae = load_checkpoint(run, ckpt_name)
    return model, dataclasses.replace(clip, layer=-2) if "clip_skip_2" in config_name else clip, vae


@node(
    "unCLIPCheckpointLoader", "loaders", (file("ckpt_name", "checkpoint"),), (*WHOLE, "CLIP_VISION"),
)  # fmt: skip
def load_unclip(run: Run, ckpt_name: str) -> tuple[Model, Clip, Vae, ImageTower]:
    """Reads an unCLIP checkpoint, which has an image tower too."""
    pipe = run.host.checkpoint(ckpt_name)
    if pipe.config.vision is None:
        raise ValueError(f"{ckpt_name} is no unCLIP model: it has no image tower")
    return Model(pipe), Clip(pipe), Vae(pipe), ImageTower(pipe.config.vision, pipe.params["vision"], pipe.dtype)


@node(
    "UNETLoader", "advanced/loaders",
    (file("unet_name", "checkpoint"), choice("weight_dtype", ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"))),
    ("MODEL",), title="Load Diffusion Model",
)  # fmt: skip
def load_unet(run: Run, unet_name: str, weight_dtype: str) -> tuple[Model]:
    """Reads the UNet of a checkpoint. It is computed in the type that the model was loaded with."""
    return (Model(run.host.checkpoint(unet_name)),)


@node(
    "CLIPLoader", "advanced/loaders",
    (file("clip_name", "checkpoint"), choice("type", ("stable_diffusion",)), choice("device", ("default", "cpu"))),
    ("CLIP",), title="Load CLIP",
)  # fmt: skip
def load_clip(run: Run, clip_name: str, type: str, device: str) -> tuple[Clip]:
    """Reads the text encoder of a checkpoint."""
    return (Clip(run.host.checkpoint(clip_name)),)


@node("VAELoader", "loaders", (file("vae_name", "vae"),), ("VAE",), title="Load VAE")
def load_vae(run: Run, vae_name: str) -> tuple[Vae]:
    """Reads an autoencoder, or TAESD."""
    return (read_vae(run, vae_name),)


def read_vae(run: Run, name: str) -> Vae:
    """Returns the autoencoder of a file: alone, of a whole model, or TAESD."""
    path = run.host.file("vae", name)
    checkpoint = open_checkpoint(path)
    own = checkpoint.native_config().vae if checkpoint.native else VAEConfig()
    config, leaves, _ = autoencoder(path, own, None)
    dtype = default_dtype()
    params = {"vae": cast(read_whole(leaves, np.dtype(np.float32), "vae"), dtype)}
    channels = config.latent_channels
    described = ModelConfig("autoencoder", UNetConfig(in_channels=channels, out_channels=channels), config)
    alone = Pipeline(described, params, None, dtype)  # type: ignore[arg-type]
    return Vae(run.host.prepared(alone))


@node("CLIPVisionLoader", "loaders", (file("clip_name", "clip_vision"),), ("CLIP_VISION",), title="Load CLIP Vision")
def load_image_tower(run: Run, clip_name: str) -> tuple[ImageTower]:
    """Reads an image tower."""
    config, params = load_vision(run.host.file("clip_vision", clip_name), dtype="float32")
    return (ImageTower(config, params, "float32"),)
