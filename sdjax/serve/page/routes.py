"""The routes of the page: its files, each by its own address, with a policy that allows no outside resource."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from sdjax.serve.server import Server

HERE = Path(__file__).parent
TYPES = {  # of the files that are served: all others in this folder are not
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
# Scripts, styles and requests of this server alone; pictures also of blobs and data that the page makes. No text ever
# becomes markup or script: trusted types refuse innerHTML and the like.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # asked for again, and answered by 304 if nothing changed
}


def routes(server: "Server | None" = None) -> list[Route]:
    """Returns the routes: the page at /, and its files below /page/. They need nothing of the server.

    The files are read once. No part of an address becomes a path.
    """
    paths = sorted(path for path in HERE.rglob("*") if path.suffix in TYPES)
    found = [
        Route(f"/page/{path.relative_to(HERE).as_posix()}", _answer(path), name=path.name)
        for path in paths
        if path.name != "index.html"
    ]
    return [Route("/", _answer(HERE / "index.html"), name="page"), *found]


def _answer(path: Path) -> Callable[[Request], Any]:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=TYPES[path.suffix], headers=headers)

    return answer
