"""ComfyUI's own page, from the package comfyui-frontend-package where it is installed. It is not a part of sdjax.

The package is GPL-3. Its files are read from where it lies, and only those that are there when the server starts are
served, each by its own address.
"""

import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from sdjax.serve.comfy import templates
from sdjax.serve.comfy.installed import folder_of

# The page may ask this server alone: without this it asks its makers' server for news
POLICY = "; ".join(
    (
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self' data: blob:",
        "frame-ancestors 'none'",
    )
)
PACKAGE, FOLDER = "comfyui_frontend_package", "static"
ROOT = "/comfy"
MISSING = (
    "ComfyUI's page is not installed here. Its package is GPL-3 and not a part of sdjax:\n\n"
    "    in the clone of sdjax: pip install '.[comfyui]'\n"
)
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".html": "text/html",
         ".json": "application/json", ".svg": "image/svg+xml", ".woff2": "font/woff2",
         ".wasm": "application/wasm"}  # fmt: skip


def routes() -> list[Route]:
    """Returns the routes of the page below /comfy/; one that says how to install it if it is not there."""
    place = folder_of(PACKAGE, FOLDER)
    to_root = Route(ROOT, lambda request: RedirectResponse(f"{ROOT}/"), methods=["GET"])
    if place is None:
        return [to_root, Route(f"{ROOT}/", lambda request: PlainTextResponse(MISSING, 404), methods=["GET"])]
    files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    return [
        to_root,
        Route(f"{ROOT}/", _answer(files, "index.html"), methods=["GET"]),
        Route("/assets/images/{path:path}", _answer(files, below="assets/images/"), methods=["GET"]),
        Route(f"{ROOT}/templates/index.json", _templates, methods=["GET"]),
        Route(f"{ROOT}/templates/{{path}}", _answer(templates.files()), methods=["GET"]),
        Route(f"{ROOT}/user.css", lambda request: Response("", media_type="text/css"), methods=["GET"]),
        Route(f"{ROOT}/{{path:path}}", _answer(files), methods=["GET"]),
    ]


async def _templates(request: Request) -> Response:
    return Response(await to_thread.run_sync(templates.index), media_type="application/json")


def _answer(files: dict[str, Path], fixed: str | None = None, below: str = "") -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        name = fixed or below + request.path_params["path"]
        path = files.get(name)  # a table of what is there: no part of an address becomes a path
        if path is None:
            return PlainTextResponse("there is no such file", 404)
        kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        kept = "no-cache" if path.suffix == ".html" else "private, max-age=86400"
        return FileResponse(path, media_type=kind, headers={"Cache-Control": kept, "Content-Security-Policy": POLICY})

    return answer
