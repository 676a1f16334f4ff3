"""The application: all interfaces in one table, behind one guard, with one way to say what went wrong."""

import importlib

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sdjax.serve.answers import REFUSALS, refusal_of
from sdjax.serve.guard import Guard
from sdjax.serve.server import Server

INTERFACES = ("jobs_api", "page.routes", "a1111.routes", "openai", "comfy.routes")  # modules with `routes(server)`


def create_app(server: Server) -> Starlette:
    """Returns the ASGI application of a server."""
    modules = [importlib.import_module(f"sdjax.serve.{name}") for name in INTERFACES]
    app = Starlette(
        routes=[route for module in modules for route in module.routes(server)],
        exception_handlers=dict.fromkeys([*REFUSALS, Exception], answer),
    )
    app.add_middleware(Guard, settings=server.settings)
    return app


async def answer(request: Request, error: Exception) -> Response:
    """Returns the answer to a request that could not be done, under the names that clients look for."""
    found = refusal_of(error)
    return JSONResponse({"error": found.sentence, "detail": found.sentence}, found.status, dict(found.headers))
