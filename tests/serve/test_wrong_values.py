"""Every field of every interface with values of wrong kinds: the answer is a sentence, and never an error inside."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sdjax.pictures.image import encode_png
from sdjax.serve.a1111 import extras, fields, options, units
from sdjax.serve.engine import Engine, tasks
from sdjax.tasks import settings

PNG = base64.b64encode(encode_png(np.zeros((64, 64, 3), np.uint8))).decode()
VALUES = [True, -1, 1.5, 10**30, 1e300, "", "x\0", "\ud800", [], [[1]], [None, "x"], {}, {"a": {"args": [[]]}}, PNG]
STRUCTURED = {
    "controls": {"network": "builtin-edges", "hint": "image"}, "image_prompts": {},
    "regions": {"prompt": "x", "place": "mask"}, "references": {"picture": "image"},
}  # fmt: skip
OF_ENTRIES = (
    "network", "hint", "mask", "hidden", "annotators", "weight", "start", "end", "mode", "resize", "preprocess",
    "options", "adapter", "image", "negative", "encoder", "blocks", "prompt", "place", "picture", "fidelity", "method",
    "negative_prompt",
)  # fmt: skip
OF_OPENAI = ("prompt", "n", "size", "model", "response_format", "quality", "style", "user", "settings", "background")
OF_DETECT = ("controlnet_module", "controlnet_input_images", "controlnet_processor_res", "controlnet_threshold_a")


def of_a1111(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in (*fields.TXT2IMG, *fields.UNUSED):
        yield "/sdapi/v1/txt2img", {"enable_hr": name.startswith("hr_"), name: value}
    for name in fields.IMG2IMG:
        yield "/sdapi/v1/img2img", {"init_images": [PNG], "mask": PNG, name: value}
    for name in units.UNIT:
        unit = {"model": "builtin-edges", "image": PNG, "module": "canny", name: value}
        yield "/sdapi/v1/txt2img", {"alwayson_scripts": {"controlnet": {"args": [unit]}}}
    for name in (*units.DETAILER, *units.IGNORED):
        yield "/sdapi/v1/txt2img", {"alwayson_scripts": {"ADetailer": {"args": [{"ad_model": "x", name: value}]}}}
    for name in (*extras.ENLARGING, *extras.NOT_DONE, "image"):
        yield "/sdapi/v1/extra-single-image", {"image": PNG, "upscaling_resize": 1, name: value}
    for name in (*options.DEFAULTS, *options.FIXED):
        yield "/sdapi/v1/options", {name: value}
        yield "/sdapi/v1/txt2img", {"override_settings": {name: value}}
    for name in OF_DETECT:
        yield "/controlnet/detect", {"controlnet_module": "canny", "controlnet_input_images": [PNG], name: value}
    yield "/sdapi/v1/extra-batch-images", {"imageList": value}
    yield "/sdapi/v1/png-info", {"image": value}


def of_others(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in OF_OPENAI:
        yield "/v1/images/generations", {"prompt": "x", name: value}
    for name in "prompt", "client_id", "extra_data", "number", "front":
        yield "/prompt", {"prompt": {}, name: value}
    for name in "preprocessor", "input", "options", "annotators", "resolution":
        yield "/api/v1/hints", {"preprocessor": "canny", "input": PNG, name: value}
    for task, drawn in tasks.DRAWN.items():
        for name in (*(settings.known_names() if task == "txt2img" else drawn.own), *STRUCTURED, "loras", "vae"):
            yield "/api/v1/jobs", {"task": task, "settings": {name: value}}
    for kind, right in STRUCTURED.items():
        for name in OF_ENTRIES:
            yield "/api/v1/jobs", {"task": "txt2img", "settings": {kind: [{**right, name: value}]}}
    for name in "task", "settings", "inputs", "model", "priority", "save":
        yield "/api/v1/jobs", {"task": "txt2img", name: value}


@pytest.mark.slow  # several thousand requests
@pytest.mark.parametrize("interface", [of_a1111, of_others])
def test_wrong_values_are_answered_by_a_sentence(interface, serving, monkeypatch) -> None:
    def check(self: Engine, work: Any) -> None:
        """Refuses every work, after the checks of those that wait."""
        tasks.check(work, self.library)
        raise ValueError("it would be made")

    monkeypatch.setattr(Engine, "submit", check)
    with serving() as client:
        for value in VALUES:
            for path, body in interface(value):
                if path == "/api/v1/jobs":
                    body = {"inputs": {"image": PNG, "mask": PNG}, **body}
                answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
                assert answer.status_code < 500, (path, body, answer.text)
                if answer.status_code >= 400:
                    found = answer.json()["error"]
                    assert found["message"] if isinstance(found, dict) else found
