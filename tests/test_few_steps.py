"""Distilled models and adapters: how a file shows that it is one, what it then decides, and the scale as an input."""

import dataclasses

import numpy as np
import pytest

import sdjax
from sdjax import Request, configs
from sdjax.checks.notes import Note
from sdjax.config import ConfigError, ModelConfig, UNetConfig
from sdjax.convert.adapters.info import info_of
from sdjax.convert.describe.detection import detect
from sdjax.convert.describe.diffusers_config import config_from_diffusers, diffusers_files
from sdjax.convert.describe.distilled import KEY, few_step_of
from sdjax.convert.names.tables import tensor_shapes
from sdjax.few_step import find_word, recipe_of
from sdjax.nn.layers.embeddings import guidance_embedding
from sdjax.nn.parts import param_counts
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.scripts import txt2img
from sdjax.scripts.shared.distilled_models import _unset
from sdjax.tasks.adapters import AdapterUse, Strength
from sdjax.tasks.computing import Computing
from sdjax.tasks.distilled import said
from sdjax.tasks.make_batch import batch_of
from sdjax.tasks.resolve import resolve

import models
from models import TINY

LCM = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, guidance_dim=8), guidance_scale=8.0, few_step="lcm")


def pipeline(config: ModelConfig = TINY) -> Pipeline:
    return Pipeline(config, {}, Tokenizer(), "float32", "nowhere")


def resolved(config: ModelConfig = TINY, **fields):
    (one,) = resolve(pipeline(config), [Request(prompt="a cat", **fields)])
    return one


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Hyper-SD15-1step-lora", "hyper-one"),
        ("Hyper-SD15-8steps-lora", "hyper:8"),
        ("Hyper-SD15-12steps-CFG-lora", "hyper-cfg:12"),
        ("pcm_sd15_smallcfg_4step_converted", "pcm:4"),
        ("pcm_sd15_normalcfg_8step_converted", "pcm-cfg:8"),
        ("pcm_sd15_lcmlike_lora_converted", "lcm"),
        ("lcm-lora-sdv1-5", "lcm"),
        ("dreamshaper_8LCM", "lcm"),
        ("TCD-SD15-LoRA", "tcd"),
        ("sd_turbo", "turbo"),
        ("falcm", None),
        ("turbocharger", None),
        ("stepping_stones_8step", None),
    ],
)
def test_names_of_released_files_say_how_they_are_sampled(name, word):
    assert find_word([name]) == word
    assert info_of([], [], {"modelspec.title": name}).few_step == (word or "")


def test_a_file_without_a_name_is_called_as_its_folder(tmp_path):
    place = tmp_path / "models--latent-consistency--lcm-lora-sdv1-5" / "snapshots" / "0123abcd"
    place.mkdir(parents=True)
    assert few_step_of({}, place / "pytorch_lora_weights.safetensors") == "lcm"
    assert few_step_of({}, place) == "lcm"
    assert few_step_of({}, place / "style.safetensors") is None
    assert few_step_of({KEY: "pcm:8"}, None) == "pcm:8"
    assert few_step_of({KEY: "rm -rf"}, None) is None


@pytest.mark.parametrize("word", ["none", "pcm:0", "pcm:65", "pcm:four", "lcm:", "pcm:²"])
def test_unknown_kinds_of_distillation_are_refused(word):
    with pytest.raises(ValueError, match="one of lcm"):
        recipe_of(word)
    with pytest.raises(ConfigError, match="few_step"):
        ModelConfig("any", few_step=word)


def test_a_distilled_adapter_decides_what_the_request_leaves_open():
    def use(word, weight=1.0):
        return AdapterUse({}, Strength(weight), "fast", few_step=word)

    with pytest.warns(Note, match=r"fast is distilled \(TCD\).*sampler tcd, eta 0.3, num_steps 4, guidance_scale 1"):
        one = resolved(adapters=(use("tcd"),))
    assert (type(one.sampler).__name__, one.sampler.eta, one.num_steps, one.guidance_scale) == ("TCD", 0.3, 4, 1)
    with pytest.warns(Note, match="num_steps 8"):
        one = resolved(adapters=(use("tcd", 0.0), use("hyper:8")))
    assert (type(one.sampler).__name__, one.sampler.spacing, one.num_steps) == ("DDIM", "trailing", 8)
    given = {"sampler": "euler", "num_steps": 3, "guidance_scale": 2.0}
    one = resolved(adapters=(use("tcd"),), **given)  # a note would be an error
    assert (type(one.sampler).__name__, one.num_steps, one.guidance_scale) == ("Euler", 3, 2)
    one = resolved()
    assert (type(one.sampler).__name__, one.num_steps, one.guidance_scale) == ("DDIM", 50, TINY.guidance_scale)


def test_a_model_that_takes_the_scale_gets_no_further_guidance():
    with pytest.warns(Note, match="the model is distilled"):
        one = resolved(LCM)
    assert (type(one.sampler).__name__, one.num_steps, one.guidance_scale) == ("LCM", 4, 8)
    with pytest.warns(Note, match="negative_prompt has no effect on a model that takes the guidance scale"):
        whole = batch_of(pipeline(LCM), [Request(negative_prompt="dog", sampler="lcm", num_steps=4)], Computing())
    assert whole.guidance.branches == ("conditional",)


@pytest.mark.slow
def test_pictures_of_one_batch_have_their_own_scale_as_an_input():
    pipe = models.pipeline(LCM)
    projection = pipe.params["unet"]["time_embedding"]["cond_proj"]
    projection["kernel"] = 300 * projection["kernel"]  # random weights hardly look at the time
    one, other = (
        sdjax.text_to_image(pipe, "a cat", seed=3, num_steps=2, sampler="lcm", guidance_scale=scale, output="latent")
        for scale in (2.0, 7.0)
    )
    both = sdjax.text_to_image(
        pipe, ["a cat"] * 2, seed=[3, 3], num_steps=2, sampler="lcm", guidance_scale=[2.0, 7.0], output="latent"
    )
    np.testing.assert_allclose(both, [*one, *other], atol=1e-4)
    assert abs(np.asarray(one) - np.asarray(other)).max() > 1e-3


def test_the_guidance_embedding_is_the_papers():
    out = np.asarray(guidance_embedding(np.array([1.0, 1.5], np.float32), 9))
    np.testing.assert_array_equal(out[0], [0, 0, 0, 0, 1, 1, 1, 1, 0])
    angles = 500 * 10_000 ** (-np.arange(4) / 3)
    np.testing.assert_allclose(out[1], [*np.sin(angles), *np.cos(angles), 0], atol=1e-4)  # 500 in float32


def small(unet: UNetConfig, levels: int, **fields) -> UNetConfig:
    per_level = {name: getattr(unet, name)[:levels] for name in ("channels", "transformer_depth", "self_attention")}
    return dataclasses.replace(unet, num_res_blocks=1, **{**per_level, **fields})


V1, V2 = configs.get("sd1"), configs.get("sd2_base")
SMALLER = {  # with the numbers of parameters that BK-SDM's (0.58B, 0.33B) and SDXS's papers (319M) give, unrounded
    "BK-SDM-Tiny": (V1, small(V1.unet, 3, mid_block=False, heads=(8, 8, 8)), 323_384_964),
    "BK-SDM-Base": (V1, small(V1.unet, 4), 579_384_964),
    "SDXS-512": (V2, small(V2.unet, 3, mid_block=False, heads=(0, 10, 20)), 318_695_364),
    "LCM": (V1, dataclasses.replace(V1.unet, guidance_dim=256), 859_602_884),
}


@pytest.mark.parametrize("name", ["BK-SDM-Tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in [*SMALLER][1:])])
def test_smaller_unets_are_found_in_files_of_both_layouts(name):
    base, unet, count = SMALLER[name]
    config = dataclasses.replace(base, unet=unet)
    shapes = tensor_shapes(config, "ldm")
    assert param_counts(config)["unet"] == count
    assert detect(shapes).unet == unet
    damaged = {name: shape for name, shape in shapes.items() if "input_blocks.1.0.in" not in name}
    assert detect(damaged).unet == unet
    read, _ = config_from_diffusers(diffusers_files(config))
    assert read.unet == unet
    assert (read.few_step, read.guidance_scale) == (("lcm", 8) if unet.guidance_dim else (None, base.guidance_scale))


@pytest.mark.parametrize(("base", "word"), [(V1, "lcm"), (V1, "tcd"), (V2, "turbo")])
def test_folders_of_distilled_models_are_known_by_their_scheduler(base, word):
    written = diffusers_files(dataclasses.replace(base, few_step=word))
    assert config_from_diffusers(written)[0] == dataclasses.replace(base, few_step=word)
    assert config_from_diffusers(diffusers_files(base))[0] == base


def test_flags_that_are_given_win_over_what_a_distilled_model_needs():
    def chosen(*flags):
        return _unset(txt2img.make_parser().parse_args(["--prompt", "a", *flags]), recipe_of("pcm:4"))

    whole = chosen()
    assert whole == {"sampler": "ddim", "schedule": "trailing", "num_steps": 4, "guidance_scale": 1.0}
    assert "schedule trailing, num_steps 4, guidance_scale 1" in said(recipe_of("pcm:4"), "fast", whole)
    assert chosen("--steps", "50", "--scale", "2").keys() == {"sampler", "schedule"}
    assert chosen("--plms").keys() == {"num_steps", "guidance_scale"}
    assert chosen("--schedule", "timesteps=999,700,300").keys() == {"sampler", "guidance_scale"}
