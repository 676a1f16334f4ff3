"""OpenAI's interface for pictures, under /v1: generations, edits, variations and models.

Source: OpenAI's published API reference, and what the package openai sends and reads.
"""

import base64
import dataclasses
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdjax import pictures
from sdjax.checks.arguments import shown, whole
from sdjax.purpose import kind_of
from sdjax.serve.answers import refusal_of
from sdjax.serve.bodies import Refused, file_from_text, read_body, read_json
from sdjax.serve.engine import Work
from sdjax.serve.following import Following
from sdjax.serve.jobs_api import ROOT, client_of
from sdjax.serve.multipart import read_form
from sdjax.serve.server import Server

MOST = 10  # pictures of one request
FIELDS = ("model", "prompt", "n", "size", "response_format", "settings")
# Fields that change nothing here; any other field is refused
WITHOUT_EFFECT = (
    "user", "quality", "style", "moderation", "background", "output_format", "output_compression", "input_fidelity",
    "stream", "partial_images",
)  # fmt: skip
FILES = ("image", "mask")
STRENGTH = 0.75  # of an edit without a mask
VARIED = 0.6  # of a variation by a model that does not read pictures


def routes(server: Server) -> list[Route]:
    """Returns the routes."""
    images = Images(server)
    table: dict[str, tuple[str, Callable[[Request], Awaitable[Response]]]] = {
        "/v1/models": ("GET", images.models), "/v1/models/{name:path}": ("GET", images.model),
        "/v1/images/generations": ("POST", images.generations), "/v1/images/edits": ("POST", images.edits),
        "/v1/images/variations": ("POST", images.variations),
    }  # fmt: skip
    return [Route(path, _explained(call), methods=[method]) for path, (method, call) in table.items()]


def _explained(call: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Returns a route's function whose errors have OpenAI's form."""

    @functools.wraps(call)
    async def answer(request: Request) -> Response:
        try:
            return await call(request)
        except Exception as error:
            found = refusal_of(error)
            kind = "rate_limit_error" if found.status == 429 else "invalid_request_error"
            told = {"message": found.sentence, "type": kind if found.status < 500 else "server_error", "param": None}
            return JSONResponse({"error": {**told, "code": None}}, found.status, dict(found.headers))

    return answer


@dataclasses.dataclass
class Form:
    """A request: its fields and the bytes of its pictures."""

    fields: dict[str, Any]
    files: dict[str, bytes]


class Images:
    """The routes' functions."""

    def __init__(self, server: Server) -> None:
        self.server, self.following = server, Following(server)

    async def models(self, request: Request) -> Response:
        """Lists the models."""
        return JSONResponse({"object": "list", "data": await to_thread.run_sync(self._models)})

    async def model(self, request: Request) -> Response:
        """Describes a model."""
        entry = await to_thread.run_sync(self._find, request.path_params["name"])
        return JSONResponse(next(one for one in self._models() if one["id"] == entry))

    def _models(self) -> list[dict[str, Any]]:
        return [
            {"id": one.name, "object": "model", "created": int(one.modified), "owned_by": "local"}
            for one in self.server.library.entries("checkpoint")
        ]

    def _find(self, name: str) -> str:
        try:
            return self.server.library.find("checkpoint", name).name
        except ValueError as error:
            raise Refused(str(error), 404) from None

    async def generations(self, request: Request) -> Response:
        """Makes pictures from a prompt."""
        form = Form(await read_json(self.server, request), {})
        return await self._made(request, form, "txt2img", self._settings(form), {})

    async def edits(self, request: Request) -> Response:
        """Repaints the transparent part of the mask, or of the picture; the whole picture if nothing is transparent."""
        form = await self._form(request)
        settings = self._settings(form)
        if "image" not in form.files:
            raise Refused("image is missing: the picture to edit")
        picture, mask = await to_thread.run_sync(_opened, form.files)
        height, width = settings.pop("height", None), settings.pop("width", None)
        if height is not None and (height, width) != picture.shape[:2]:
            picture = pictures.resize(picture, height, width)
            mask = None if mask is None else pictures.resize(np.repeat(mask[..., None], 3, -1), height, width)[..., 0]
        if mask is None:
            settings = {"strength": STRENGTH, **settings}
            return await self._made(request, form, "img2img", settings, {"image": picture})
        return await self._made(request, form, "inpaint", settings, {"image": picture, "mask": mask})

    async def variations(self, request: Request) -> Response:
        """Makes pictures like the given one: by what it shows if the model is unCLIP's, else from the picture."""
        form = await self._form(request)
        settings = self._settings(form)
        if "image" not in form.files:
            raise Refused("image is missing: the picture to vary")
        picture, _ = await to_thread.run_sync(_opened, {"image": form.files["image"]})
        model = form.fields.get("model")
        reads = await to_thread.run_sync(self._reads_pictures, None if not model else self._find(model))
        if reads:
            return await self._made(request, form, "variations", settings, {"image": picture})
        settings = {"strength": VARIED, **settings}
        return await self._made(request, form, "img2img", settings, {"image": picture})

    def _reads_pictures(self, model: str | None) -> bool:
        models = self.server.engine.models
        try:
            return kind_of(models.lease("variations", model).pipe.config) == "unclip"
        finally:
            models.release("variations")

    async def _form(self, request: Request) -> Form:
        """Returns a request's fields and files, from a form or from JSON with pictures as base64."""
        if request.headers.get("content-type", "").lower().startswith("application/json"):
            given = await read_json(self.server, request)
            files = {name: file_from_text(self.server, given.pop(name), name) for name in FILES if name in given}
            return Form(given, files)
        limits = self.server.settings.limits
        body = await read_body(request, limits.json, limits.body_seconds)
        form = Form({}, {})
        for name, content, _ in read_form(body, request.headers.get("content-type", "")):
            plain = name.removesuffix("[]")
            if plain in form.files or plain in form.fields:
                raise Refused(f"{plain[:80]} is given twice: one picture is edited at a time")
            if plain in FILES:
                form.files[plain] = content
            else:
                form.fields[plain] = content.decode("utf-8", "replace")
        if isinstance(form.fields.get("n"), str):
            form.fields["n"] = int(form.fields["n"]) if form.fields["n"].isdecimal() else form.fields["n"]
        return form

    def _settings(self, form: Form) -> dict[str, Any]:
        """Returns our settings for the fields of a request. Raises Refused for unknown ones and wrong values."""
        given = form.fields
        unknown = [name for name in given if name not in (*FIELDS, *WITHOUT_EFFECT)]
        if unknown:
            raise Refused(f"{unknown[0][:80]!r} is unknown; other settings go into `settings`, by their names in sdjax")
        if given.get("response_format", "b64_json") not in ("b64_json", "url", None):
            raise Refused(f"response_format is b64_json or url; got {shown(given['response_format'])}")
        own = given.get("settings") or {}
        if not isinstance(own, Mapping):
            raise Refused(f"settings is an object; got {shown(own)}")
        prompt = given.get("prompt", "")
        if not isinstance(prompt, str):
            raise Refused(f"prompt is a text; got {shown(prompt)}")
        settings: dict[str, Any] = {"seed": time.time_ns() % 2**32, "prompt": prompt, "num_images": 1}
        if given.get("n") is not None:
            settings["num_images"] = whole("n", given["n"], 1, MOST)
        size = given.get("size")
        if size not in (None, "auto", ""):
            width, cross, height = str(size).partition("x")
            if not (cross and width.isdecimal() and height.isdecimal() and len(width + height) <= 10):
                raise Refused(f"size is WIDTHxHEIGHT in pixels, or auto; got {shown(size)}")
            settings |= {"width": int(width), "height": int(height)}
        return {**settings, **own}

    async def _made(
        self, request: Request, form: Form, task: str, settings: dict[str, Any], inputs: dict[str, np.ndarray]
    ) -> Response:
        model = form.fields.get("model")
        if model is not None and not isinstance(model, str):
            raise Refused(f"model is a name; got {shown(model)}")
        model = None if not model else self._find(model)
        as_url = form.fields.get("response_format") == "url"
        work = Work(task, settings, inputs, model, client_of(request), save=as_url)
        job = await self.following.finished(request, work)
        data: list[dict[str, Any]] = []
        for one in job.pictures:
            address = {"url": f"{str(request.base_url).rstrip('/')}{ROOT}/pictures/{one.name}"}
            data.append(address if as_url else {"b64_json": base64.b64encode(one.png).decode()})
        return JSONResponse({"created": int(job.created), "data": data})


def _opened(files: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the picture, and the part to repaint: where the mask, or the picture itself, is transparent."""
    picture = pictures.open_picture(files["image"]).pixels
    opacity = pictures.open_opacity(files.get("mask", files["image"]))
    if opacity.min() == 255:
        if "mask" not in files:
            return picture, None
        raise Refused("the mask has no transparent part: what is transparent is repainted")
    if opacity.shape != picture.shape[:2]:
        raise Refused(f"the mask has the picture's size, {picture.shape[1]} x {picture.shape[0]}")
    return picture, np.where(opacity < 128, 255, 0).astype(np.uint8)
