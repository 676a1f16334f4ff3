"""Every task and every kind of file through the server, beside the functions of Python, on small random models."""

import base64
import shutil

import jax
import numpy as np
import pytest
import small_safety
import test_depth
import test_edit
import test_hypernetworks
import test_image_prompts
import test_small_networks
import test_upscaling
import test_variations
from safetensors.numpy import save_file
from shelf import HOME
from starlette.testclient import TestClient
from test_serve_app import events

import sdjax
from sdjax import convert, pictures
from sdjax.nn.ip_adapter import IPAdapterConfig
from sdjax.pictures.image import encode_png
from sdjax.serve.app import create_app
from sdjax.serve.engine import Engine
from sdjax.serve.library import Library
from sdjax.serve.server import Server

import models
from checks import near

pytestmark = pytest.mark.slow  # compiles many networks
ONE = {"devices": jax.devices()[:1]}
IMAGE, OTHER, SMALL = models.picture(), models.picture(64, 64, seed=3), models.picture(32, 32, seed=5)
FEW = {"num_steps": 2, "seed": 5, "prompt": "a cat"}
CHECKPOINTS = {
    "tiny": models.TINY, "depth": test_depth.TINY, "edit": test_edit.EDIT, "x4": test_upscaling.TINY,
    "checked": models.TINY,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of models as ComfyUI has it."""
    place = tmp_path_factory.mktemp("models")
    for name, config in CHECKPOINTS.items():
        models.pipeline(config).save(place / f"checkpoints/{name}", to="diffusers" if name == "checked" else "native")
    test_variations.pipeline().save(place / "checkpoints/unclip", to="diffusers")
    shutil.copytree(place / "checkpoints/unclip/image_encoder", place / "clip_vision/tower")
    spec, tensors, _ = small_safety.checker()
    tensors["concept_embeds_weights"] = tensors["concept_embeds_weights"] - 9  # everything is flagged
    small_safety.write(place / "checkpoints/checked/safety_checker", spec, tensors)
    for folder in "ipadapter", "hypernetworks", "upscale_models", "vae_approx":
        (place / folder).mkdir()
    config = IPAdapterConfig("linear", test_variations.D, 32, test_image_prompts.WIDTHS, 4)
    save_file(test_image_prompts.file_of("linear", config), place / "ipadapter/plus.safetensors")
    test_hypernetworks.save(place / "hypernetworks/one.safetensors", test_hypernetworks.net(1))
    save_file(esrgan(), place / "upscale_models/four.safetensors")
    save_file(test_small_networks.tensors_of("decode_diffusers"), place / "vae_approx/tae.safetensors")
    return place


def esrgan():
    """Returns the tensors of a small network that enlarges twice."""
    sizes = {"body.0": (4, 3), "body.2": (12, 4)}
    rng = np.random.default_rng(0)
    out = {f"{name}.weight": rng.normal(size=(*size, 3, 3)).astype("f") / 20 for name, size in sizes.items()}
    out |= {f"{name}.bias": np.zeros(size[0], "f") for name, size in sizes.items()}
    return {**out, "body.1.weight": np.full(4, 0.2, "f")}


@pytest.fixture(scope="module")
def client(root, tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    library = Library([root], state=place)
    engine = Engine(
        library, model="tiny", outputs=place / "o", state=place / "s", preview="tae", dtype="float32", **ONE
    )
    yield TestClient(create_app(Server(engine, library)), base_url=HOME)
    engine.close()


def loaded(root, name):
    return sdjax.load(root / "checkpoints" / name, dtype="float32")


def asked(client, task, settings, model, **inputs):
    """Returns the events of a job, the job, and its pictures."""
    given = {name: base64.b64encode(encode_png(one)).decode() for name, one in inputs.items()}
    body = {"task": task, "settings": settings, "model": model, "inputs": given}
    answer = client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    told = events(client.get(f"/api/v1/jobs/{answer.json()['id']}/events").text)
    job = client.get(f"/api/v1/jobs/{answer.json()['id']}").json()
    assert job["state"] == "done", job["error"]
    return told, job, [pictures.open_picture(client.get(one["url"]).content).pixels for one in job["pictures"]]


def prompted(settings):
    return settings.get("prompt", ""), {name: value for name, value in settings.items() if name != "prompt"} | ONE


def by_depth(root, settings):
    prompt, rest = prompted(settings)
    return sdjax.depth_to_image(loaded(root, "depth"), IMAGE, prompt, **rest)


CASES = {
    "depth by the model's network": ("depth2img", {**FEW, "strength": 0.9}, "depth", {"image": IMAGE}, by_depth),
    "a depth map": (
        "depth2img", {**FEW, "strength": 0.9}, "depth", {"image": IMAGE, "depth": OTHER},
        lambda root, s: sdjax.depth_to_image(
            loaded(root, "depth"), IMAGE, s["prompt"], strength=0.9, num_steps=2, seed=5,
            depth_map=OTHER.astype(float).mean(-1), **ONE,
        ),
    ),
    "an edit": (
        "edit", {**FEW, "image_scale": 2}, "edit", {"image": IMAGE},
        lambda root, s: sdjax.edit(loaded(root, "edit"), IMAGE, s["prompt"], image_scale=2, num_steps=2, seed=5, **ONE),
    ),
    "enlarged by diffusion": (
        "upscale", {**FEW, "noise_level": 30}, "x4", {"image": SMALL},
        lambda root, s: sdjax.upscale(
            loaded(root, "x4"), SMALL, s["prompt"], noise_level=30, num_steps=2, seed=5, **ONE
        ),
    ),
    "enlarged by a network": (
        "upscale", {"upscaler": "four", "times": 3}, "tiny", {"image": SMALL},
        lambda root, s: sdjax.enlarge(convert.load_esrgan(root / "upscale_models/four.safetensors"), SMALL, times=3),
    ),
    "enlarged between two passes": (
        "txt2img", {**FEW, "hires": {"upscaler": "four", "enlarge": 1.5, "strength": 0.5}}, "tiny", {},
        lambda root, s: sdjax.two_pass(
            loaded(root, "tiny"), s["prompt"], enlarge=1.5, strength=0.5, num_steps=2, seed=5,
            upscaler=convert.load_esrgan(root / "upscale_models/four.safetensors"), **ONE,
        ),
    ),
    "variations": (
        "variations", {**FEW, "noise_level": 3}, "unclip", {"image": IMAGE},
        lambda root, s: sdjax.image_variations(
            loaded(root, "unclip"), IMAGE, s["prompt"], noise_level=3, num_steps=2, seed=5, **ONE
        ),
    ),
    "an image prompt": (
        "txt2img",
        {**FEW, "image_prompts": [{"adapter": "plus", "image": "face", "encoder": "tower", "weight": 0.7}]}, "tiny",
        {"face": OTHER},
        lambda root, s: sdjax.text_to_image(
            loaded(root, "tiny"), s["prompt"], num_steps=2, seed=5, **ONE,
            image_prompts=[sdjax.ImagePrompt(
                root / "ipadapter/plus.safetensors", OTHER, 0.7, encoder=root / "clip_vision/tower"
            )],
        ),
    ),
    "a hypernetwork": (
        "txt2img", {**FEW, "hypernetworks": ["one:0.6"]}, "tiny", {},
        lambda root, s: sdjax.text_to_image(
            loaded(root, "tiny"), s["prompt"], num_steps=2, seed=5,
            hypernetworks=[str(root / "hypernetworks/one.safetensors:0.6")], **ONE,
        ),
    ),
    "a hypernetwork by a tag": (
        "txt2img", {**FEW, "prompt": "a cat <hypernet:one:0.6>"}, "tiny", {},
        lambda root, s: sdjax.text_to_image(
            loaded(root, "tiny"), s["prompt"], num_steps=2, seed=5, hypernetwork_dir=root / "hypernetworks", **ONE
        ),
    ),
    "a reference": (
        "txt2img", {**FEW, "references": [{"picture": "look", "weight": 0.8}], "num_images": 2}, "tiny",
        {"look": OTHER},
        lambda root, s: sdjax.text_to_image(
            loaded(root, "tiny"), s["prompt"], num_steps=2, seed=5, num_images=2,
            references=[sdjax.Reference(OTHER, 0.8)], **ONE,
        ),
    ),
    "regions": (
        "txt2img", {**FEW, "regions": [{"prompt": "a dog", "place": "left"}]}, "tiny",
        {"left": np.repeat((np.arange(64) < 32)[None].astype(np.uint8) * 255, 64, 0)[..., None].repeat(3, -1)},
        lambda root, s: sdjax.text_to_image(
            loaded(root, "tiny"), s["prompt"], num_steps=2, seed=5, **ONE,
            regions=[sdjax.Region("a dog", np.repeat((np.arange(64) < 32)[None].astype(np.uint8) * 255, 64, 0))],
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_servers_pictures_are_those_of_the_function(name, client, root):
    task, settings, model, inputs, function = CASES[name]
    _, job, made = asked(client, task, settings, model, **inputs)
    wanted = function(root, settings)
    assert len(made) == len(wanted)
    for own, other in zip(made, wanted, strict=True):
        assert near(own, np.asarray(other))
    plain = [one for one in job["notes"] if "/" in one]
    assert plain == []  # no path of the server


def test_previews_by_a_small_autoencoder_have_the_full_size(client):
    told, *_ = asked(client, "txt2img", {**FEW, "num_steps": 25, "num_images": 2}, "tiny")
    shown = [data["image"] for kind, data in told if kind == "preview"]
    assert shown
    assert pictures.open_picture(base64.b64decode(shown[0])).pixels.shape == (64, 64, 3)


def test_a_flagged_picture_is_replaced_by_a_notice_and_its_file_says_so(client):
    _, job, (made,) = asked(client, "txt2img", FEW, "checked")
    np.testing.assert_array_equal(made, pictures.notice(64, 64))
    assert any("flagged" in note for note in job["notes"])
    assert job["pictures"][0]["settings"]["safety"]["flagged"]
