"""Our own interface, under /api/v1: jobs with their events, pictures, the history, and what there is to choose from."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sdjax.checks.arguments import shown
from sdjax.pictures import open_picture
from sdjax.pictures.image import encode_png
from sdjax.pictures.metadata import read_metadata
from sdjax.serve import choices
from sdjax.serve.bodies import Refused, file_from_text, open_input, open_inputs, read_body, read_json
from sdjax.serve.engine import Event, Finished, Job, Record, Work
from sdjax.serve.engine.work import ENDED
from sdjax.serve.following import Following
from sdjax.serve.server import Server
from sdjax.tasks.from_metadata import TITLES, understand

ROOT = "/api/v1"
MOST_EVENTS = 1000  # that wait for a reader who is too slow; then he gets the end alone
STILL = 15.0  # seconds without an event, after which a comment keeps the connection alive
PRIORITY = 100  # priorities are from -100 to 100
SAFE = 2**53 - 1  # the largest whole number that JavaScript tells from its neighbours; larger ones are texts
SEEDS = ("seed", "variation_seed", "wildcard_seed")  # settings that may be larger
CACHED = "private, max-age=31536000, immutable"  # a name has one picture for ever


def routes(server: Server) -> list[Route]:
    """Returns the routes."""
    api = Api(server)
    table: list[tuple[str, str, Callable[..., Any]]] = [
        ("POST", "/jobs", api.submit), ("GET", "/jobs", api.jobs), ("GET", "/jobs/{id}", api.job),
        ("DELETE", "/jobs/{id}", api.cancel), ("GET", "/jobs/{id}/events", api.events),
        ("GET", "/pictures/{name}", api.picture), ("DELETE", "/pictures/{name}", api.forget),
        ("GET", "/history", api.history), ("POST", "/uploads", api.upload),
        ("GET", "/library/{kind}", api.library), ("POST", "/library/refresh", api.refresh),
        ("GET", "/library/{kind}/card", api.card),
        ("GET", "/choices", api.choices), ("GET", "/status", api.status), ("POST", "/tokens", api.tokens),
        ("POST", "/read-picture", api.read_picture), ("POST", "/hints", api.hint),
    ]  # fmt: skip
    return [Route(ROOT + path, call, methods=[method]) for method, path, call in table]


def is_digits(value: Any) -> bool:
    """Returns whether a value is a text of at most 20 digits."""
    return isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 20


def for_browsers(value: Any) -> Any:
    """Returns a value of JSON whose whole numbers above SAFE are texts."""
    if isinstance(value, int) and abs(value) > SAFE:
        return str(value)
    if isinstance(value, Mapping):
        return {name: for_browsers(one) for name, one in value.items()}
    return [for_browsers(one) for one in value] if isinstance(value, list | tuple) else value


class Api:
    """The routes' functions."""

    def __init__(self, server: Server) -> None:
        self.server, self.engine, self.following = server, server.engine, Following(server)

    async def submit(self, request: Request) -> Response:
        """Takes {task, settings, inputs, model, priority} and answers 202 with the job's id."""
        given = await read_json(self.server, request)
        job = await to_thread.run_sync(self._submit, given, client_of(request))
        return JSONResponse({"id": job.id, "position": job.position}, 202)

    def _submit(self, given: dict[str, Any], client: str) -> Job:
        unknown = [name for name in given if name not in ("task", "settings", "inputs", "model", "priority", "save")]
        if unknown:
            raise Refused(f"a job has task, settings, inputs, model, priority and save; {unknown[0][:80]!r} is unknown")
        priority, save = given.get("priority", 0), given.get("save", True)
        if type(priority) is not int or abs(priority) > PRIORITY:
            raise Refused(f"priority is a whole number from -{PRIORITY} to {PRIORITY}")
        if type(save) is not bool:
            raise Refused("save is true or false")
        for name, kind in ("task", str), ("settings", dict), ("model", str):
            if not isinstance(given.get(name, kind()), kind | None if name == "model" else kind):
                raise Refused(f"{name} is {'an object' if kind is dict else 'a text'}")
        inputs = open_inputs(self.server, given.get("inputs"))
        settings = given.get("settings", {})
        seeds = {name: int(settings[name]) for name in SEEDS if is_digits(settings.get(name))}
        work = Work(given.get("task", ""), settings | seeds, inputs, given.get("model"), client, priority, save)
        return self.server.submit(work)

    async def jobs(self, request: Request) -> Response:
        """Answers with the jobs that run, then those that wait."""
        return JSONResponse(for_browsers({"jobs": [describe_job(job) for job in self.engine.jobs()]}))

    async def job(self, request: Request) -> Response:
        """Answers with a job."""
        job = await to_thread.run_sync(self.engine.job, request.path_params["id"])
        return JSONResponse(for_browsers(describe_job(job)))

    async def cancel(self, request: Request) -> Response:
        """Cancels a job, and answers with it."""
        job = await to_thread.run_sync(self.engine.job, request.path_params["id"])
        await to_thread.run_sync(job.cancel)
        return JSONResponse(for_browsers(describe_job(job)))

    async def events(self, request: Request) -> Response:
        """Answers with the job's events as they happen (server-sent events), beginning with its present state."""
        job = await to_thread.run_sync(self.engine.job, request.path_params["id"])
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream(job), media_type="text/event-stream", headers=headers)

    async def picture(self, request: Request) -> Response:
        """Answers with a picture as a PNG file."""
        content = await to_thread.run_sync(self.engine.picture, request.path_params["name"])
        return Response(content, media_type="image/png", headers={"Cache-Control": CACHED})

    async def forget(self, request: Request) -> Response:
        """Deletes a picture."""
        await to_thread.run_sync(self.engine.forget, request.path_params["name"])
        return JSONResponse({})

    async def history(self, request: Request) -> Response:
        """Answers with the newest pictures; ?before=TIME continues after the last one, ?limit=N from 1 to 200."""
        before, limit = request.query_params.get("before"), request.query_params.get("limit", "50")
        try:
            moment, count = None if before is None else float(before), int(limit)
        except ValueError:
            raise Refused("before is a time in seconds, and limit a whole number") from None
        if not 1 <= count <= 200:
            raise Refused("limit is from 1 to 200")
        records = await to_thread.run_sync(self.engine.history, moment, count)
        return JSONResponse(for_browsers({"records": [describe_record(record) for record in records]}))

    async def upload(self, request: Request) -> Response:
        """Takes the bytes of a picture, and answers with the id that inputs name as upload:ID."""
        content = await self._picture_bytes(request)
        await to_thread.run_sync(open_picture, content)  # raises for what is no picture
        return JSONResponse({"id": self.server.uploads.add(content)})

    async def library(self, request: Request) -> Response:
        """Answers with the files of a kind."""
        found = await to_thread.run_sync(choices.files, self.server.library, request.path_params["kind"])
        return JSONResponse({"entries": found})

    async def card(self, request: Request) -> Response:
        """Answers with the picture beside a file, ?name=NAME."""
        name = request.query_params.get("name", "")
        content = await to_thread.run_sync(choices.card, self.server.library, request.path_params["kind"], name)
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    async def refresh(self, request: Request) -> Response:
        """Looks for files again."""
        await to_thread.run_sync(self.server.library.refresh)
        return JSONResponse({})

    async def choices(self, request: Request) -> Response:
        """Answers with what settings may be, and the current model's defaults."""
        return JSONResponse(await to_thread.run_sync(choices.choices, self.server))

    async def status(self, request: Request) -> Response:
        """Answers with the version, the model, the device and the lengths of the queues."""
        return JSONResponse(await to_thread.run_sync(choices.status, self.server))

    async def tokens(self, request: Request) -> Response:
        """Takes {prompt}, and answers with its number of tokens and chunks, and the room in these chunks."""
        given = await read_json(self.server, request)
        prompt = given.get("prompt")
        if given.keys() != {"prompt"} or not isinstance(prompt, str):
            raise Refused(f'the body is {{"prompt": TEXT}}; got {shown(given)}')
        return JSONResponse(await to_thread.run_sync(choices.tokens, prompt))

    async def read_picture(self, request: Request) -> Response:
        """Takes the bytes of a picture, and answers with the settings that its texts say."""
        content = await self._picture_bytes(request)
        return JSONResponse(for_browsers(await to_thread.run_sync(_read_settings, content)))

    async def hint(self, request: Request) -> Response:
        """Takes {preprocessor, input, options, annotators, resolution}, and answers with the hint as base64."""
        given = await read_json(self.server, request)
        if not isinstance(given.get("preprocessor", ""), str):
            raise Refused("preprocessor is a name")
        content = file_from_text(self.server, given.pop("input", None), "input")
        inputs = {"image": await to_thread.run_sync(open_input, content, "image")}
        work = Work("hint", given, inputs, client=client_of(request), save=False, priority=PRIORITY)
        job = await self.following.finished(request, work, failed=422)
        if job.state != "done":
            raise Refused("the hint was cancelled", 422)
        return JSONResponse({"image": _as_base64(job.pictures[0].png), "notes": job.notes})

    async def _picture_bytes(self, request: Request) -> bytes:
        limits = self.server.settings.limits
        content = await read_body(request, limits.picture, limits.body_seconds)
        if not content:
            raise Refused("the body is empty: send the bytes of a picture")
        return content


def client_of(request: Request) -> str:
    """Returns whom a request is from, for fairness: the computer, and its program."""
    address = "" if request.client is None else request.client.host
    return f"{address} {request.headers.get('user-agent', '')[:200]}"


def describe_job(job: Job) -> dict[str, Any]:
    """Returns a job as JSON has it."""
    return {
        "id": job.id, "task": job.work.task, "settings": dict(job.work.settings), "model": job.work.model,
        "created": job.created, "state": job.state, "done": job.done, "total": job.total, "position": job.position,
        "seconds_left": job.seconds_left, "pictures": [describe_picture(one) for one in job.pictures],
        "notes": job.notes, "error": job.error,
    }  # fmt: skip


def describe_picture(one: Finished) -> dict[str, Any]:
    """Returns a finished picture as JSON has it."""
    height, width = one.pixels.shape[:2]
    return {
        "name": one.name, "url": f"{ROOT}/pictures/{one.name}", "seed": one.seed, "settings": dict(one.settings),
        "size": [height, width],
    }  # fmt: skip


def describe_record(record: Record) -> dict[str, Any]:
    """Returns a picture of the history as JSON has it."""
    return {
        "id": record.id, "name": record.name, "url": f"{ROOT}/pictures/{record.name}", "created": record.created,
        "task": record.task, "settings": dict(record.settings), "seed": record.seed, "size": list(record.size),
    }  # fmt: skip


async def stream(job: Job) -> AsyncIterator[str]:
    """Yields a job's events as lines of text/event-stream, until it is over."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event](MOST_EVENTS)

    def take(event: Event) -> None:
        if not queue.full():
            queue.put_nowait(event)

    def hear(event: Event) -> None:  # on a thread of the engine
        loop.call_soon_threadsafe(take, event)

    stop = job.watch(hear)
    try:
        yield _event("state", describe_job(job))
        while True:
            if job.ended and queue.empty():
                yield _event(job.state, {"error": job.error} if job.error else {})
                return
            try:
                event = await asyncio.wait_for(queue.get(), STILL)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            data = await to_thread.run_sync(event_data, event)
            if data is not None:
                yield _event(event.kind, data)
            if event.kind in ENDED:
                return
    finally:
        stop()


def event_data(event: Event) -> dict[str, Any] | None:
    """Returns the data of an event as JSON has it; None if there is nothing to tell."""
    data = dict(event.data)
    if event.kind == "picture":
        return {"index": data["index"], **describe_picture(data["picture"])}
    if event.kind == "preview":
        if not data["pictures"]:
            return None
        return {"image": _as_base64(encode_png(data["pictures"][0])), "type": "image/png"}
    return {name: value for name, value in data.items() if isinstance(value, str | int | float | None)}


def _read_settings(content: bytes) -> dict[str, Any]:
    found = read_metadata(content)
    understood = understand(found)
    return {
        "tool": TITLES.get(found.tool, found.tool), "task": found.task, "settings": understood.settings,
        "hires": understood.hires, "of_task": understood.of_task, "model": dict(found.model),
        "unknown": [f"{item.key}: {item.text}" for item in understood.unknown],
    }  # fmt: skip


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(for_browsers(data))}\n\n"


def _as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
