"""The routes of A1111's interface."""

from collections.abc import Awaitable, Callable
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdjax.serve.a1111 import lists
from sdjax.serve.a1111.extras import Extras
from sdjax.serve.a1111.generation import Generation
from sdjax.serve.a1111.options import Options
from sdjax.serve.bodies import read_json
from sdjax.serve.server import Server

Handler = Callable[[Request], Awaitable[Response]]


def routes(server: Server) -> list[Route]:
    """Returns the routes."""
    options = Options(server)
    generation = Generation(server, options)
    extras = Extras(generation)

    async def set_options(request: Request) -> Response:
        given = await read_json(server, request)
        await to_thread.run_sync(options.set, given)
        return JSONResponse(None)

    making: dict[str, Handler] = {
        "/sdapi/v1/txt2img": generation.txt2img, "/sdapi/v1/img2img": generation.img2img,
        "/sdapi/v1/extra-single-image": extras.single, "/sdapi/v1/extra-batch-images": extras.batch,
        "/sdapi/v1/png-info": extras.png_info, "/sdapi/v1/interrogate": extras.interrogate,
        "/sdapi/v1/interrupt": generation.interrupt, "/sdapi/v1/skip": generation.skip,
        "/sdapi/v1/options": set_options, "/controlnet/detect": extras.detect,
        "/sdapi/v1/refresh-checkpoints": _doing(server.library.refresh),
        "/sdapi/v1/refresh-vae": _doing(server.library.refresh),
        "/sdapi/v1/refresh-loras": _doing(server.library.refresh),
        "/sdapi/v1/refresh-embeddings": _doing(server.library.refresh),
        "/sdapi/v1/unload-checkpoint": _doing(server.engine.models.free),
        "/sdapi/v1/reload-checkpoint": _doing(server.library.refresh),
    }  # fmt: skip
    return [
        Route("/sdapi/v1/progress", generation.progress, methods=["GET"]),
        *(Route(path, _listing(answer), methods=["GET"]) for path, answer in lists.answers(server, options).items()),
        *(Route(path, call, methods=["POST"]) for path, call in making.items()),
    ]


def _listing(answer: lists.Answer) -> Handler:
    async def listing(request: Request) -> Response:
        return JSONResponse(await to_thread.run_sync(answer))

    return listing


def _doing(call: Callable[[], Any]) -> Handler:
    async def doing(request: Request) -> Response:
        await to_thread.run_sync(call)
        return JSONResponse({})

    return doing
