"""Requests with patches that save work: what is refused, how guidance ends, and tasks with all of it together."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

import sdjax
from sdjax.adapters import DeepCache, TGate, make_settings
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.diffusion.rules import PAG, SAG, SEG, Interval
from sdjax.pictures.image import encode_png
from sdjax.pictures.metadata import read_metadata
from sdjax.serve.comfy.nodes import NODES
from sdjax.serve.comfy.values import Model
from sdjax.tasks.from_metadata import understand
from sdjax.tasks.recording import web_ui_fields
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import note_unused, resolve
from sdjax.tasks.two_pass import second_request

import models
from checks import near

ONE = {"devices": jax.devices()[:1]}


def resolved(**options):
    return resolve(models.pipeline(), [Request("a cat", **options)])[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": ["token_merging", "hypertile"]}, "token_merging and hypertile change which places"),
        ({"patches": ["window_attention", "token_downsampling"]}, "window_attention and token_downsampling change"),
        ({"patches": "token_merging", "guidance": SEG()}, "no map of queries that seg could blur"),
        ({"patches": "hypertile", "style_aligned": 0.5}, "style_aligned lets .*, and hypertile only a part"),
        ({"patches": "deep_cache", "sampler": "dpm_adaptive"}, "deep_cache counts the calls of the network"),
        ({"patches": "t_gate", "sampler": "dpm_adaptive"}, "t_gate counts the calls of the network"),
        ({"patches": ["deep_cache", "deep_shrink:block=0"]}, "deep_cache keeps features of one size"),
        ({"patches": "t_gate", "guidance": SAG()}, "needs the attention of every call, and t_gate skips some"),
        ({"patches": "deep_cache", "references": [np.zeros((8, 8, 3), np.uint8)]}, "references call the network"),
        ({"patches": "deep_cache:branch=2"}, "branch is a whole number from 0 to 1 for this network; got 2"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        resolved(**options)


@pytest.mark.parametrize("guidance", [None, "pag", ClassifierFree(4.0, rules=(PAG(),))])
def test_behind_the_gate_there_is_no_guidance(guidance):
    made = resolved(patches="t_gate:gate=0.25", guidance=guidance).guidance
    assert made.rules[-1] == Interval(stop=0.25)
    assert made.resting == ("conditional",)


def test_a_second_pass_ends_guidance_once():
    first = resolved(patches="t_gate:gate=0.25", guidance="apg", height=64, width=64)
    (second,) = resolve(models.pipeline(), [second_request(models.pipeline().config, first, 2.0, {})])
    assert [type(one).__name__ for one in second.guidance.rules] == ["APG", "Interval"]


@pytest.mark.parametrize("options", [{}, {"sampler": "euler_cfg_pp"}])
def test_the_gate_gives_no_note_where_there_is_no_guidance(options):
    made = resolved(patches="t_gate", guidance_scale=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note_unused([made], models.pipeline().config)
    assert bool(made.guidance.rules) == bool(options)


def test_token_merging_of_a1111_is_read_from_its_pictures():
    text = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, Token merging ratio: 0.9"
    found = understand(read_metadata(encode_png(np.zeros((8, 8, 3), np.uint8), {"parameters": text})))
    assert found.settings["patches"] == [{"name": "token_merging", "ratio": 0.75, "random": False}]
    assert not found.unknown


def texts_of(text, sampler="Euler a"):
    line = f"a cat\nSteps: 20, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, {text}"
    return understand(read_metadata(encode_png(np.zeros((8, 8, 3), np.uint8), {"parameters": line})))


def test_a1111s_savings_are_read_from_its_pictures():
    found = texts_of("NGMS: 1.5, NGMS all steps: True, Skip Early CFG: 0.2")
    assert found.settings["guidance"] == "skip"
    assert found.settings["guidance_options"] == {"sigma": 1.5, "all_steps": True, "early": 0.2}
    assert not found.unknown
    (rule,) = resolved(guidance="skip", guidance_options=found.settings["guidance_options"]).guidance.rules
    assert (rule.sigma, rule.all_steps, rule.early) == (1.5, 1, 0.2)
    found = texts_of("NGMS: 1.5, Skip Early CFG: 0.2", "DDIM")
    assert found.settings["guidance_options"] == {"early": 0.2}
    assert [one.key for one in found.unknown] == ["NGMS"]
    assert [one.key for one in texts_of("NGMS: -1").unknown] == ["NGMS"]


def test_a_second_pass_of_a1111_is_read_as_arguments_of_two_pass():
    found = texts_of(
        "Token merging ratio hr: 0.5, Hires upscale: 2, Hires steps: 3, Hires sampler: DPM++ 2M, "
        "Hires schedule type: Karras, Hires CFG Scale: 4"
    )
    merging = [{"name": "token_merging", "ratio": 0.5, "random": False}]
    assert found.hires == {
        "hires_patches": merging, "enlarge": 2, "hires_steps": 3, "hires_sampler": "dpmpp_2m", "hires_scale": 4
    }  # fmt: skip
    assert [one.key for one in found.unknown] == ["Hires schedule type"]
    assert "patches" not in found.settings
    assert [one.key for one in texts_of("Token merging ratio hr: -1").unknown] == ["Token merging ratio hr"]


def test_what_saves_work_is_written_as_a1111_reads_it():
    settings = {
        "steps": 2, "sampler": "euler", "sampler_options": {}, "guidance_scale": 7, "seed": 1,
        "width": 64, "height": 64, "model": {"name": "a"}, "versions": {"sdjax": "1"},
        "patches": [{"name": "token_merging", "ratio": 0.25}],
        "guidance": "apg+skip", "guidance_options": {"skip.sigma": 0.5, "all_steps": True},
        "hires": {"enlarge": 2, "hires_patches": [{"name": "token_merging", "ratio": 0.5}]},
    }  # fmt: skip
    fields = web_ui_fields(settings)
    expected = {"Token merging ratio": 0.25, "Token merging ratio hr": 0.5, "NGMS": 0.5, "NGMS all steps": True}
    assert fields.items() >= expected.items()
    assert "Skip Early CFG" not in fields
    assert web_ui_fields({**settings, "hires": {"enlarge": 2}})["Token merging ratio hr"] == 0.25


def test_each_pass_has_its_own_end_of_guidance():
    first = resolved(patches="t_gate:gate=0.25", height=64, width=64)
    for patches, stops in ("t_gate:gate=0.5", [0.5]), ("deep_cache", []):
        again = second_request(models.pipeline().config, first, 2.0, {"patches": make_settings(patches)})
        (second,) = resolve(models.pipeline(), [again])
        assert [one.stop for one in second.guidance.rules] == stops


def test_the_node_of_comfyui_has_its_names_and_counts_depth_from_0():
    node = NODES["HyperTile"]
    assert [one.name for one in node.inputs] == ["model", "tile_size", "swap_size", "max_depth", "scale_depth"]
    (model,) = node.function(None, Model(models.pipeline()), tile_size=1, swap_size=3, max_depth=2, scale_depth=True)
    (setting,) = model.patches
    assert dataclasses.astuple(setting) == (32, 3, 3, True)


@pytest.mark.slow
def test_pictures_with_plans_of_their_own_are_as_alone():
    pipe, patches = models.pipeline(), [["deep_cache:interval=2", "t_gate:gate=0.5"], [DeepCache(3), TGate(0.25)]]
    together = sdjax.text_to_image(pipe, ["a", "b"], seed=[1, 2], num_steps=[6, 4], patches=patches, **ONE)
    for i, (text, steps) in enumerate(zip("ab", (6, 4))):
        alone = sdjax.text_to_image(pipe, text, seed=i + 1, num_steps=steps, patches=patches[i], **ONE)
        assert near(alone[0], together[i])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"guidance": "pag"}, {"sampler": "heun"}, {"sampler": "dpm2"}, {"sampler": "euler_cfg_pp"}]
)
def test_interval_1_and_gate_1_are_the_plain_picture(options):
    pipe, settings = models.pipeline(), {"seed": 3, "num_steps": 3, **options, **ONE}
    plain = sdjax.text_to_image(pipe, "a cat", **settings)
    assert near(
        sdjax.text_to_image(pipe, "a cat", patches=["deep_cache:interval=1", "t_gate:gate=1"], **settings), plain
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "pag"},
        {"guidance": "nag"},
        {"guidance": "interval", "guidance_options": {"start": 0.5}},
        {"guidance": "freeu"},
        {"sampler": "euler_cfg_pp", "guidance_scale": 1.0},
        {"sampler": "heun", "guidance_scale": 1.0},
        {"sampler": "dpm2"},
        {"prompt": "a AND b"},
        {"prompt": "a [cat:dog:0.5] on blue"},
        {"window": 64, "window_overlap": 32, "width": 96},
        {"seamless": "xy"},
        {"style_aligned": 0.5},
    ],
)
def test_it_goes_with_everything_else(options):
    """A batch of two, in which the plans differ, gives what each gives alone, and not the plain picture."""
    pipe, prompt = models.pipeline(), options.get("prompt", "a cat")
    own = {name: value for name, value in options.items() if name != "prompt"}
    settings = {"num_steps": 4, "height": 64, "width": 64, **own, **ONE}
    patches = [["deep_cache:interval=2", "t_gate:gate=0.5"], ["deep_cache:interval=4", "t_gate:gate=0.75"]]
    both = sdjax.text_to_image(pipe, [prompt] * 2, seed=[1, 2], patches=patches, **settings)
    plain = sdjax.text_to_image(pipe, [prompt] * 2, seed=[1, 2], **settings)
    assert not near(both, plain)
    if "style_aligned" not in options:
        for i in range(2):
            assert near(sdjax.text_to_image(pipe, prompt, seed=i + 1, patches=patches[i], **settings)[0], both[i])


@pytest.mark.slow
def test_img2img_inpainting_and_a_second_pass():
    pipe, picture, settings = models.pipeline(), models.picture(), {"num_steps": 4, "seed": 0, **ONE}
    saving = ["deep_cache:interval=2", "t_gate:gate=0.5", "token_merging"]
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    for make in (
        lambda **own: sdjax.image_to_image(pipe, picture, "a cat", strength=0.6, **own),
        lambda **own: sdjax.inpaint(pipe, picture, mask, "a cat", **own),
        lambda **own: sdjax.two_pass(pipe, "a cat", height=64, width=64, enlarge=2, **own),
    ):
        made, plain = make(patches=saving, **settings), make(**settings)
        assert made.shape == plain.shape
        assert not near(made, plain)
