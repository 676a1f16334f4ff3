"""Nodes that write and read files: latents beside ComfyUI's layout, models beside their parameters, hostile files."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from test_batching import random_adapter
from test_comfy_routes import OWN, SOCKET, form, until
from test_comfy_sampling import ModelHost

import sdjax
from sdjax.adapters import LowRank, Strength
from sdjax.serve.comfy.checking import check
from sdjax.serve.comfy.graph import GraphError, read_api_form
from sdjax.serve.comfy.kept_files import keep, stem, written_latent
from sdjax.serve.comfy.latent_file import MOST_BYTES, decode, encode
from sdjax.serve.comfy.nodes.files import whole
from sdjax.serve.comfy.plain_host import PlainHost
from sdjax.serve.comfy.running import NodeError, run
from sdjax.serve.comfy.task import run_workflow
from sdjax.serve.comfy.values import Clip, Model, Vae
from sdjax.tasks.adapters import AdapterUse

import models

LATENTS = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
VERSION = {"latent_format_version_0": np.zeros(0, np.float32)}
SCALE = np.float32(0.18215)


def file_of(tensor, **more):
    return safetensors.numpy.save({"latent_tensor": tensor, **more})


def save_graph(prefix, **inputs):
    """Returns a graph that saves an empty latent, or another output."""
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": 40, "height": 24, "batch_size": 2}}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": prefix, **inputs}}
    return {"1": empty, "2": save}


def run_graph(api, host):
    return run(check(read_api_form(api), host), host)


def test_a_file_of_latents_is_that_of_comfyui():
    data = encode(LATENTS, {"prompt": "{}"})
    found = safetensors.numpy.load(data)
    assert found["latent_tensor"].shape == (2, 4, 3, 5)
    assert found["latent_tensor"].dtype == np.float32
    assert np.array_equal(found["latent_tensor"], LATENTS.transpose(0, 3, 1, 2) / SCALE)
    assert found["latent_format_version_0"].size == 0
    np.testing.assert_allclose(decode(data), LATENTS, rtol=3e-7)


def test_files_without_a_version_hold_scaled_latents():
    tensor = np.ascontiguousarray(LATENTS.transpose(0, 3, 1, 2))
    assert np.array_equal(decode(file_of(tensor)), LATENTS)
    assert np.array_equal(decode(file_of(tensor, **VERSION)), LATENTS * SCALE)
    half = tensor.astype(ml_dtypes.bfloat16)
    assert np.array_equal(decode(file_of(half)), half.astype(np.float32).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no safetensors file"), (b"\x80\x04." * 9, "no safetensors file"),
        (b"\xff" * 8 + b"{}", "no safetensors file"), (encode(LATENTS, {})[:-1], "no safetensors file"),
        (encode(LATENTS, {}) + b"x", "no safetensors file"),
        (safetensors.numpy.save(VERSION), "holds no latent_tensor"),
        (file_of(np.zeros((1, 17, 8, 8), np.float32)), r"16 channels.*got \[1, 8, 8, 17\]"),
        (file_of(np.zeros((1, 4, 1, 8, 8), np.float32)), "16 channels"),
        (file_of(np.zeros((4, 8), np.float32)), "16 channels"),
        (file_of(np.zeros((0, 4, 8, 8), np.float32)), "16 channels"),
        (file_of(np.zeros((1, 4, 8, 8), np.int64)), "are I64"),
        (file_of(np.full((1, 4, 8, 8), np.nan, np.float32)), "finite"), (bytes(MOST_BYTES + 1), "at most 64 MB"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_sentence(data, said):
    with pytest.raises(ValueError, match=said) as error:
        decode(data)
    assert "\n" not in str(error.value)


def test_latents_of_videos_are_not_written():
    with pytest.raises(ValueError, match="16 channels"):
        encode(np.zeros((1, 1, 8, 8, 4), np.float32), {})


def test_names_stay_in_their_folder_and_nothing_is_overwritten(tmp_path):
    asked = [
        "latents/a",
        "../../etc/a",
        "/etc/a",
        "..",
        "",
        "latents/../a",
        "a\0b",
        "\\\\host\\a",
        "é" * 500,
        "latents/a",
    ]
    made = [keep(tmp_path / "out", "latents", one, ".latent", lambda path: path.open("x").close()) for one in asked]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(asked)
    assert {path.parent for path in files} == {tmp_path / "out/latents"}
    assert [made[0]["filename"], made[-1]["filename"]] == ["a_00000.latent", "a_00001.latent"]
    assert made[0] | {"filename": ""} == {"filename": "", "subfolder": "latents", "type": "output"}
    for one in (
        "latents/../x.latent",
        "x.latent",
        "latents/a_00000",
        "checkpoints/a.latent",
        "latents/",
        "latents/z.latent",
    ):
        with pytest.raises(KeyError):
            written_latent(tmp_path / "out", one, 9)
    assert stem("../..") == "_"


def test_a_latent_is_saved_and_loaded_by_the_command_line(tmp_path):
    host = PlainHost([], tmp_path / "in", tmp_path / "out")
    (shown,) = run_graph(save_graph("mine"), host)["2"]["latents"]
    path = tmp_path / "out/latents" / shown["filename"]
    with safetensors.safe_open(path, "numpy") as opened:
        assert json.loads(opened.metadata()["prompt"]) == save_graph("mine")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.latent").write_bytes(encode(LATENTS, {}))
    (tmp_path / "in/c.latent").write_bytes(b"no")
    (tmp_path / "in/d.png").write_bytes(b"no")
    assert host.names("latent") == ["b.latent", "c.latent"]
    assert host.names("input") == ["d.png"]
    again = save_graph("again") | {"1": {"class_type": "LoadLatent", "inputs": {"latent": "b.latent"}}}
    (shown,) = run_graph(again, host)["2"]["latents"]
    np.testing.assert_allclose(decode((tmp_path / "out/latents" / shown["filename"]).read_bytes()), LATENTS, rtol=3e-7)
    again["1"]["inputs"]["latent"] = "c.latent"
    with pytest.raises(NodeError, match="no safetensors file"):
        run_graph(again, host)
    for name in "../out/latents/mine_00000.latent", "d.png", str(path), "e.latent":
        again["1"]["inputs"]["latent"] = name
        with pytest.raises(GraphError, match="there is no"):
            run_graph(again, host)


def test_a_latent_goes_through_the_server(serving, tmp_path):
    with serving(run_workflow) as client, client.websocket_connect("/ws?clientId=me", headers=SOCKET) as socket:
        sent = form(image=("../b.latent", encode(LATENTS, {})))
        assert client.post("/upload/image", **sent, headers=OWN).json()["name"] == "b.latent"
        assert client.post("/upload/image", **form(image=("c.latent", b"no")), headers=OWN).status_code == 422
        api = save_graph("latents/x") | {"1": {"class_type": "LoadLatent", "inputs": {"latent": "b.latent"}}}
        client.post("/prompt", json={"prompt": api, "client_id": "me"})
        (shown,) = until(socket, "executed")[-1]["data"]["output"]["latents"]
        answer = client.get("/view", params=shown)
        assert answer.headers["content-type"] == "application/octet-stream"
        np.testing.assert_allclose(decode(answer.content), LATENTS, rtol=3e-7)
        assert (tmp_path / "out/latents/x_00000.latent").read_bytes() == answer.content
        name = "latents/x_00000.latent [output]"
        listed = client.get("/object_info/LoadLatent").json()["LoadLatent"]["input"]["required"]["latent"][0]
        assert listed == ["b.latent", name]
        until(socket, "execution_success")
        api["1"]["inputs"]["latent"] = name
        assert client.post("/prompt", json={"prompt": api, "client_id": "me"}).json()["node_errors"] == {}
        assert until(socket, "executed")[-1]["data"]["output"]["latents"][0]["filename"] == "x_00001.latent"
        assert client.get("/view?filename=..%2F..%2Fb.latent&type=output").status_code == 404
        api["1"] = {"class_type": "LoadImage", "inputs": {"image": "b.latent"}}
        api["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        assert client.post("/prompt", json={"prompt": api}).status_code == 400


class KeepingHost(ModelHost):
    """A host that keeps files in a folder."""

    def __init__(self, pipe, outputs):
        super().__init__(pipe)
        self.outputs = outputs

    def keep(self, *about):
        return keep(self.outputs, *about)


def test_a_saved_checkpoint_is_the_model(tmp_path):
    pipe = models.pipeline()
    save = {"class_type": "CheckpointSave",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "filename_prefix": "../mine"}}  # fmt: skip
    api = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny"}}, "2": save}
    shown = run_graph(api, KeepingHost(pipe, tmp_path))
    assert shown == {"2": {"text": ["checkpoints/_mine_00000.safetensors"]}}
    again = sdjax.load(tmp_path / "checkpoints/_mine_00000.safetensors", dtype="float32")
    assert again.config.unet == pipe.config.unet
    assert np.array_equal(
        np.asarray(again.params["unet"]["conv_in"]["kernel"]), pipe.params["unet"]["conv_in"]["kernel"]
    )


def test_loras_are_merged_each_into_its_part():
    pipe = models.pipeline()
    adapter = random_adapter(pipe, 2, 2)
    text = "text/" + next(one for one in flatten_dict(pipe.params["text"], sep="/") if one.endswith("fc1/kernel"))
    shape = flatten_dict(pipe.params, sep="/")[text].shape
    adapter[text] = LowRank(np.ones((shape[0], 1), np.float32), np.ones((1, shape[1]), np.float32))
    merged = pipe.with_adapters((adapter, Strength(0.5, 0.25))).params
    model = Model(pipe, (AdapterUse(adapter, Strength(0.5, 0.0)),))
    clip = Clip(pipe, (AdapterUse(adapter, Strength(0.0, 0.25)),))
    made = whole(model, clip, Vae(pipe)).params
    for part in "unet", "text", "vae":
        same = [
            np.array_equal(a, b) for a, b in zip(*map(models.jax.tree.leaves, (made[part], merged[part])), strict=True)
        ]
        assert all(same), part


def test_what_weights_cannot_hold_is_refused():
    pipe = models.pipeline()
    with pytest.raises(ValueError, match="weights alone, and nodes added a schedule that ends without signal"):
        whole(Model(pipe, zero_terminal_snr=True), Clip(pipe), Vae(pipe))
