"""Listens for requests with uvicorn, within limits of time."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from anyio import to_thread
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdjax.errors import doing
from sdjax.serve.app import create_app
from sdjax.serve.server import LOG, Server

BACKLOG = 256
MOST_CONNECTIONS = 512


class Connection(H11Protocol):
    """A connection that is closed if the head of its first request does not come in time."""

    seconds = 10.0

    def connection_made(self, transport: Any) -> None:
        """Starts the clock."""
        super().connection_made(transport)
        self._clock = self.loop.call_later(self.seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._clock.cancel()
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def listen(server: Server, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serves until a signal stops it. Calls `ready` with the address when requests are taken.

    Raises OSError if the address is taken or not this computer's.
    """
    settings = server.settings
    with doing("listening at", f"{settings.host}:{settings.port}"):
        own = opened(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{own.getsockname()[1]}"

    protocol = type("Connection", (Connection,), {"seconds": settings.limits.header_seconds})
    config = uvicorn.Config(
        create_app(server), http=protocol, access_log=False, log_level="warning", server_header=False, lifespan="off",
        timeout_keep_alive=15, timeout_graceful_shutdown=2, limit_concurrency=MOST_CONNECTIONS, backlog=BACKLOG,
        h11_max_incomplete_event_size=64 * 1024, proxy_headers=False,
    )  # fmt: skip
    serving = uvicorn.Server(config)

    async def serve() -> None:
        task = asyncio.create_task(serving.serve(sockets=[own]))
        while not serving.started and not task.done():
            await asyncio.sleep(0.01)
        if serving.started:
            ready(address)
            server.engine.warm_up()
            await to_thread.run_sync(server.library.start_hashing)
        await task

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    LOG.setLevel(logging.INFO)
    try:
        asyncio.run(serve())
    except KeyboardInterrupt:  # uvicorn has ended in order, and raises it again
        pass
    finally:
        own.close()


def opened(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    own = socket.socket(family, kind, protocol)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
        own.listen(BACKLOG)
    except OSError:
        own.close()
        raise
    return own
