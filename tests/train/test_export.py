"""Writing a run's parameters as a model: what goes along, what is refused; and which stages may be trained further."""

import types

import pytest
from models_to_train import MODEL

import sdjax
from sdjax.configs import builtin as settings
from sdjax.loading import builtin
from sdjax.loading.trainable import Leaves
from sdjax.train.builtin import emoji, vocabulary
from sdjax.train.builtin.export import export, open_training
from sdjax.train.builtin.training import BuiltinTraining

import models


def trained(tmp_path, *, inpainting: bool):
    """Stands for a run with a checkpoint of each stage; the one for inpainting can be missing."""
    params = models.random_params(MODEL)
    steps = {
        "autoencoder": (1, {"vae": params["vae"]}),
        "diffusion": (2, {name: params[name] for name in ("unet", "text")}),
        "inpainting": (3, {"unet": {"conv_in": params["unet"]["conv_in"]}}) if inpainting else None,
    }
    captions = (scene.caption for scene in emoji.scenes(0, 0, 500))
    tokenizer = vocabulary.learn(captions, MODEL.text.vocab_size)
    own = Leaves(".")
    return types.SimpleNamespace(
        averaged=steps.get, model=MODEL, folder=tmp_path / "run", tokenizer=tokenizer, inpainting=own
    )


def test_an_export_takes_the_licence_along_and_leaves_the_card(tmp_path):
    assert export(trained(tmp_path, inpainting=True), tmp_path / "model", dtype="float32") == {
        "autoencoder": 1, "diffusion": 2, "inpainting": 3,
    }  # fmt: skip
    assert (tmp_path / "model/LICENSE").read_bytes() == (builtin.FOLDER / "LICENSE").read_bytes()
    (tmp_path / "model/README.md").write_text("what it learned from")
    with pytest.raises(FileExistsError):
        export(trained(tmp_path, inpainting=True), tmp_path / "model")
    export(trained(tmp_path, inpainting=True), tmp_path / "model", overwrite=True)
    assert (tmp_path / "model/README.md").read_text() == "what it learned from"
    assert sdjax.load(tmp_path / "model").config == MODEL


def test_no_inpainting_model_stays_beside_another_base(tmp_path):
    export(trained(tmp_path, inpainting=True), tmp_path / "model")
    before = (tmp_path / "model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"model-inpainting\.safetensors belongs to the model that would be replaced"):
        export(trained(tmp_path, inpainting=False), tmp_path / "model", dtype="float32", overwrite=True)
    assert (tmp_path / "model/model.safetensors").read_bytes() == before


def test_the_description_is_the_one_that_the_run_keeps(tmp_path):
    config = settings.get_config()
    config.model.schedule.prediction = "x0"
    config.model.guidance_scale = 3.0
    BuiltinTraining(config, tmp_path).check_settings()
    model = open_training(tmp_path).model
    assert (model.schedule.prediction, model.guidance_scale) == ("x0", 3.0)
    assert model == BuiltinTraining(config, tmp_path).model
    assert open_training(tmp_path / "other").model == BuiltinTraining(settings.get_config(), tmp_path / "other").model


@pytest.mark.parametrize(
    ("longer", "there", "refused"),
    [
        ("diffusion", ["diffusion", "inpainting"], "inpainting"),
        ("autoencoder", ["latents"], "latents"),
        ("autoencoder", ["scale_factor.json", "diffusion"], "diffusion"),
        ("diffusion", ["latents", "diffusion"], None),
        (None, ["latents", "diffusion", "inpainting"], None),
    ],
)
def test_a_stage_is_not_trained_further_under_what_was_made_from_it(tmp_path, longer, there, refused):
    config = settings.get_config()
    for name in ("autoencoder", *there):
        (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
        if name in ("autoencoder", "diffusion"):
            (tmp_path / name / f"{config[name].optim.steps}.json").touch()  # a checkpoint's manifest
    if longer:
        config[longer].optim.steps += 1
    if refused is None:
        BuiltinTraining(config, tmp_path).check_stages()
        return
    sentence = rf"the stage {longer} would continue from step \d+ .*{refused}.* would no longer fit"
    with pytest.raises(ValueError, match=sentence):
        BuiltinTraining(config, tmp_path).check_stages()
