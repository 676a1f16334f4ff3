"""The x2 latent upscaler: diffusers' numbers, its folder, and what is refused. See latent_upscaler_peer.py."""

import json

import jax.numpy as jnp
import latent_upscaler_peer as peer
import numpy as np
import pytest
from jax import jit
from safetensors.numpy import save_file

import sdjax
from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.convert.checkpoint import open_checkpoint
from sdjax.convert.parts.networks import network_params
from sdjax.nn.latent_upscaler import LatentUpscaler, LatentUpscalerConfig, double, halve
from sdjax.nn.networks import NETWORKS
from sdjax.nn.parts import PARTS

import reference

GOLDEN = reference.golden("latent_upscaler")
CONFIG = LatentUpscalerConfig(channels=(32, 32, 64, 64), num_res_blocks=2, head_size=8, context_dim=32, pooled=32)


def tensors(part, shapes):
    """Returns `reference.fill` of every tensor of these shapes, a tree, by the names of diffusers' files."""
    from sdjax.convert.names.tables import network_table

    table = network_table(part, shapes, "", str, "$^")
    return {entry.name: reference.fill(entry.name, entry.shape) for entry in table.entries}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns the folder of a small latent upscaler, as diffusers writes it."""
    path = tmp_path_factory.mktemp("upscaler")
    files = {"unet": peer.UNET, "vae": {"_class_name": "AutoencoderKL", **peer.VAE}, "text_encoder": peer.TEXT}
    shapes = {"unet": NETWORKS["latent_upscaler"].shapes(CONFIG)}
    for name, content in files.items():
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(content))
    index = {"_class_name": "StableDiffusionLatentUpscalePipeline",
             **{name: ["x", "y"] for name in (*files, "scheduler", "tokenizer")}}  # fmt: skip
    (path / "model_index.json").write_text(json.dumps(index))
    from sdjax.convert.describe.diffusers_config import text_from_transformers
    from sdjax.convert.describe.vae_config import vae_from_diffusers

    shapes["vae"] = PARTS["vae"].shapes(vae_from_diffusers(files["vae"]))
    shapes["text_encoder"] = NETWORKS["pooled_text"].shapes(text_from_transformers(peer.TEXT, {}))
    for name, tree in shapes.items():
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors(name, tree), path / name / f"{stem}.safetensors")
    return path


def nhwc(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


@pytest.mark.slow  # compiles networks
def test_the_network_gives_diffusers_numbers():
    given = peer.inputs()
    names = tensors("latent_upscaler", NETWORKS["latent_upscaler"].shapes(CONFIG))
    assert set(names) == set(GOLDEN["unet_names"])
    params = network_params(open_checkpoint(names), NETWORKS["latent_upscaler"].shapes(CONFIG), "", "it")
    small = jnp.repeat(jnp.repeat(nhwc(given["small"]), 2, axis=1), 2, axis=2)
    run = jit(lambda params, *args: LatentUpscaler(CONFIG).apply({"params": params}, *args))
    got = run(params, nhwc(given["noise"]), small, jnp.array([0.7]), given["context"], given["condition"])
    want = np.moveaxis(GOLDEN["unet"], 1, -1)
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)  # measured 6e-7


@pytest.mark.slow
def test_a_run_gives_diffusers_latents(folder, monkeypatch):
    given, seen = peer.inputs(), []
    monkeypatch.setattr("sdjax.tasks.latent_upscale.draw_noise", lambda *args: nhwc(given["noise"]))

    def decode(vae, params, latent):
        seen.append(np.asarray(latent))
        return jnp.linspace(-1, 1, 128 * 128 * 3).reshape(1, 128, 128, 3)

    monkeypatch.setattr("sdjax.tasks.latent_upscale._decode", decode)
    small = np.moveaxis(given["small"], 1, -1)
    made = sdjax.latent_upscale(folder, small, "a cat", num_steps=peer.STEPS, guidance_scale=peer.SCALE)
    assert made.shape == (1, 128, 128, 3)
    want = np.moveaxis(GOLDEN["run"], 1, -1)
    assert np.linalg.norm(seen[0] - want) < 1e-5 * np.linalg.norm(want)  # measured 5e-7


def test_halving_and_doubling_keep_slopes():
    # Both filters are exact for linear maps away from the edges: positions are half a pixel apart
    x = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 2))
    assert np.allclose(halve(x)[0, 1:-1, :, 0], (2 * np.arange(4) + 0.5)[1:-1, None])
    assert np.allclose(double(x)[0, 2:-2, :, 0], (np.arange(16) / 2 - 0.25)[2:-2, None])


def test_wrong_folders_arguments_and_latents_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="it is no folder of the x2 latent upscaler"):
        convert.load_latent_upscaler({"x": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="it is the x2 latent upscaler; name the picture"):
        sdjax.load(folder)
    assert "the x2 latent upscaler" in convert.inspect(folder).kind
    loaded = convert.load_latent_upscaler(folder)
    for image, options, message in (
        (np.zeros((8, 10, 4), np.float32), {}, "multiples of 4"),
        (np.zeros((4, 8, 4), np.float32), {}, "multiples of 4"),
        (np.full((8, 8, 4), np.nan, np.float32), {}, "not finite"),
        (np.zeros((1032, 8, 3), np.uint8), {}, "at most 1024 x 1024"),
        (np.zeros((8, 8, 3), np.uint8), {"guidance_scale": 0.5}, "guidance_scale"),
        (np.zeros((8, 8, 3), np.uint8), {"sampler": "dpm_adaptive"}, "no adaptive samplers"),
    ):
        with pytest.raises(ValueError, match=message):
            sdjax.latent_upscale(loaded, image, "a cat", **options)
    with pytest.raises(ValueError, match="a latent upscaler is a folder"):
        sdjax.latent_upscale(3, np.zeros((8, 8, 3), np.uint8))
