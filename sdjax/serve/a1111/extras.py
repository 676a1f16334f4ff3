"""The routes about pictures that exist: enlarging them, reading their texts, making hints."""

import base64
from typing import Any

import numpy as np
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sdjax import pictures
from sdjax.checks.arguments import number, whole
from sdjax.pictures.image import encode_png
from sdjax.pictures.metadata import infotext
from sdjax.pictures.metadata.texts import read_texts
from sdjax.serve.a1111 import fields, units
from sdjax.serve.a1111.generation import Generation
from sdjax.serve.a1111.requests import fitted
from sdjax.serve.bodies import Refused, file_from_text, open_input, read_json
from sdjax.serve.engine import Work
from sdjax.serve.jobs_api import client_of

NONE = (None, "", "None")
FILTERS = {"Lanczos": "lanczos", "Nearest": "nearest"}
ENLARGING = {
    "resize_mode": 0, "upscaling_resize": 2.0, "upscaling_resize_w": 512, "upscaling_resize_h": 512,
    "upscaling_crop": True, "upscaler_1": "None", "show_extras_results": True,
}  # fmt: skip
NOT_DONE = {
    "gfpgan_visibility": 0,
    "codeformer_visibility": 0,
    "codeformer_weight": 0,
    "extras_upscaler_2_visibility": 0,
}
MOST = 64  # pictures of one request
LONGEST = 8192  # pixels of an enlarged side


class Extras:
    """The routes' functions."""

    def __init__(self, generation: Generation) -> None:
        self.generation, self.server = generation, generation.server

    async def single(self, request: Request) -> Response:
        """Enlarges a picture."""
        given = await read_json(self.server, request)
        images, said = await self._enlarged(request, given, [given.pop("image", None)])
        return JSONResponse({"html_info": said, "image": images[0]})

    async def batch(self, request: Request) -> Response:
        """Enlarges pictures."""
        given = await read_json(self.server, request)
        several = given.pop("imageList", None)
        if not isinstance(several, list) or not 1 <= len(several) <= MOST:
            raise Refused(f"imageList is a list of 1 to {MOST} pictures", 422)
        texts = [one.get("data") if isinstance(one, dict) else None for one in several]
        images, said = await self._enlarged(request, given, texts)
        return JSONResponse({"html_info": said, "images": images})

    async def _enlarged(self, request: Request, given: dict[str, Any], texts: list[Any]) -> tuple[list[str], str]:
        for name, without in NOT_DONE.items():
            if given.pop(name, without) not in (without, None):
                raise Refused(f"{name}: there is no such network here; leave it out", 422)
        given.pop("upscaler_2", None)
        given.pop("upscale_first", None)
        own, warnings = fields.read(given, ENLARGING)
        name = own["upscaler_1"]
        out = []
        for text in texts:
            content = file_from_text(self.server, text, "image")
            picture = await to_thread.run_sync(open_input, content, "image")
            size = self._size(own, picture)
            if name in NONE:
                made = await to_thread.run_sync(pictures.resize, picture, *size)
            else:
                upscaler = FILTERS.get(name) or self.server.library.find("upscaler", str(name)).name
                times = max(1.0, max(size[0] / picture.shape[0], size[1] / picture.shape[1]))
                work = Work(
                    "upscale", {"upscaler": upscaler, "times": times}, {"image": picture}, client=client_of(request),
                    save=False
                )  # fmt: skip
                job = await self.generation.following.finished(request, work)
                if not job.pictures:
                    raise Refused("the request was interrupted", 500)
                made = job.pictures[0].pixels
            out.append(_as_text(await to_thread.run_sync(_cut, made, *size, own)))
        return out, "; ".join(warnings)

    def _size(self, own: dict[str, Any], picture: np.ndarray) -> tuple[int, int]:
        if whole("resize_mode", own["resize_mode"], 0, 1) == 0:
            times = number("upscaling_resize", own["upscaling_resize"], 1 / 16, 16)
            size = tuple(max(1, round(side * times)) for side in picture.shape[:2])
        else:
            size = tuple(whole(name, own[name], 1) for name in ("upscaling_resize_h", "upscaling_resize_w"))
        if max(size) > LONGEST:
            raise Refused(f"a side has at most {LONGEST} pixels; {size[1]} x {size[0]} are asked for", 422)
        return size[0], size[1]

    async def png_info(self, request: Request) -> Response:
        """Reads a picture's texts."""
        given = await read_json(self.server, request)
        content = file_from_text(self.server, given.get("image"), "image")
        texts = await to_thread.run_sync(read_texts, content)
        found = texts.get("parameters", "")
        prompt, negative, pairs = infotext.split(found) if found else ("", "", {})
        parameters = {"Prompt": prompt, "Negative prompt": negative, **pairs} if found else {}
        return JSONResponse({"info": found, "items": texts, "parameters": parameters})

    async def interrogate(self, request: Request) -> Response:
        """Refuses: there is no network that describes pictures."""
        raise Refused("interrogate: there is no network here that describes pictures", 501)

    async def detect(self, request: Request) -> Response:
        """Makes hints of pictures for ControlNets."""
        given = await read_json(self.server, request)
        module, texts = (
            given.get("controlnet_module", "none"),
            given.get("controlnet_input_images", given.get("controlnet_images", [])),
        )
        if not isinstance(texts, list) or not 1 <= len(texts) <= MOST:
            raise Refused(f"controlnet_input_images is a list of 1 to {MOST} pictures", 422)
        thresholds = {f"threshold_{end}": given.get(f"controlnet_threshold_{end}") for end in "ab"}
        own = units.preprocessing(self.server, module, thresholds)
        settings: dict[str, Any] = {"preprocessor": module, "options": own["options"], "annotators": own["annotators"]}
        if given.get("controlnet_processor_res", -1) not in (-1, None):
            settings["resolution"] = given["controlnet_processor_res"]
        images = []
        for text in texts:
            content = file_from_text(self.server, text, "controlnet_input_images")
            inputs = {"image": await to_thread.run_sync(open_input, content, "image")}
            job = await self.generation.following.finished(
                request, Work("hint", settings, inputs, client=client_of(request), save=False)
            )
            images += [base64.b64encode(one.png).decode() for one in job.pictures]
        return JSONResponse({"images": images, "info": "Success"})


def _cut(picture: np.ndarray, height: int, width: int, own: dict[str, Any]) -> np.ndarray:
    """Returns the enlarged picture in the size asked for: cut to its shape, or stretched."""
    if picture.shape[:2] == (height, width):
        return picture
    return fitted(picture, height, width, 1 if own["upscaling_crop"] else 0)


def _as_text(picture: np.ndarray) -> str:
    return base64.b64encode(encode_png(picture)).decode()
