"""The application: all interfaces in one table, behind one guard, with one way to say what went wrong."""

import importlib
import logging
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sdjax.errors import sentence
from sdjax.serve.bodies import Refused
from sdjax.serve.engine import Full, UnknownJob, UnknownPicture
from sdjax.serve.guard import Guard
from sdjax.serve.server import Server

LOG = logging.getLogger(__name__)
INTERFACES = (
    "jobs_api",
    "page.routes",
    "a1111.routes",
)  # modules of this package with `routes(server)`, in their order


def create_app(server: Server) -> Starlette:
    """Returns the ASGI application of a server."""
    modules = [importlib.import_module(f"sdjax.serve.{name}") for name in INTERFACES]
    app = Starlette(
        routes=[route for module in modules for route in module.routes(server)],
        exception_handlers={**dict.fromkeys(ANSWERS, answer), Exception: failed},
    )
    app.add_middleware(Guard, settings=server.settings)
    return app


def refuse(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Returns an answer with a sentence, under the names that clients of several tools look for."""
    return JSONResponse({"error": text, "detail": text}, status, headers)


async def answer(request: Request, error: Exception) -> Response:
    """Returns the answer to a request that could not be done, by the kind of the error."""
    for kind, make in ANSWERS.items():
        if isinstance(error, kind):
            return make(error)
    raise error


async def failed(request: Request, error: Exception) -> Response:
    """Returns the answer to a fault of the server's own. Nothing about its inside is told."""
    LOG.error("a request failed: %s", request.url.path, exc_info=error)
    return refuse(f"an error inside the server ({type(error).__name__}): its log says more", 500)


def _full(error: Full) -> Response:
    return refuse(str(error), 429, {"Retry-After": str(max(1, round(error.retry_after)))})


def _disk(error: OSError) -> Response:
    LOG.error("%s", sentence(error))
    return refuse("the server cannot write its files: its log says more", 507)


ANSWERS: dict[type[Exception], Callable[..., Response]] = {  # the first that fits
    Full: _full,
    UnknownJob: lambda error: refuse("there is no job with this id", 404),
    UnknownPicture: lambda error: refuse("there is no picture with this name", 404),
    Refused: lambda error: refuse(str(error), error.status),
    ValueError: lambda error: refuse(str(error), 422),
    HTTPException: lambda error: refuse(str(error.detail), error.status_code, error.headers),
    OSError: _disk,
}
Handler = Callable[[Request], Awaitable[Response]]
