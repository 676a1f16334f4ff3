"""ComfyUI's interface over HTTP and its websocket. The graphs only invert pictures: no model is loaded."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from shelf import HOME
from test_comfy_graphs import graph

from sdjax.pictures.image import encode_png
from sdjax.serve.comfy.nodes import NODES
from sdjax.serve.comfy.pictures import rgba_png, with_opacity
from sdjax.serve.comfy.task import run_workflow
from sdjax.serve.comfy.user_files import UserFiles
from sdjax.serve.multipart import read_form

OWN = {"origin": HOME}
SOCKET = {**OWN, "host": HOME.removeprefix("http://")}


def until(socket, kind):
    """Returns all messages up to one of a kind. Fails at the end of a run without it, and after a minute of silence."""
    out = []
    while not out or out[-1]["type"] != kind:
        assert not out or out[-1]["type"] not in ("execution_error", "execution_interrupted"), out[-1]
        receiving = socket.portal.start_task_soon(socket._send_rx.receive)  # receive_text would wait for ever
        out.append(json.loads(receiving.result(60)["text"]))
    return out


def form(**parts):
    """Returns the arguments of a request with a form: texts, and (name, bytes) for files."""
    return {"files": {name: part if isinstance(part, tuple) else (None, part) for name, part in parts.items()}}


def test_a_prompt_from_its_queue_to_its_picture(serving):
    with serving(run_workflow) as client, client.websocket_connect("/ws?clientId=me", headers=SOCKET) as socket:
        assert json.loads(socket.receive_text())["data"]["sid"] == "me"
        sent = {"prompt": graph(), "client_id": "me", "extra_data": {"extra_pnginfo": {"workflow": {"nodes": []}}}}
        answer = client.post("/api/prompt", json=sent).json()
        name = answer["prompt_id"]
        assert answer["node_errors"] == {}
        told = until(socket, "execution_success")
        kinds = [one["type"] for one in told]
        assert [one["data"]["node"] for one in told if one["type"] == "executing"] == ["1", "2", "3"]
        assert kinds.index("execution_start") < kinds.index("executing") < kinds.index("executed")
        assert "progress_state" in kinds
        (shown,) = client.get(f"/history/{name}").json()[name]["outputs"]["3"]["images"]
        assert shown == next(one["data"]["output"] for one in told if one["type"] == "executed")["images"][0]
        content = client.get("/view", params=shown).content
        with Image.open(io.BytesIO(content)) as made:
            assert json.loads(made.text["prompt"]) == {**graph()}
            assert json.loads(made.text["workflow"]) == {"nodes": []}
            assert (np.asarray(made) == [0, 255, 255]).all()
        assert (
            client.get("/api/jobs?status=completed").json()["jobs"][0]["preview_output"]["filename"]
            == shown["filename"]
        )
        assert client.get("/queue").json() == {"queue_running": [], "queue_pending": []}
        client.post("/prompt", json={"prompt": graph(), "client_id": "me"})
        again = until(socket, "execution_success")
        assert [one["data"]["nodes"] for one in again if one["type"] == "execution_cached"] == [["1"], ["2"], ["3"]]


def test_a_wrong_graph_is_refused_node_by_node(serving):
    with serving(run_workflow) as client:
        answer = client.post("/prompt", json={"prompt": graph(x={"class_type": "KSamplr", "inputs": {}})})
        assert answer.status_code == 400
        assert "KSampler" in answer.json()["node_errors"]["x"]["errors"][0]["message"]
        assert client.post("/prompt", json={"prompt": 3}).status_code == 400


def test_an_uploaded_picture_with_its_mask_is_read_by_a_graph(serving):
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[:8, :, 3] = 0
    with serving(run_workflow) as client, client.websocket_connect("/ws?clientId=me", headers=SOCKET) as socket:
        plain = encode_png(pixels[..., :3].copy())
        first = client.post("/upload/image", **form(image=("../../a.png", plain)), headers=OWN).json()
        assert first == {"name": "a.png", "subfolder": "", "type": "input"}
        reference = json.dumps({"filename": "a.png", "type": "input"})
        sent = form(image=("a.png", rgba_png(pixels)), original_ref=reference)
        masked = client.post("/upload/mask", **sent, headers=OWN).json()["name"]
        assert masked == "a (1).png"
        assert masked in client.get("/object_info/LoadImage").json()["LoadImage"]["input"]["required"]["image"][0]
        load = {"class_type": "LoadImage", "inputs": {"image": masked}}
        show = {"class_type": "MaskPreview", "inputs": {"mask": ["1", 1]}}
        client.post("/prompt", json={"prompt": {"1": load, "2": show}, "client_id": "me"})
        told = until(socket, "executed")[-1]["data"]["output"]["images"][0]
        assert told["type"] == "temp"
        mask = with_opacity(client.get("/view", params=told).content)
        assert (mask[:8, :, 0] == 255).all()
        assert (mask[8:, :, 0] < 60).all()


def test_a_foreign_page_cannot_upload(serving):
    with serving(run_workflow) as client:
        sent = form(image=("a.png", encode_png(np.zeros((8, 8, 3), np.uint8))))
        assert client.post("/upload/image", **sent).status_code == 403
        assert client.post("/upload/image", **sent, headers={"origin": "http://evil.example"}).status_code == 403


OUTSIDE = (
    "/view?filename=../../etc/passwd&type=input", "/view?filename=x&type=temp", "/comfy/../pyproject.toml",
    "/comfy/%2e%2e/x", "/userdata/..%2F..%2Fetc%2Fpasswd",
)  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_is_read(serving, path):
    with serving(run_workflow) as client:
        assert client.get(path).status_code == 404


def test_the_editors_files_and_settings_are_kept(serving):
    with serving(run_workflow) as client:
        assert "Comfy.Theme" not in client.get("/settings").json()
        client.post("/api/settings/Comfy.Theme", json="dark")
        assert client.get("/comfy/api/settings").json()["Comfy.Theme"] == "dark"
        client.post("/userdata/workflows%2Fa.json?full_info=true", content=b"{}")
        assert client.get("/userdata?dir=workflows").json() == ["a.json"]
        assert client.get("/userdata/workflows%2Fa.json").content == b"{}"
        assert client.post("/userdata/workflows%2Fa.json?overwrite=false", content=b"1").status_code == 409
        assert client.delete("/userdata/workflows%2Fa.json").status_code == 204
        assert client.get("/userdata/workflows%2Fa.json").status_code == 404


def test_what_the_editor_asks_for_is_there(serving):
    with serving(run_workflow) as client:
        info = client.get("/api/object_info").json()
        assert set(info) == set(NODES)
        sampler = info["KSampler"]
        assert sampler["input"]["required"]["seed"] == [
            "INT", {"default": 0, "min": 0, "max": 2**64 - 1, "step": 1, "control_after_generate": True},
        ]  # fmt: skip
        assert "builtin" in info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
        for path in ("system_stats", "embeddings", "models", "models/loras", "extensions", "features", "users", "i18n",
                     "queue", "history", "prompt", "jobs"):  # fmt: skip
            assert client.get(f"/api/{path}").status_code == 200, path
        assert client.get("/models/passwords").status_code == 404


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", b""), ("multipart/form-data", b""), ("multipart/form-data; boundary=x", b"--y"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n"), ("multipart/form-data; boundary=x", b"--x\r\na\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x" + b"\r\n--x" * 100 + b"--"),
    ],
)  # fmt: skip
def test_damaged_forms_are_refused(kind, body):
    with pytest.raises(ValueError, match="form|multipart"):
        read_form(body, kind)


def test_names_of_files_never_become_paths(tmp_path):
    files = UserFiles(tmp_path / "kept")
    files.write("../../evil", b"1")
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "kept"] * 2
    assert UserFiles(tmp_path / "kept").read("../../evil") == b"1"
    with pytest.raises(ValueError, match="300 printable"):
        files.write("a" * 301, b"")
