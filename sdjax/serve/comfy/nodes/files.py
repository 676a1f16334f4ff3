"""Nodes that write models and latents as files, and read latents."""

import dataclasses
from pathlib import Path

from sdjax.pictures.image import save_file
from sdjax.pipeline.model import Pipeline
from sdjax.serve.comfy import latent_file
from sdjax.serve.comfy.definitions import Shown, file, link, node, text
from sdjax.serve.comfy.host import Run
from sdjax.serve.comfy.kept_files import CHECKPOINTS, LATENT, LATENTS
from sdjax.serve.comfy.nodes.merging import merged
from sdjax.serve.comfy.values import Clip, Latent, Model, Vae


@node(
    "SaveLatent", "_for_testing", (link("samples", "LATENT"), text("filename_prefix", "latents/ComfyUI")),
    title="Save Latent",
)  # fmt: skip
def save_latent(run: Run, samples: Latent, filename_prefix: str) -> Shown:
    """Writes latents with the graph that made them, as ComfyUI does; a noise mask is not written."""
    data = latent_file.encode(samples.samples, run.texts())
    return Shown({"latents": [run.host.keep(LATENTS, filename_prefix, LATENT, lambda path: save_file(path, data))]})


@node("LoadLatent", "_for_testing", (file("latent", "latent"),), ("LATENT",), title="Load Latent")
def load_latent(run: Run, latent: str) -> tuple[Latent]:
    """Reads latents that SaveLatent wrote, here or in ComfyUI."""
    return (Latent(latent_file.decode(run.host.latent(latent))),)


@node(
    "CheckpointSave", "advanced/model_merging",
    (link("model", "MODEL"), link("clip", "CLIP"), link("vae", "VAE"), text("filename_prefix", "checkpoints/ComfyUI")),
    title="Save Checkpoint",
)  # fmt: skip
def save_checkpoint(run: Run, model: Model, clip: Clip, vae: Vae, filename_prefix: str) -> Shown:
    """Writes the three parts as one .safetensors file, with LoRAs merged."""
    pipe = whole(model, clip, vae)
    kept = run.host.keep(
        CHECKPOINTS, filename_prefix, ".safetensors", lambda path: run.host.call(lambda: _write(pipe, path))
    )
    return Shown({"text": [f"{kept['subfolder']}/{kept['filename']}"]})


def whole(model: Model, clip: Clip, vae: Vae) -> Pipeline:
    """Returns one model of three parts, with adapters merged.

    Raises ValueError for parts that do not fit, and for what nodes added to the model and weights cannot hold.
    """
    added = {
        "hypernetworks": model.hypernetworks, "rules of guidance": model.rules, "patches": model.patches,
        "a schedule that ends without signal": model.zero_terminal_snr,
    }  # fmt: skip
    if there := [name for name, value in added.items() if value]:
        raise ValueError(
            f"a checkpoint holds weights alone, and nodes added {', '.join(there)}: link the model from before them"
        )
    config = dataclasses.replace(
        model.pipe.config, text=clip.pipe.config.text, vae=vae.of.config.vae
    )  # raises ValueError if the widths do not fit
    params = {**model.pipe.params, "unet": merged(model), "text": merged(clip), "vae": vae.of.params["vae"]}
    bundle = model.pipe.bundle if clip.pipe.bundle is model.pipe.bundle else None  # what came with one file
    return Pipeline(config, params, clip.pipe.tokenizer, model.pipe.dtype, bundle=bundle)


def _write(pipe: Pipeline, path: Path) -> None:
    pipe.save(path, to="ldm")
