"""The editor's settings and saved workflows over HTTP."""

import json
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sdjax.serve.bodies import Refused, read_body
from sdjax.serve.comfy.user_files import UserFiles

SETTINGS = "settings.json"
FIRST = {"Comfy.TutorialCompleted": True}  # settings that nobody made yet: no tour of templates at the start
STYLE = "user.css"  # the page asks for it at every start
USER = "user/"  # before the names of saved files
MOST_BYTES = 16 * 2**20
SECONDS = 30


class UserRoutes:
    """The routes' functions."""

    def __init__(self, files: UserFiles) -> None:
        self._files = files

    def _settings(self) -> dict[str, Any]:
        try:
            found = json.loads(self._files.read(SETTINGS))
        except (KeyError, ValueError):
            return dict(FIRST)
        return {**FIRST, **found} if isinstance(found, dict) else dict(FIRST)

    async def settings(self, request: Request) -> Response:
        """Answers with all settings."""
        return JSONResponse(await to_thread.run_sync(self._settings))

    async def change_settings(self, request: Request) -> Response:
        """Takes settings by name, and keeps them beside the others."""
        given = await self._json(request)
        if not isinstance(given, dict):
            raise Refused("settings are an object")
        await to_thread.run_sync(self._change, given)
        return Response(status_code=200)

    async def setting(self, request: Request) -> Response:
        """Answers with one setting, null if it is not there."""
        return JSONResponse((await to_thread.run_sync(self._settings)).get(request.path_params["id"]))

    async def change_setting(self, request: Request) -> Response:
        """Takes one setting."""
        await to_thread.run_sync(self._change, {request.path_params["id"][:200]: await self._json(request)})
        return Response(status_code=200)

    def _change(self, given: dict[str, Any]) -> None:
        self._files.write(SETTINGS, json.dumps({**self._settings(), **given}).encode())

    async def listing(self, request: Request) -> Response:
        """Answers with the files of ?dir=; ?full_info=true gives sizes and times."""
        folder = request.query_params.get("dir", request.query_params.get("path", "")).strip("/")
        start = f"{USER}{folder}/" if folder else USER
        names = await to_thread.run_sync(self._files.names, start)
        if request.query_params.get("full_info", "").lower() != "true":
            return JSONResponse([name.removeprefix(start) for name in names])
        return JSONResponse([self._about(name, name.removeprefix(start)) for name in names])

    async def file(self, request: Request) -> Response:
        """Answers with a file."""
        try:
            content = await to_thread.run_sync(self._files.read, self._name(request))
        except KeyError:
            if request.path_params["file"] == STYLE:
                return Response("", media_type="text/css")
            raise Refused("there is no such file", 404) from None
        kind = "text/css" if request.path_params["file"] == STYLE else "application/octet-stream"
        return Response(content, media_type=kind)

    async def write(self, request: Request) -> Response:
        """Keeps a file; ?overwrite=false refuses to replace another one."""
        name = self._name(request)
        content = await read_body(request, MOST_BYTES, SECONDS)
        if request.query_params.get("overwrite", "true").lower() == "false" and name in self._files.names(name):
            raise Refused("there is a file of this name", 409)
        await to_thread.run_sync(self._files.write, name, content)
        return self._answer(request, name)

    async def delete(self, request: Request) -> Response:
        """Deletes a file."""
        try:
            await to_thread.run_sync(self._files.delete, self._name(request))
        except KeyError:
            raise Refused("there is no such file", 404) from None
        return Response(status_code=204)

    async def move(self, request: Request) -> Response:
        """Gives a file another name."""
        old, new = self._name(request), USER + request.path_params["to"].replace("%2F", "/")
        try:
            content = await to_thread.run_sync(self._files.read, old)
        except KeyError:
            raise Refused("there is no such file", 404) from None
        if new in self._files.names(new) and request.query_params.get("overwrite", "").lower() != "true":
            raise Refused("there is a file of this name", 409)
        await to_thread.run_sync(self._files.write, new, content)
        if new != old:
            await to_thread.run_sync(self._files.delete, old)
        return self._answer(request, new)

    def _answer(self, request: Request, name: str) -> Response:
        path = name.removeprefix(USER)
        full = request.query_params.get("full_info", "").lower() == "true"
        return JSONResponse(self._about(name, path) if full else path)

    def _about(self, name: str, path: str) -> dict[str, Any]:
        about = self._files.about(name)
        return {"path": path, "size": about.get("size", 0), "modified": int(about.get("modified", 0) * 1000)}

    def _name(self, request: Request) -> str:
        return USER + request.path_params["file"].replace("%2F", "/")

    async def _json(self, request: Request) -> Any:
        body = await read_body(request, MOST_BYTES, SECONDS)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("the body is no JSON") from None
