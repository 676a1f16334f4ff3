"""OpenAI's interface: forms, masks by transparency, answers and errors in its form. Tasks are small functions."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from shelf import HOME, PICTURE

from sdjax.pictures.image import encode_png
from sdjax.serve.bodies import Refused, open_input
from sdjax.serve.multipart import read_form

PNG = encode_png(PICTURE)
KEY = {"Authorization": "Bearer any"}


def holed(left):
    """Returns a PNG whose part from a column on is transparent."""
    pixels = np.dstack([PICTURE, np.full((8, 8), 255, np.uint8)])
    pixels[:, left:, 3] = 0
    out = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def asking(serving):
    works = []

    def keep(work, context):
        works.append(work)
        return [context.finish(PICTURE, {"seed": k}, {}) for k in range(work.settings["num_images"])]

    return serving(keep), works


def test_generations(asking):
    client, works = asking
    body = {"prompt": "a cat", "n": 2, "size": "64x128", "settings": {"num_steps": 3, "seed": 5}, "quality": "hd"}
    answer = client.post("/v1/images/generations", json=body).json()
    assert [open_input(base64.b64decode(one["b64_json"]), "image").shape for one in answer["data"]] == [(8, 8, 3)] * 2
    assert works[0].task == "txt2img"
    assert works[0].settings == {
        "seed": 5, "prompt": "a cat", "num_images": 2, "width": 64, "height": 128, "num_steps": 3,
    }  # fmt: skip


def test_an_address_instead_of_bytes(asking):
    client, _ = asking
    answer = client.post("/v1/images/generations", json={"prompt": "a cat", "response_format": "url"}).json()
    address = answer["data"][0]["url"]
    assert address.startswith(f"{HOME}/api/v1/pictures/")
    np.testing.assert_array_equal(open_input(client.get(address).content, "image"), PICTURE)


@pytest.mark.parametrize("apart", [False, True])
def test_the_transparent_part_is_repainted(asking, apart):
    client, works = asking
    files = {"image": PNG, "mask": holed(5)} if apart else {"image": holed(5)}
    answer = client.post("/v1/images/edits", files=files, data={"prompt": "a cat", "n": "1"}, headers=KEY)
    assert answer.status_code == 200
    assert works[0].task == "inpaint"
    mask = works[0].inputs["mask"]
    assert (mask[:, :5] == 0).all()
    assert (mask[:, 5:] == 255).all()


def test_without_a_hole_the_whole_picture_is_edited(asking):
    client, works = asking
    client.post("/v1/images/edits", files={"image": PNG}, data={"prompt": "a cat", "size": "64x64"}, headers=KEY)
    assert works[0].task == "img2img"
    assert works[0].inputs["image"].shape == (64, 64, 3)
    answer = client.post("/v1/images/edits", files={"image": PNG, "mask": PNG}, data={"prompt": "x"}, headers=KEY)
    assert "no transparent part" in answer.json()["error"]["message"]


def test_json_in_place_of_a_form(asking):
    client, works = asking
    body = {"image": base64.b64encode(PNG).decode(), "prompt": "a cat"}
    assert client.post("/v1/images/edits", json=body).status_code == 200
    np.testing.assert_array_equal(works[0].inputs["image"], PICTURE)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": 3}, 400),
        ({"n": 0}, 422),
        ({"n": 11}, 422),
        ({"size": "big"}, 400),
        ({"size": "1x" + "9" * 5000}, 400),
        ({"model": "dall-e-3"}, 404),
        ({"glow": 1}, 400),
        ({"settings": {"lora_dir": "/etc"}}, 422),
        ({"response_format": "gif"}, 400),
    ],
)
def test_errors_have_its_form(asking, body, status):
    client, works = asking
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert works == []


def test_models(asking):
    client, _ = asking
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["builtin", "builtin-inpainting"]
    assert client.get("/v1/models/builtin").json()["object"] == "model"
    assert client.get("/v1/models/gpt").status_code == 404


def form(*parts, boundary=b"xyz", end=b"--\r\n"):
    lines = [
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + content + b"\r\n"
        for name, content in parts
    ]
    return b"".join(lines) + b"--" + boundary + end


KIND = "multipart/form-data; boundary=xyz"


def test_a_form_keeps_every_byte():
    content = bytes(range(256)) + b"\r\n--xy\r\n\n--xyz-not-yet" + b"\r\n\r\n"
    parts = read_form(form((b"image", content), (b"prompt", "café".encode())), KIND)
    assert [one[:2] for one in parts] == [("image", content), ("prompt", "café".encode())]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", KIND),
        (form((b"a", b"1"), end=b""), KIND),
        (form((b"a", b"1")), "multipart/form-data"),
        (form((b"a", b"1")), "text/plain; boundary=xyz"),
        (b"--xyz\r\nno name\r\n\r\n1\r\n--xyz--\r\n", KIND),
        (b"--xyz\r\n" + b"a: b\r\n" * 10_000 + b"\r\n1\r\n--xyz--\r\n", KIND),
        (form(*[(b"a", b"1")] * 65), KIND),
        (b"x" + form((b"a", b"1")), KIND),
    ],
)
def test_other_forms_are_refused(body, kind):
    with pytest.raises(Refused):
        read_form(body, kind)
