"""ComfyUI's interface: its paths with and without /api, and below /comfy for its page."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from sdjax._version import __version__
from sdjax.serve.bodies import Refused, read_body, read_json
from sdjax.serve.comfy import frontend
from sdjax.serve.comfy.checking import check
from sdjax.serve.comfy.graph import Graph, GraphError, read_api_form
from sdjax.serve.comfy.kept_files import is_latent, written_latent, written_latents
from sdjax.serve.comfy.latent_file import MOST_BYTES, decode
from sdjax.serve.comfy.nodes import NODES
from sdjax.serve.comfy.object_info import describe, object_info
from sdjax.serve.comfy.pictures import channel_of, in_folder, placed, plain_name, rgba_png, with_opacity
from sdjax.serve.comfy.prompts import Prompt, Prompts, from_records
from sdjax.serve.comfy.sockets import Sockets
from sdjax.serve.comfy.task import LibraryNames, memory_of
from sdjax.serve.comfy.user_files import UserFiles
from sdjax.serve.comfy.user_routes import UserRoutes
from sdjax.serve.engine import UnknownPicture, Work
from sdjax.serve.multipart import read_form

if TYPE_CHECKING:
    from sdjax.serve.server import Server

PREFIXES = ("", "/api", f"{frontend.ROOT}/api", frontend.ROOT)
INPUT_NODES = {"LoadImage": "image", "LoadImageMask": "image", "LoadLatent": "latent"}  # and the inputs that name files
MOST_HISTORY = 200
FOLDERS = {  # of ComfyUI, and our kinds
    "checkpoints": "checkpoint", "vae": "vae", "loras": "lora", "embeddings": "embedding", "controlnet": "control",
    "hypernetworks": "hypernetwork", "clip_vision": "clip_vision", "upscale_models": "upscaler",
}  # fmt: skip
ERROR = {"type": "prompt_outputs_failed_validation", "details": "", "extra_info": {}}


def routes(server: "Server") -> list[BaseRoute]:
    """Returns the routes, and those of ComfyUI's page."""
    comfy = Comfy(server)
    kept = UserRoutes(comfy.files)
    table: list[tuple[str, str, Callable[..., Any]]] = [
        ("POST", "/prompt", comfy.submit), ("GET", "/prompt", comfy.remaining),
        ("GET", "/queue", comfy.queue), ("POST", "/queue", comfy.change_queue),
        ("GET", "/history", comfy.history), ("GET", "/history/{id}", comfy.one_of_history),
        ("POST", "/history", comfy.change_history),
        ("GET", "/jobs", comfy.jobs), ("POST", "/jobs/cancel", comfy.cancel), ("GET", "/jobs/{id}", comfy.job),
        ("POST", "/jobs/{id}/cancel", comfy.cancel), ("POST", "/interrupt", comfy.interrupt),
        ("POST", "/free", comfy.free), ("GET", "/view", comfy.view),
        ("POST", "/upload/image", comfy.upload), ("POST", "/upload/mask", comfy.upload),
        ("GET", "/object_info", comfy.object_info), ("GET", "/object_info/{node}", comfy.object_info),
        ("GET", "/system_stats", comfy.system_stats), ("GET", "/embeddings", comfy.embeddings),
        ("GET", "/models", comfy.models), ("GET", "/models/{folder}", comfy.models),
        ("GET", "/extensions", _nothing([])), ("GET", "/features", _nothing({})),
        ("GET", "/i18n", _nothing({})), ("GET", "/workflow_templates", _nothing({})),
        ("GET", "/global_subgraphs", _nothing({})), ("GET", "/node_replacements", _nothing({})),
        ("GET", "/experiment/models", _nothing([])), ("GET", "/internal/folder_paths", _nothing({})),
        ("GET", "/users", _nothing({"storage": "server", "migrated": True})),
        ("GET", "/settings", kept.settings), ("POST", "/settings", kept.change_settings),
        ("GET", "/settings/{id}", kept.setting), ("POST", "/settings/{id}", kept.change_setting),
        ("GET", "/userdata", kept.listing), ("GET", "/v2/userdata", kept.listing),
        ("GET", "/userdata/{file:path}", kept.file), ("DELETE", "/userdata/{file:path}", kept.delete),
        ("POST", "/userdata/{file}/move/{to}", kept.move), ("POST", "/userdata/{file:path}", kept.write),
    ]  # fmt: skip
    made: list[BaseRoute] = []
    for prefix in PREFIXES:
        made += [Route(prefix + path, call, methods=[method]) for method, path, call in table]
        made.append(WebSocketRoute(f"{prefix}/ws", comfy.sockets.serve))
    return [*made, *frontend.routes()]


def _nothing(answer: Any) -> Callable[..., Any]:
    async def answered(request: Request) -> Response:
        return JSONResponse(answer)

    return answered


class Comfy:
    """The routes' functions."""

    def __init__(self, server: "Server") -> None:
        self.server, self.engine = server, server.engine
        self.files = UserFiles(server.engine.state / "comfyui")
        self.memory = memory_of(server.engine.models)
        self.prompts = Prompts()
        self.sockets = Sockets(self.prompts, self.memory, self._remaining)

    @property
    def names(self) -> LibraryNames:
        """The names that a graph may use: of the library, and of the uploaded pictures."""
        names = [name.removeprefix("input/") for name in self.files.names("input/")]
        names += [f"{name} [output]" for name in written_latents(self.engine.outputs)]
        return LibraryNames(self.server.library, dict.fromkeys(names))

    def _remaining(self) -> int:
        return len([job for job in self.engine.jobs() if job.work.task == "workflow"])

    async def submit(self, request: Request) -> Response:
        """Takes {prompt, client_id, extra_data, front}, and answers with the prompt's id."""
        given = await read_json(self.server, request)
        try:
            prompt = await to_thread.run_sync(self._submit, given)
        except GraphError as error:
            return JSONResponse(refusal(error, given.get("prompt")), 400)
        self.sockets.follow(prompt)
        return JSONResponse({"prompt_id": prompt.job.id, "number": prompt.number, "node_errors": {}})

    def _submit(self, given: Mapping[str, Any]) -> Prompt:
        graph = read_api_form(given.get("prompt"))
        names = self.names
        also = {name: None for name in _inputs_of(graph) if self._is_there(name)}
        check(graph, LibraryNames(names.library, {**names.pictures, **also}))
        extra = given.get("extra_data")
        extra = extra if isinstance(extra, Mapping) else {}
        info = extra.get("extra_pnginfo")
        workflow = info.get("workflow") if isinstance(info, Mapping) else None
        client = str(given.get("client_id") or "")[:100]
        pictures, inputs = {}, {}
        for number, name in enumerate(sorted(_inputs_of(graph))):
            key = f"image{number}"
            pictures[key], inputs[key] = name, opened(name, self._view(*placed(name)))
        written = graph.to_json()
        settings = {"prompt": written, "workflow": workflow, "pictures": pictures}
        work = Work("workflow", settings, inputs, client=client, priority=1 if given.get("front") is True else 0)
        job = self.server.submit(work)
        public = {"client_id": client, "extra_pnginfo": {"workflow": workflow}}
        prompt = Prompt(self.prompts.next_number(), job, written, public, client)
        self.prompts.add(prompt)
        return prompt

    def _is_there(self, name: str) -> bool:
        try:
            return bool(self._view(*placed(name)))
        except UnknownPicture:
            return False

    async def remaining(self, request: Request) -> Response:
        """Answers with the number of prompts that are left."""
        return JSONResponse({"exec_info": {"queue_remaining": self._remaining()}})

    async def queue(self, request: Request) -> Response:
        """Answers with the prompts that run and those that wait."""
        lists: dict[str, list[Any]] = {"queue_running": [], "queue_pending": []}
        for prompt in self.prompts.all():
            if not prompt.job.ended:
                lists["queue_running" if prompt.job.state == "running" else "queue_pending"].append(prompt.queued())
        return JSONResponse(lists)

    async def change_queue(self, request: Request) -> Response:
        """Takes {clear: true} or {delete: [ids]}: those that wait are removed."""
        given = await read_json(self.server, request)
        wanted = _ids_to_delete(given)
        for prompt in self.prompts.all():
            if prompt.job.state == "waiting" and (given.get("clear") is True or prompt.job.id in wanted):
                await to_thread.run_sync(prompt.job.cancel)
        return JSONResponse({})

    async def history(self, request: Request) -> Response:
        """Answers with prompts that are over; ?max_items=N, ?offset=N."""
        limit, offset = _count(request, "max_items", MOST_HISTORY), _count(request, "offset", 0)
        past = {one.job.id: one.past() for one in self.prompts.all() if one.job.ended}
        if len(past) < limit:
            records = await to_thread.run_sync(self.engine.history, None, MOST_HISTORY)
            past = {**{id: one for id, one in from_records(records).items() if id not in past}, **past}
        chosen = list(past.items())[max(0, len(past) - limit - offset) : len(past) - offset]
        return JSONResponse(dict(chosen))

    async def one_of_history(self, request: Request) -> Response:
        """Answers with one prompt that is over, {} if there is none."""
        id = request.path_params["id"]
        prompt = self.prompts.known.get(id)
        if prompt is not None:
            return JSONResponse({id: prompt.past()} if prompt.job.ended else {})
        found = from_records(await to_thread.run_sync(self.engine.history, None, MOST_HISTORY))
        return JSONResponse({id: found[id]} if id in found else {})

    async def change_history(self, request: Request) -> Response:
        """Takes {clear: true} or {delete: [ids]}: the list forgets them; saved pictures stay."""
        given = await read_json(self.server, request)
        wanted = _ids_to_delete(given)
        for prompt in self.prompts.all():
            if prompt.job.ended and (given.get("clear") is True or prompt.job.id in wanted):
                self.prompts.known.pop(prompt.job.id, None)
        return JSONResponse({})

    async def jobs(self, request: Request) -> Response:
        """Answers with prompts by ?status=a,b, the newest first, ?limit and ?offset."""
        status = request.query_params.get("status", "").split(",")
        chosen = [one for one in reversed(self.prompts.all()) if status == [""] or one.status in status]
        limit, offset = _count(request, "limit", MOST_HISTORY), _count(request, "offset", 0)
        page = [one.listed() for one in chosen[offset : offset + limit]]
        more = offset + limit < len(chosen)
        pages = {"offset": offset, "limit": limit, "total": len(chosen), "has_more": more}
        return JSONResponse({"jobs": page, "pagination": pages})

    async def job(self, request: Request) -> Response:
        """Answers with one prompt: its workflow and outputs too."""
        prompt = self.prompts.known.get(request.path_params["id"])
        if prompt is None:
            raise Refused("there is no job with this id", 404)
        workflow = {"prompt": prompt.graph, "extra_data": prompt.extra}
        return JSONResponse({**prompt.listed(), "workflow": workflow, "outputs": prompt.outputs})

    async def cancel(self, request: Request) -> Response:
        """Cancels one prompt, or {job_ids: [...]}."""
        wanted = [request.path_params["id"]] if "id" in request.path_params else None
        if wanted is None:
            wanted = (await read_json(self.server, request)).get("job_ids")
        cancelled = [id for id in wanted or () if isinstance(id, str) and id in self.prompts.known]
        for id in cancelled:
            await to_thread.run_sync(self.prompts.known[id].job.cancel)
        return JSONResponse({"cancelled": cancelled})

    async def interrupt(self, request: Request) -> Response:
        """Stops the prompts that run, or the one of {prompt_id}."""
        given = await read_json(self.server, request)
        for prompt in self.prompts.all():
            if prompt.job.state == "running" and given.get("prompt_id") in (None, prompt.job.id):
                await to_thread.run_sync(prompt.job.cancel)
        return JSONResponse({})

    async def free(self, request: Request) -> Response:
        """Forgets the last runs' outputs, and with {unload_models: true} models that nobody uses."""
        given = await read_json(self.server, request)
        self.memory.clear()
        if given.get("unload_models") is True:
            await to_thread.run_sync(self.engine.models.free)
        return JSONResponse({})

    async def view(self, request: Request) -> Response:
        """Answers with a picture: ?filename, ?type=output, temp or input, ?channel=rgb or a."""
        query = request.query_params
        content = await to_thread.run_sync(
            self._view, in_folder(query.get("subfolder", ""), query.get("filename", "")), query.get("type", "output")
        )
        if query.get("channel") in ("rgb", "a"):
            content = await to_thread.run_sync(channel_of, content, query["channel"])
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        if content[:4] == b"RIFF":
            kind = "image/webp"
        if is_latent(query.get("filename", "")):
            kind = "application/octet-stream"
        headers = {"Content-Disposition": "inline", "Cache-Control": "private, max-age=3600"}
        return Response(content, media_type=kind, headers=headers)

    def _view(self, name: str, place: str) -> bytes:
        try:
            if place == "input":
                return self.files.read(f"input/{name}")
            if place == "temp":
                return self.memory.shown.get(name.removesuffix(".png"))
            if is_latent(name):
                return written_latent(self.engine.outputs, name, MOST_BYTES)
            return self.engine.picture(name.removesuffix(".png"))
        except (KeyError, ValueError):
            raise UnknownPicture(name) from None

    async def upload(self, request: Request) -> Response:
        """Takes a form with `image`, a picture or a file of latents, and answers with its name.

        `overwrite` "true" replaces another one.
        """
        limits = self.server.settings.limits
        body = await read_body(request, limits.picture, limits.body_seconds)
        form = {one.name: one for one in read_form(body, request.headers.get("content-type", ""))}
        part = form.get("image")
        if part is None or not part.filename:
            raise Refused("the form has no picture named image")
        if "original_ref" in form:
            content = await to_thread.run_sync(self._masked, part.content, form["original_ref"].content)
        else:
            content = part.content
        plain = plain_name(part.filename)
        await to_thread.run_sync(opened, plain, content)
        replace = "overwrite" in form and form["overwrite"].content.strip().lower() in (b"true", b"1")
        folder = form["subfolder"].content.decode("utf-8", "replace") if "subfolder" in form else ""
        folder = "/".join(filter(None, map(plain_name, folder.split("/"))))
        name = await to_thread.run_sync(self._keep, in_folder(folder, plain), content, replace)
        return JSONResponse({"name": name.rpartition("/")[2], "subfolder": folder, "type": "input"})

    def _masked(self, mask: bytes, reference: bytes) -> bytes:
        """Returns a picture that is there with the opacity of another one, as the editor's mask is sent."""
        try:
            told = json.loads(reference)
            name = in_folder(str(told.get("subfolder", "")), str(told.get("filename")))
            original = with_opacity(self._view(name, str(told.get("type", "output"))))
        except (ValueError, AttributeError, RecursionError):
            raise Refused('original_ref names a picture: {"filename": ..., "type": ...}') from None
        opacity = with_opacity(mask)[..., 3]
        if opacity.shape != original.shape[:2]:
            raise Refused("the mask has another size than its picture")
        return rgba_png(np.concatenate([original[..., :3], opacity[..., None]], axis=-1))

    def _keep(self, name: str, content: bytes, replace: bool) -> str:
        """Returns the name under which a picture is kept: its own, or with a number if another one has that."""
        stem, dot, ending = name.rpartition(".")
        for number in range(1, 10_000):
            try:
                same = self.files.read(f"input/{name}") == content
            except KeyError:
                break
            if same or replace:
                break
            name = f"{stem or name} ({number}){dot}{ending if dot else ''}"
        self.files.write(f"input/{name}", content)
        return name

    async def object_info(self, request: Request) -> Response:
        """Answers with all nodes, or one."""
        name = request.path_params.get("node")
        if name is None:
            return JSONResponse(await to_thread.run_sync(object_info, self.names))
        return JSONResponse({name: describe(NODES[name], self.names)} if name in NODES else {})

    async def system_stats(self, request: Request) -> Response:
        """Answers with versions and devices."""
        import platform

        devices = [
            {"name": f"{one.platform}:{one.id} {one.device_kind}", "type": one.platform, "index": i, **_memory(one)}
            for i, one in enumerate(self.engine.device.mesh.devices.flat)
        ]
        system = {
            "os": platform.system().lower(), "python_version": platform.python_version(), "embedded_python": False,
            "comfyui_version": f"sdjax {__version__}", "pytorch_version": "none", "argv": ["sdjax", "serve"],
            "ram_total": 0, "ram_free": 0,
        }  # fmt: skip
        return JSONResponse({"system": system, "devices": devices})

    async def embeddings(self, request: Request) -> Response:
        """Answers with the names of embeddings without their endings."""
        entries = await to_thread.run_sync(self.server.library.entries, "embedding")
        return JSONResponse([entry.name.rpartition(".")[0] or entry.name for entry in entries])

    async def models(self, request: Request) -> Response:
        """Answers with the kinds of models, or the files of one."""
        folder = request.path_params.get("folder")
        if folder is None:
            return JSONResponse(list(FOLDERS))
        if folder not in FOLDERS:
            raise Refused("there is no such kind of models", 404)
        return JSONResponse(await to_thread.run_sync(self.names.names, FOLDERS[folder]))


def refusal(error: GraphError, graph: Any) -> dict[str, Any]:
    """Returns what is wrong with a graph, as the editor shows it."""
    known = graph if isinstance(graph, Mapping) else {}
    first = str(error).partition("\n")[0]
    wrong = {}
    for number, found in error.nodes.items():
        node = known.get(number)
        kind = node.get("class_type") if isinstance(node, Mapping) else None
        errors = [{"type": "invalid_input", "message": one, "details": "", "extra_info": {}} for one in found]
        wrong[number] = {"errors": errors, "dependent_outputs": [], "class_type": kind}
    return {"error": {**ERROR, "message": first}, "node_errors": wrong}


def opened(name: str, content: bytes) -> np.ndarray:
    """Returns an input of a graph: a picture with its opacity, or the bytes of a file of latents, uint8 [1, n].

    Raises ValueError for what is neither.
    """
    if not is_latent(name):
        return with_opacity(content)
    decode(content)
    return np.frombuffer(content, np.uint8)[None]


def _inputs_of(graph: Graph) -> set[str]:
    """Returns the names of the pictures and latents that a graph reads."""
    values = (node.inputs.get(INPUT_NODES[node.kind]) for node in graph.nodes.values() if node.kind in INPUT_NODES)
    return {value for value in values if isinstance(value, str)}


def _ids_to_delete(given: dict[str, Any]) -> list[Any]:
    wanted = given.get("delete")
    return wanted if isinstance(wanted, list) else []


def _count(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return min(int(text), 10_000) if text.isdecimal() and len(text) < 8 else default


def _memory(device: Any) -> dict[str, int]:
    found = device.memory_stats() or {}
    total, used = int(found.get("bytes_limit", 0)), int(found.get("bytes_in_use", 0))
    return {
        "vram_total": total, "vram_free": max(0, total - used), "torch_vram_total": total,
        "torch_vram_free": max(0, total - used),
    }  # fmt: skip
