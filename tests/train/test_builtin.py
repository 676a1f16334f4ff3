"""The built-in model's training as a whole, with real networks, on few pictures."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import MODEL, small_params

import sdjax
from sdjax.config import ModelConfig
from sdjax.configs import builtin as settings
from sdjax.loading import builtin
from sdjax.nn import param_counts
from sdjax.train.builtin import emoji, latents, subjects
from sdjax.train.builtin.export import export
from sdjax.train.builtin.training import BuiltinTraining
from sdjax.train.objectives.diffusion import Denoising, DiffusionObjective, diffusion_loss
from sdjax.train.optim import OptimConfig, make_optimizer
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step


def test_the_models_description_is_valid_and_small_enough():
    model = ModelConfig.from_dict(settings.get_config().model.to_dict())
    assert model.image_size >= 64
    # two bytes a parameter, and 150 KB for names, vocabulary and description
    assert 2 * sum(param_counts(model).values()) + 150_000 <= 16_000_000


def test_every_caption_fits_into_the_text_encoder():
    names = sorted(subjects.names(), key=len)[-2:]
    config = settings.get_config()
    tokenizer = BuiltinTraining(config, pathlib.Path("unused")).learn_vocabulary()
    longest = f"a {names[0]} above a {names[1]} on a turquoise background"
    assert tokenizer.cut(longest, length=config.model.text.max_length) == ""
    captions = [scene.caption for scene in emoji.scenes(7, 0, 500)]
    assert max(len(tokenizer.encode(caption)) for caption in captions) <= config.model.text.max_length - 2


def test_latents_are_kept_and_drawn_anew_for_every_batch(tmp_path, monkeypatch):
    class Autoencoder:
        """Takes every eighth pixel for the moments."""

        def __init__(self, config):
            pass

        def apply(self, variables, image, method):
            return jnp.tile(image[:, ::8, ::8], 3)[..., :8]

    monkeypatch.setattr(latents, "AutoencoderKL", Autoencoder)
    calls = []

    def pictures(k, n):
        calls.append((k, n))
        rng = np.random.default_rng(k)
        return rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8), np.full((n, 12), k)

    def pool():
        return latents.encode_to_folder(MODEL.vae, {}, pictures, tmp_path, count=10, shard=4, say=lambda text: None)

    first, again = pool(), pool()
    assert calls == [(0, 4), (1, 4), (2, 2)]
    np.testing.assert_array_equal(first["moments"], again["moments"])
    assert first["moments"].shape == (10, 2, 2, 8)
    assert list(first["ids"][:, 0]) == [0] * 4 + [1] * 4 + [2] * 2
    a, b, other = (latents.draw(first, 0, n, 1000) for n in (1, 1, 2))
    np.testing.assert_array_equal(a["moments"], b["moments"])
    assert not np.array_equal(a["ids"], other["ids"])
    assert set(a["ids"][:, 0]) == {0, 1, 2}


def test_scaled_latents_have_unit_standard_deviation():
    moments = np.random.default_rng(0).normal(1.0, 3.0, (50, 4, 4, 8)).astype(np.float16)
    assert (latents.scale_factor(moments) * moments[..., :4].astype(float)).std() == pytest.approx(1.0)


def test_a_run_keeps_the_settings_that_its_stored_parts_depend_on(tmp_path):
    config = settings.get_config()
    BuiltinTraining(config, tmp_path).check_settings()
    config.autoencoder.optim.steps += 1000
    BuiltinTraining(config, tmp_path).check_settings()
    config.model.text.width = 64
    config.seed = 1
    with pytest.raises(ValueError, match="another seed, another model .*settings.json"):
        BuiltinTraining(config, tmp_path).check_settings()


@pytest.mark.slow
def test_text_encoder_and_unet_learn_four_latents_by_heart():
    optimizer = make_optimizer(OptimConfig(steps=400, learning_rate=3e-3, warmup=20, cooldown=100))
    rng = np.random.default_rng(0)
    means = rng.choice([-1.0, 1.0], (4, 1, 1, 4)) * np.ones((4, 4, 4, 4))  # four captions, four colours
    moments = np.concatenate([means, np.full_like(means, -10.0)], axis=-1).astype(np.float32)
    ids = np.tile(np.arange(4)[:, None], (1, MODEL.text.max_length))
    objective = DiffusionObjective(gamma=5.0, floor=1.0)
    loss = diffusion_loss(Denoising(MODEL, objective, np.zeros(MODEL.text.max_length)))
    step = jax.jit(make_train_step(loss, optimizer, 0.99), donate_argnums=0)
    params = {name: jax.tree.map(jnp.array, small_params()[name]) for name in ("unet", "text")}
    state = TrainState.create(params, optimizer, seed=0)
    seen = []
    for n in range(400):
        rows = np.random.default_rng(n).integers(0, 4, 32)
        state, metrics = step(state, {}, {"moments": moments[rows], "ids": ids[rows]})
        seen.append(float(metrics["unweighted"]))
    # At the start the network puts out 0, and v's mean square lies between those of latent, 0.64, and noise, 1. A text
    # tells everything about its latent, so that at the end only the network's lack of precision is left
    assert 0.6 < seen[0] < 1.0
    assert np.mean(seen[-20:]) < 0.1


@pytest.mark.slow
def test_a_run_goes_through_all_stages_and_its_export_makes_pictures(tmp_path, monkeypatch):
    try:
        emoji.find_font()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    config = settings.get_config()
    config.log_every = 1
    for stage in (config.autoencoder, config.diffusion, config.inpainting):
        stage.batch_size = 2
        stage.optim.update(steps=2, warmup=0, cooldown=0)
    config.latents.update(count=6, shard=4)
    config.vocabulary.captions = 500
    run = BuiltinTraining(config, tmp_path / "run")
    with pytest.raises(ValueError, match="no checkpoint of autoencoder and diffusion yet"):
        export(run, tmp_path / "model")
    run.train()
    assert export(run, tmp_path / "model") == {"autoencoder": 2, "diffusion": 2, "inpainting": 2}
    pipe = sdjax.load(tmp_path / "model")
    assert pipe.config == run.model
    assert pipe.config.vae.scale_factor != 1.0
    pictures = sdjax.text_to_image(pipe, "a red apple on a blue background", num_steps=2)
    assert pictures.shape == (1, 64, 64, 3)
    assert sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file()) <= 16_000_000
    assert (tmp_path / "model-inpainting.safetensors").stat().st_size <= 6_000_000
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "model")
    inpainting = sdjax.load("builtin-inpainting")
    assert inpainting.config.unet.in_channels == 33
    for part in pipe.params:  # what is not trained is the base's
        same = jax.tree.map(np.array_equal, pipe.params[part], inpainting.params[part])
        assert all(jax.tree.leaves(same)) == (part != "unet")
        if part == "unet":
            changed = {name for name in same if not all(jax.tree.leaves(same[name]))}
            assert changed == set(config.inpainting.changed)
    mask = np.arange(64) < 32
    filled = sdjax.inpaint(inpainting, pictures[0], np.broadcast_to(mask, (64, 64)), "a red apple", num_steps=2)
    np.testing.assert_array_equal(filled[0][:, ~mask], pictures[0][:, ~mask])
