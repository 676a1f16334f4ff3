"""ComfyUI's own page, from the package comfyui-frontend-package where it is installed. It is not a part of sdjax.

The package is GPL-3. Its files are read from where it lies, and only those that are there when the server starts are
served, each by its own address.
"""

import importlib.util
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

PACKAGE, FOLDER = "comfyui_frontend_package", "static"
ROOT = "/comfy"
MISSING = (
    "ComfyUI's page is not installed here. Its package is GPL-3 and not a part of sdjax:\n\n"
    "    in the clone of sdjax: pip install '.[comfyui]'\n"
)
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".html": "text/html",
         ".json": "application/json", ".svg": "image/svg+xml", ".woff2": "font/woff2",
         ".wasm": "application/wasm"}  # fmt: skip


def folder() -> Path | None:
    """Returns the folder of the installed page; None without the package. Its code is not run."""
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or []) if found is not None else []:
        if (Path(place) / FOLDER / "index.html").is_file():
            return Path(place) / FOLDER
    return None


def routes() -> list[Route]:
    """Returns the routes of the page below /comfy/; one that says how to install it if it is not there."""
    place = folder()
    to_root = Route(ROOT, lambda request: RedirectResponse(f"{ROOT}/"), methods=["GET"])
    if place is None:
        return [to_root, Route(f"{ROOT}/", lambda request: PlainTextResponse(MISSING, 404), methods=["GET"])]
    files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    return [
        to_root,
        Route(f"{ROOT}/", _answer(files, "index.html"), methods=["GET"]),
        Route(f"{ROOT}/user.css", lambda request: Response("", media_type="text/css"), methods=["GET"]),
        Route(f"{ROOT}/{{path:path}}", _answer(files), methods=["GET"]),
    ]


def _answer(files: dict[str, Path], fixed: str | None = None) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        name = fixed or request.path_params["path"]
        path = files.get(name)  # a table of what is there: no part of an address becomes a path
        if path is None:
            return PlainTextResponse("there is no such file", 404)
        kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        kept = "no-cache" if path.suffix == ".html" else "private, max-age=86400"
        return FileResponse(path, media_type=kind, headers={"Cache-Control": kept})

    return answer
