"""The application: who may ask what, what requests may hold, our own interface. Tasks are small functions."""

import base64
import json
import threading

import numpy as np
import pytest
from shelf import HOME, PICTURE

from sdjax.pictures.image import encode_png
from sdjax.serve import bodies
from sdjax.serve.server import Limits, ServerSettings
from sdjax.serve.uploads import UnknownUpload, Uploads

PNG = encode_png(PICTURE)
AS_TEXT = base64.b64encode(PNG).decode()


def events(text):
    """Returns the events of a text/event-stream."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event:")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def test_a_job_from_its_request_to_its_picture(serving):
    client = serving()
    answer = client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {"prompt": "a cat"}})
    assert answer.status_code == 202
    told = events(client.get(f"/api/v1/jobs/{answer.json()['id']}/events").text)
    assert told[-1][0] == "done"
    job = client.get(f"/api/v1/jobs/{answer.json()['id']}").json()
    assert (job["state"], job["task"], job["notes"], job["error"]) == ("done", "txt2img", ["painted"], None)
    (picture,) = job["pictures"]
    assert (picture["seed"], picture["size"]) == (7, [8, 8])
    content = client.get(picture["url"])
    assert content.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(bodies.open_input(content.content, "image"), PICTURE)
    (record,) = client.get("/api/v1/history").json()["records"]
    assert record["name"] == picture["name"]
    assert record["settings"]["prompt"] == "a cat"
    assert client.delete(picture["url"]).status_code == 200
    assert client.get("/api/v1/history").json()["records"] == []
    assert client.get(picture["url"]).status_code == 404


def test_a_seed_that_javascript_cannot_hold_keeps_its_digits(serving):
    client, seed = serving(), 2**63 + 1
    for given in seed, str(seed):
        name = client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {"seed": given}}).json()["id"]
        told = events(client.get(f"/api/v1/jobs/{name}/events").text)
        assert told[0][1]["settings"]["seed"] == str(seed)
        assert client.get(f"/api/v1/jobs/{name}").json()["pictures"][0]["seed"] == str(seed)
    assert client.get("/api/v1/history").json()["records"][0]["seed"] == str(seed)
    refused = client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {"seed": "9" * 20}})
    assert (refused.status_code, "seed" in refused.json()["error"]) == (422, True)


def test_events_come_while_the_job_runs(serving):
    go = threading.Event()

    def slowly(work, context):
        context.progress(1, 4)
        assert go.wait(10)
        context.progress(4, 4)
        return [context.finish(PICTURE, {"seed": 1}, {})]

    client = serving(slowly)
    name = client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {}}).json()["id"]
    threading.Timer(0.1, go.set).start()
    told = events(client.get(f"/api/v1/jobs/{name}/events").text)
    assert told[0][0] == "state"
    assert [kind for kind, _ in told][-2:] == ["picture", "done"]
    assert ("progress", {"done": 4, "total": 4}) in [
        (k, {n: d[n] for n in ("done", "total") if n in d}) for k, d in told
    ]


def test_cancelling_ends_the_job(serving):
    started = threading.Event()

    def forever(work, context):
        started.set()
        while not context.cancelled():
            context.progress(0, 1)
        context.check()

    client = serving(forever)
    name = client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {}}).json()["id"]
    assert started.wait(10)
    client.delete(f"/api/v1/jobs/{name}")
    assert events(client.get(f"/api/v1/jobs/{name}/events").text)[-1][0] == "cancelled"


def test_a_full_queue_says_when_to_come_again(serving):
    go = threading.Event()
    client = serving(lambda work, context: go.wait(10) and [], waiting=1)
    answers = [client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {}}) for _ in range(5)]
    go.set()
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert "try again" in answers[-1].json()["error"]


def test_an_inner_error_tells_nothing_about_the_inside(serving):
    def break_down(work, context):
        raise RuntimeError("secret /home/me/model.ckpt")

    client = serving(break_down)
    name = client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {}}).json()["id"]
    kind, data = events(client.get(f"/api/v1/jobs/{name}/events").text)[-1]
    assert kind == "failed"
    assert "secret" not in data["error"]
    assert "RuntimeError" in data["error"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::2]:7860"])
def test_a_foreign_name_for_this_computer_is_refused(serving, host):
    assert serving().get("/api/v1/status", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "[::1]:7860"])
def test_own_names_pass(serving, host):
    assert serving().get("/api/v1/history", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "https://127.0.0.1.evil.example:7860"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/v1/jobs"), ("DELETE", "/api/v1/jobs/x")])
def test_foreign_pages_change_nothing(serving, headers, method, path):
    answer = serving().request(method, path, json={}, headers=headers)
    assert answer.status_code == 403


def test_our_own_page_and_named_pages_may(serving):
    client = serving(origins=("https://studio.example",))
    for origin in HOME, "https://studio.example":
        assert client.post("/api/v1/tokens", json={"prompt": ""}, headers={"Origin": origin}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_foreign_form_can_send_needs_more(serving, kind):
    client = serving()
    body = {"content": b'{"prompt": ""}', "headers": {"Content-Type": kind}}
    assert client.post("/api/v1/tokens", **body).status_code == 403
    body["headers"]["Origin"] = HOME
    assert client.post("/api/v1/tokens", **body).status_code == 200
    body["headers"] = {"Content-Type": kind, "Authorization": "Bearer any"}
    assert client.post("/api/v1/tokens", **body).status_code == 200


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        (basic("any:secret"), 200),
        (basic("any:wrong"), 401),
        ({"Authorization": "Basic !!"}, 401),
    ],
)
def test_a_token_is_asked_of_everybody(serving, headers, status):
    client = serving(host="0.0.0.0", token="secret")
    assert client.get("/api/v1/history", headers={"Host": "any.example", **headers}).status_code == status
    for path in "/", "/internal/ping":  # the page, which asks for the token; and whether the server lives
        assert client.get(path, headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize(("text", "status"), [("me:pass:word", 200), ("me:pass", 401), ("you:pass:word", 401)])
def test_a_user_and_a_password(serving, text, status):
    client = serving(host="0.0.0.0", user=("me", "pass:word"))
    assert client.get("/", headers=basic(text)).status_code == status
    assert client.get("/").headers["www-authenticate"].startswith("Basic")


def test_others_can_reach_only_a_guarded_server():
    with pytest.raises(ValueError, match="set a token or a password first"):
        ServerSettings(host="0.0.0.0")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[1]", "is a JSON object"),
        (b"{", "no JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"task": NaN}', "finite"),
        (b'{"task": "a", "task": "b"}', "given twice"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": [' + b"1," * 300_000 + b"1]}", "at most 200000 values"),
        (b'{"a": ' + b"1" * 5000 + b"}", "thousands of digits"),
        (b'{"task": 3}', "task is a text"),
        (b'{"task": "txt2img", "settings": []}', "settings is an object"),
        (b'{"task": "txt2img", "priority": true}', "priority is a whole number"),
        (b'{"task": "txt2img", "colour": 1}', "'colour' is unknown"),
        (b'{"task": "txt2img", "inputs": {"image": "http://10.0.0.1/a.png"}}', "fetches nothing"),
        (b'{"task": "txt2img", "inputs": {"image": "file:///etc/passwd"}}', "fetches nothing"),
        (b'{"task": "txt2img", "inputs": {"image": "upload:../../x"}}', "the upload is unknown"),
        (b'{"task": "txt2img", "inputs": {"image": "@@@@"}}', "no base64"),
        (b'{"task": "txt2img", "inputs": {"image": "AAAA"}}', ""),
        (b'{"task": "no", "settings": {}}', "unknown task"),
    ],
)
def test_bad_bodies_are_refused_in_a_sentence(serving, body, said):
    answer = serving().post("/api/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert said in answer.json()["error"]
    assert "/" not in answer.json()["error"].replace("http://", "")


def test_bodies_are_bounded(serving):
    client = serving(limits=Limits(json=100, picture=50))
    answer = client.post("/api/v1/jobs", json={"task": "x" * 200})
    assert answer.status_code == 413
    assert client.post("/api/v1/uploads", content=PNG).status_code == 413


def test_an_upload_is_used_by_its_id(serving):
    seen = {}

    def look(work, context):
        seen.update(work.inputs)
        return []

    client = serving(look)
    name = client.post("/api/v1/uploads", content=PNG, headers={"Content-Type": "image/png"}).json()["id"]
    inputs = {"image": f"upload:{name}", "mask": f"data:image/png;base64,{AS_TEXT}"}
    job = client.post("/api/v1/jobs", json={"task": "txt2img", "inputs": inputs}).json()["id"]
    assert events(client.get(f"/api/v1/jobs/{job}/events").text)[-1][0] == "done"
    np.testing.assert_array_equal(seen["image"], PICTURE)
    assert seen["mask"].shape == (8, 8)
    assert client.post("/api/v1/uploads", content=b"no picture").status_code == 422


def test_uploads_forget_the_oldest():
    uploads = Uploads(10)
    first, second = uploads.add(b"12345"), uploads.add(b"12345")
    assert uploads.get(first) == b"12345"
    uploads.add(b"1234")  # the second was used longest ago
    assert uploads.get(first) == b"12345"
    with pytest.raises(UnknownUpload):
        uploads.get(second)


def test_a_picture_says_its_settings(serving):
    texts = {
        "parameters": "a boat\nNegative prompt: fog\nSteps: 9, Sampler: Euler a, CFG scale: 5, Seed: 3, Size: 64x64"
    }
    client = serving()
    answer = client.post("/api/v1/read-picture", content=encode_png(PICTURE, texts)).json()
    assert answer["settings"].items() >= {"prompt": "a boat", "num_steps": 9, "seed": 3}.items()
    assert client.post("/api/v1/read-picture", content=b"").status_code == 400
    for own in {"task": "upscale", "upscaler": {"name": "lanczos"}}, {"task": "hint", "preprocessor": "canny"}:
        answer = client.post("/api/v1/read-picture", content=encode_png(PICTURE, {"sdjax": json.dumps(own)}))
        assert answer.json()["task"] == own["task"]


@pytest.mark.parametrize("said", [False, True])
def test_prompts_are_in_the_log_only_if_asked_for(serving, caplog, said):
    caplog.set_level("INFO", "sdjax.serve")
    client = serving(log_prompts=said)
    name = client.post("/api/v1/jobs", json={"task": "txt2img", "settings": {"prompt": "a secret"}}).json()["id"]
    events(client.get(f"/api/v1/jobs/{name}/events").text)
    assert name in caplog.text
    assert ("a secret" in caplog.text) == said


def test_tokens_are_counted_as_the_encoder_counts_them(serving):
    client = serving()
    assert client.post("/api/v1/tokens", json={"prompt": "a (cat:1.2)"}).json() == {
        "tokens": 2, "chunks": 1, "limit": 75,
    }  # fmt: skip
    long = client.post("/api/v1/tokens", json={"prompt": "cat " * 80}).json()
    assert (long["tokens"], long["chunks"], long["limit"]) == (80, 2, 150)


@pytest.mark.parametrize(
    "path", ["/api/v1/pictures/..%2Fstate%2Fqueue", "/api/v1/pictures/%2Fetc%2Fpasswd", "/api/v1/jobs/x"]
)
def test_unknown_names_are_404(serving, path):
    assert serving().get(path).status_code == 404


def test_what_is_not_there_is_said_with_what_is(serving):
    client = serving(port=1)
    assert "/api/v1/" in client.get("/api/v1/pictures").json()["error"]
    assert client.put("/api/v1/jobs").json()["error"] == "this path takes requests of another method"
    for wrong in {}, {"text": "a cat"}, {"prompt": 3}, {"prompt": "a", "more": 1}:
        answer = client.post("/api/v1/tokens", json=wrong)
        assert (answer.status_code, "the body is" in answer.json()["error"]) == (400, True)
    answer = client.get("/", headers={"Host": "evil.example"})
    assert answer.json()["error"].endswith("such as http://127.0.0.1:7860")  # where this client is connected


def test_the_status_says_whether_the_programs_are_there(serving):
    client = serving()
    assert client.get("/api/v1/status").json()["warmed"] is False


def test_all_answers_say_that_their_kind_is_meant(serving):
    client = serving()
    for path in "/", "/api/v1/history", "/nothing":
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
