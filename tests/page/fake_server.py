"""A small server that answers the page's requests by what a test decides: no network runs, and jobs take their time."""

import asyncio
import base64
import io
import json
import re
import threading
import time
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sdjax.serve.page.routes import routes

HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
FILES: dict[str, list[dict[str, Any]]] = {
    "checkpoint": [
        {"name": "builtin", "title": "builtin", "size": 5_400_000},
        {"name": "photo/film-v2.safetensors", "title": "film-v2.safetensors [abcdef0123]", "size": 2_130_000_000},
        {"name": f"{HOSTILE}.safetensors", "title": HOSTILE, "size": 1},
    ],
    "lora": [{"name": "styles/ink.safetensors", "title": "ink", "size": 37_900_000}],
    "embedding": [{"name": "moody.pt", "title": "moody", "size": 4000}],
    "vae": [{"name": "clear.safetensors", "title": "clear", "size": 334_000_000}],
    "control": [{"name": "canny.safetensors", "title": "canny", "size": 723_000_000}],
    "ip_adapter": [{"name": "ip-adapter_sd15.safetensors", "title": "ip-adapter", "size": 44_600_000}],
    "upscaler": [{"name": "sharp-x4.pth", "title": "sharp-x4", "size": 67_000_000}],
}
CHOICES = {
    "samplers": ["ddim", "euler", "euler_ancestral", "dpmpp_2m"],
    "schedules": ["karras", "simple", "exponential"],
    "guidance": ["apg", "interval", "pag"],
    "patches": ["deep_shrink", "token_merging"],
    "upscales": ["lanczos", "bilinear", "nearest"],
    "preprocessors": ["canny", "invert", "depth_midas"],
    "tools": ["a1111", "comfyui"],
    "noise_sources": ["jax", "torch_cpu"],
    "styles": ["film", HOSTILE],
    "defaults": {"width": 256, "height": 256, "num_steps": 20, "guidance_scale": 7.5},
}


def picture(seed: int, width: int = 256, height: int = 256, text: str | None = None) -> bytes:
    """Returns a PNG of one colour, by the seed, with a text if one is given."""
    from PIL.PngImagePlugin import PngInfo

    colour = tuple(60 + (seed * k) % 150 for k in (37, 71, 113))
    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG", pnginfo=info)
    return out.getvalue()


class FakeServer:
    """The server on a free port. `works` are the jobs that it got, `seconds` how long a job takes."""

    def __init__(self) -> None:
        self.works: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.records: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.seconds = 0.3
        self.errors: list[str] = []
        config = uvicorn.Config(self._app(), port=0, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.address = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def close(self) -> None:
        """Stops the server."""
        self._server.should_exit = True
        self._thread.join(5)

    def _app(self) -> Starlette:
        api = [
            ("/status", self.status, "GET"), ("/choices", self.choices, "GET"),
            ("/library/{kind}", self.library, "GET"), ("/library/refresh", self.nothing, "POST"),
            ("/jobs", self.submit, "POST"), ("/jobs", self.queue, "GET"),
            ("/jobs/{id}", self.job, "GET"), ("/jobs/{id}", self.cancel, "DELETE"),
            ("/jobs/{id}/events", self.events, "GET"), ("/pictures/{name}", self.picture, "GET"),
            ("/pictures/{name}", self.forget, "DELETE"), ("/history", self.history, "GET"),
            ("/uploads", self.upload, "POST"), ("/tokens", self.tokens, "POST"), ("/hints", self.hint, "POST"),
            ("/read-picture", self.read, "POST"),
        ]  # fmt: skip
        ours = [Route(f"/api/v1{path}", call, methods=[method]) for path, call, method in api]
        return Starlette(routes=[*ours, *routes()])

    async def status(self, request: Request) -> Response:
        return JSONResponse({"version": "1", "model": "builtin"})

    async def choices(self, request: Request) -> Response:
        return JSONResponse(CHOICES)

    async def library(self, request: Request) -> Response:
        return JSONResponse({"entries": FILES.get(request.path_params["kind"], [])})

    async def nothing(self, request: Request) -> Response:
        return JSONResponse({})

    async def submit(self, request: Request) -> Response:
        work = await request.json()
        if work["settings"].get("prompt") == "refuse":
            return JSONResponse({"error": f"no {HOSTILE}"}, 422)
        id = f"job{len(self.works)}"
        self.works.append(work)
        self.jobs[id] = {"id": id, "state": "waiting", "work": work, "pictures": [], "done": 0, "total": 10}
        return JSONResponse({"id": id, "position": 0}, 202)

    async def queue(self, request: Request) -> Response:
        going = [one for one in self.jobs.values() if one["state"] in ("waiting", "running")]
        return JSONResponse({"jobs": [self._public(one) for one in going]})

    def _public(self, job: dict[str, Any]) -> dict[str, Any]:
        return {**{name: job[name] for name in ("id", "state", "pictures", "done", "total")},
                "task": job["work"]["task"], "settings": job["work"]["settings"]}  # fmt: skip

    async def job(self, request: Request) -> Response:
        return JSONResponse(self._public(self.jobs[request.path_params["id"]]))

    async def cancel(self, request: Request) -> Response:
        self.jobs[request.path_params["id"]]["state"] = "cancelled"
        return JSONResponse({})

    async def events(self, request: Request) -> Response:
        return StreamingResponse(self._events(self.jobs[request.path_params["id"]]), media_type="text/event-stream")

    async def _events(self, job: dict[str, Any]) -> Any:
        def event(kind: str, **data: Any) -> str:
            return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

        yield event("state", **self._public(job))
        yield event("waiting", position=0)
        job["state"] = "running"
        yield event("started")
        settings = job["work"]["settings"]
        preview = base64.b64encode(picture(int(settings.get("seed", 0)), 32, 32)).decode()
        for done in range(job["total"] + 1):
            if job["state"] == "cancelled":
                yield event("cancelled")
                return
            yield event("progress", done=done, total=job["total"], seconds_left=self.seconds * (1 - done / 10))
            if done == 3:
                yield event("preview", image=preview, type="image/png")
            await asyncio.sleep(self.seconds / 10)
        for number in range(settings.get("num_images", 1)):
            seed = int(settings.get("seed", 0)) + number
            name = f"{job['id']}-{number}"
            parameters = f"{settings.get('prompt', '')}\nSteps: {settings.get('num_steps')}, Seed: {seed}"
            self.files[name] = picture(seed, text=parameters)
            told = seed if seed < 2**53 else str(seed)
            record = {"name": name, "seed": told, "settings": settings, "size": [256, 256], "created": time.time(),
                      "id": job["id"], "task": job["work"]["task"]}  # fmt: skip
            job["pictures"].append(record)
            self.records.insert(0, record)
            yield event("picture", index=number, **record)
        job["state"] = "done"
        yield event("done")

    async def picture(self, request: Request) -> Response:
        return Response(self.files[request.path_params["name"]], media_type="image/png")

    async def forget(self, request: Request) -> Response:
        self.records = [one for one in self.records if one["name"] != request.path_params["name"]]
        return JSONResponse({})

    async def history(self, request: Request) -> Response:
        before = float(request.query_params.get("before", "inf"))
        found = [one for one in self.records if one["created"] < before]
        return JSONResponse({"records": found[: int(request.query_params["limit"])]})

    async def upload(self, request: Request) -> Response:
        id = f"up{len(self.uploads)}"
        self.uploads[id] = await request.body()
        return JSONResponse({"id": id})

    async def tokens(self, request: Request) -> Response:
        words = re.findall(r"\w+|[^\w\s]", (await request.json())["prompt"])
        return JSONResponse(
            {"tokens": len(words), "chunks": 1 + len(words) // 75, "limit": 75 * (1 + len(words) // 75)}
        )

    async def hint(self, request: Request) -> Response:
        return JSONResponse({"image": base64.b64encode(picture(5, 64, 64)).decode()})

    async def read(self, request: Request) -> Response:
        body = await request.body()
        text = Image.open(io.BytesIO(body)).info.get("parameters")
        if text is None:
            return JSONResponse({"settings": {}, "tool": None})
        prompt, _, rest = text.partition("\n")
        found = dict(re.findall(r"(\w+): ([^,]+)", rest))
        settings = {"prompt": prompt, "num_steps": int(found["Steps"]), "seed": int(found["Seed"]), "ensd": 31337}
        return JSONResponse({"settings": settings, "tool": "A1111 or Forge",
                             "model": {"hash": "abcdef0123"}, "unknown": [f"Hostile: {HOSTILE}"]})  # fmt: skip
