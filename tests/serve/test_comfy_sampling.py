"""Graphs that sample: beside text_to_image with ComfyUI's profile, and areas, masks and held parts beside formulas."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_comfy_graphs import Host

import sdjax
from sdjax.diffusion.areas import AreaNetwork
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Held
from sdjax.diffusion.guidance import Call, ClassifierFree
from sdjax.diffusion.network import FunctionNetwork
from sdjax.diffusion.rules.parts import Parts
from sdjax.samplers.rows import row
from sdjax.samplers.rule import Stateless
from sdjax.serve.comfy.checking import check
from sdjax.serve.comfy.graph import read_api_form
from sdjax.serve.comfy.running import run

import models

PROMPTS = {"positive": "a (red:1.3) cat", "negative": "a dog"}


class ModelHost(Host):
    """A host with one small model."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def has(self, kind, name):
        return True

    def checkpoint(self, name):
        return self.pipe

    def call(self, function):
        return function()

    def preview(self, number, pixels):
        pass

    def file(self, kind, name):
        return Path(name)


def graph(sampler, **more):
    """Returns a graph from text to a picture of 64 x 64 with this sampler node."""
    texts = {
        side: {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["model", 1]}}
        for side, text in PROMPTS.items()
    }
    usual = {
        "model": ["model", 0],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["empty", 0],
    }
    return {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny"}}, **texts,
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
        "sampler": {"class_type": sampler["class_type"], "inputs": {**usual, **sampler["inputs"]}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0]}}, **more,
    }  # fmt: skip


def picture(api, pipe):
    host = ModelHost(pipe)
    run(check(read_api_form(api), host), host)
    return host.saved[-1][0]


KSAMPLER = {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler_ancestral"}}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"sampler_name": "dpmpp_2m", "scheduler": "karras"}, {"cfg": 1.0}])
def test_a_graph_makes_the_picture_of_text_to_image(settings):
    pipe = models.pipeline()
    own = {**KSAMPLER["inputs"], **settings}
    made = picture(graph({**KSAMPLER, "inputs": own}), pipe)
    wanted = sdjax.text_to_image(
        pipe, PROMPTS["positive"], negative_prompt=PROMPTS["negative"], seed=5, num_steps=3, height=64, width=64,
        guidance_scale=own["cfg"], sampler=own["sampler_name"], schedule=own.get("scheduler", "normal"),
        compat="comfyui",
    )[0]  # fmt: skip
    assert np.abs(made.astype(int) - wanted).max() <= 1
    assert np.ptp(made) > 20


@pytest.mark.slow
def test_two_parts_of_a_run_are_the_whole_run():
    pipe = models.pipeline()
    usual = {"noise_seed": 5, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
    whole = graph({"class_type": "KSamplerAdvanced", "inputs": usual})
    first = {**usual, "end_at_step": 2, "return_with_leftover_noise": "enable"}
    parts = graph({"class_type": "KSamplerAdvanced", "inputs": first})
    rest = {**parts["sampler"]["inputs"], **usual, "add_noise": "disable", "start_at_step": 2, "end_at_step": 10000,
            "return_with_leftover_noise": "disable", "latent_image": ["sampler", 0]}  # fmt: skip
    parts["second"] = {"class_type": "KSamplerAdvanced", "inputs": rest}
    parts["decode"]["inputs"]["samples"] = ["second", 0]
    custom = graph({"class_type": "SamplerCustom", "inputs": {
        "noise_seed": 5, "cfg": 4.0, "sampler": ["euler", 0], "sigmas": ["sigmas", 0], "add_noise": True,
    }}, euler={"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        sigmas={"class_type": "BasicScheduler",
                "inputs": {"model": ["model", 0], "scheduler": "normal", "steps": 4, "denoise": 1.0}})  # fmt: skip
    wanted = picture(whole, pipe)
    for other in parts, custom:
        assert np.abs(picture(other, pipe).astype(int) - wanted).max() <= 1


@pytest.mark.slow
def test_an_area_over_everything_is_no_area_and_both_halves_of_one_text_are_the_whole():
    pipe = models.pipeline()
    wanted = picture(graph(KSAMPLER), pipe)
    mask = {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 64, "height": 64}}
    half = {"class_type": "ConditioningSetMask", "inputs": {"conditioning": ["positive", 0], "mask": ["mask", 0]}}
    both = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["half", 0], "conditioning_2": ["half", 0]},
    }
    masked = graph(KSAMPLER, mask=mask, half=half, both=both)
    masked["sampler"]["inputs"]["positive"] = ["both", 0]
    area = {"class_type": "ConditioningSetArea",
            "inputs": {"conditioning": ["positive", 0], "width": 64, "height": 64, "x": 0, "y": 0}}  # fmt: skip
    whole = graph(KSAMPLER, area=area)
    whole["sampler"]["inputs"]["positive"] = ["area", 0]
    for other in masked, whole:
        assert np.abs(picture(other, pipe).astype(int) - wanted).max() <= 1


@pytest.mark.slow
def test_a_part_that_is_held_stays():
    pipe = models.pipeline()
    colour = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "color": 0x3060C0}}
    latent = {"class_type": "VAEEncode", "inputs": {"pixels": ["colour", 0], "vae": ["model", 2]}}
    left = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}
    nothing = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["latent", 0], "mask": ["left", 0]}}
    made = graph(KSAMPLER, colour=colour, latent=latent, left=left, nothing=nothing)
    made["sampler"]["inputs"]["latent_image"] = ["nothing", 0]
    plain = {**made, "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["latent", 0], "vae": ["model", 2]}}}
    assert np.abs(picture(made, pipe).astype(int) - picture(plain, pipe)).max() <= 1


def test_a_branch_with_an_area_sees_that_part_alone():
    seen = []

    def network(x, t, conditioning):
        seen.append(x.shape)
        return x + conditioning.context[:, :1, :1, None]

    x = jnp.arange(2 * 8 * 8, dtype=jnp.float32).reshape(2, 8, 8, 1)
    areas = (None, (2, 4, 4, 4), None)  # three branches of two pictures, interleaved
    context = jnp.asarray([10.0, 20, 30, 40, 50, 60]).reshape(6, 1, 1)
    out, _ = AreaNetwork(FunctionNetwork(network), areas)(
        {}, jnp.repeat(x, 3, axis=0), jnp.zeros(6), Conditioning(context), ()
    )
    assert sorted(seen) == [(2, 4, 4, 1), (4, 8, 8, 1)]  # the two branches without an area share a call
    np.testing.assert_array_equal(out[0], x[0] + 10)
    np.testing.assert_array_equal(out[5], x[1] + 60)
    want = np.zeros((8, 8, 1))
    want[2:6, 4:8] = x[1, 2:6, 4:8] + 50
    np.testing.assert_array_equal(out[4], want)


def test_parts_are_averaged_by_weight_in_their_span():
    x = jnp.ones((1, 1, 3, 1))
    outputs = {"conditional": 2 * x, "conditional 2": 5 * x, "unconditional": x}
    weights = np.array([[[[1.0, 1, 0]], [[0.0, 3, 0]], [[1.0, 1, 1]]]])
    during = np.array([[[9.0, 0], [9, 2], [9, 0]]])
    call = Call(x, row(500, 1.0, 0.5, calls=[0]), 1.0, -1.0, "epsilon")  # x0 = x - output
    rule = Parts(weights, during, (2, 1))
    late = rule.joined(outputs, call)["conditional"].ravel()
    np.testing.assert_allclose(late, [2, 2, 1])  # the second works above sigma 2; where nothing counts, x0 is 0
    early = rule.joined(outputs, call._replace(row=call.row._replace(sigma=np.float32(3))))["conditional"].ravel()
    np.testing.assert_allclose(early, [2, (2 + 3 * 5) / 4, 1])
    guided, _ = ClassifierFree(3.0, rules=(rule,)).combine(outputs, call, ((),))
    np.testing.assert_allclose(np.ravel(guided.x0), 1 - (1 + 3 * (np.asarray(late) - 1)))


def test_a_held_part_is_seen_with_one_noise_and_answered_as_it_is():
    latent, noise, mask = (
        jnp.full((1, 1, 2, 1), 7.0),
        jnp.full((1, 1, 2, 1), 2.0),
        jnp.array([0.0, 1]).reshape(1, 1, 2, 1),
    )
    denoise = Held(latent, mask, noise).answer(Stateless(lambda x, row: x + 1))
    made, _ = denoise(jnp.full((1, 1, 2, 1), 100.0), row(1, 3.0, 1.0, calls=[0]), ())
    assert np.ravel(made.x0).tolist() == [7.0, 101.0]
    seen = []
    Held(latent, mask, noise).answer(Stateless(lambda x, row: seen.append(x) or x))(
        jnp.full((1, 1, 2, 1), 100.0), row(1, 3.0, 1.0, calls=[0]), ()
    )
    assert np.ravel(seen[0]).tolist() == [7 + 3 * 2, 100]


@pytest.mark.slow
def test_a_model_merged_with_itself_is_the_same():
    pipe = models.pipeline()
    merge = {"class_type": "ModelMergeSimple",
             "inputs": {"model1": ["model", 0], "model2": ["model", 0], "ratio": 0.3}}  # fmt: skip
    made = graph(KSAMPLER, merge=merge)
    made["sampler"]["inputs"]["model"] = ["merge", 0]
    assert np.abs(picture(made, pipe).astype(int) - picture(graph(KSAMPLER), pipe)).max() <= 1
