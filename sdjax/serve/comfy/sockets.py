"""The websocket that the editor listens to: the queue's length, what runs, progress and previews."""

import asyncio
import contextlib
import json
import secrets
import struct
from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from sdjax.pictures.image import encode_png
from sdjax.serve.comfy.prompts import Prompt, Prompts
from sdjax.serve.comfy.task import Memory
from sdjax.serve.engine.work import Event

MOST_MESSAGES = 1000  # that wait for a reader who is too slow; he is cut off then
LONGEST = 64 * 2**10  # bytes of a message from outside
MOST_SOCKETS = 200
PREVIEW, PNG = 1, 2  # ComfyUI's numbers of the kind of a message, and of a picture
FEATURES = {"supports_preview_metadata": False, "max_upload_size": 64 * 2**20}


class Sockets:
    """All open websockets, by client. Messages about a prompt go to the client that queued it."""

    def __init__(self, prompts: Prompts, memory: Memory, remaining: Callable[[], int]) -> None:
        self._prompts, self._memory, self._remaining = prompts, memory, remaining
        self._open: dict[asyncio.Queue[Any], str] = {}

    async def serve(self, socket: WebSocket) -> None:
        """Serves one websocket; ?clientId=NAME is the client's name."""
        if len(self._open) >= MOST_SOCKETS:
            await socket.close(1013)
            return
        await socket.accept()
        client = socket.query_params.get("clientId", "")[:100] or secrets.token_hex(16)
        queue: asyncio.Queue[Any] = asyncio.Queue(MOST_MESSAGES)
        self._open[queue] = client
        queue.put_nowait(self._status(client))
        for prompt in self._prompts.all():
            if prompt.client == client and prompt.job.state == "running" and prompt.node is not None:
                queue.put_nowait(_text("executing", {"node": prompt.node, "prompt_id": prompt.job.id}))
        sending = asyncio.create_task(_send(socket, queue))
        try:
            while not sending.done():
                receiving = asyncio.create_task(socket.receive_text())
                done, _ = await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
                if receiving not in done:
                    receiving.cancel()
                    break
                if "feature_flags" in receiving.result()[:LONGEST]:
                    queue.put_nowait(_text("feature_flags", FEATURES))
        except (WebSocketDisconnect, asyncio.QueueFull, KeyError, RuntimeError):
            pass
        finally:
            del self._open[queue]
            sending.cancel()

    def follow(self, prompt: Prompt) -> None:
        """Sends what happens to a prompt to its client, from now on. Call it in the event loop."""
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._take, prompt, event)

        # First its nodes, then its end: so no order of threads lets the end come before a node
        self._memory.listen(prompt.job.id, lambda data: tell(Event("node", prompt.job.id, data)))
        prompt.job.watch(tell)
        self._send_status()
        if prompt.job.ended:  # before it was watched
            error = {} if prompt.job.error is None else {"error": prompt.job.error}
            tell(Event(prompt.job.state, prompt.job.id, error))

    def _take(self, prompt: Prompt, event: Event) -> None:
        if event.kind == "preview":
            for pixels in event.data["pictures"][:1]:
                self._put(struct.pack(">II", PREVIEW, PNG) + encode_png(pixels), prompt.client)
            return
        if event.kind == "started" and prompt.started is not None:
            return
        if event.kind in ("node", "done", "failed") and prompt.started is None:
            self._take(prompt, Event("started", prompt.job.id))
        if event.kind in ("done", "failed", "cancelled") and prompt.ended is not None:
            return
        for kind, data in prompt.take(event):
            self._put(_text(kind, data), prompt.client)
        if event.kind in ("started", "done", "failed", "cancelled"):
            self._send_status()

    def _send_status(self) -> None:
        self._put(self._status(None), None)

    def _status(self, client: str | None) -> str:
        data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": self._remaining()}}}
        return _text("status", data if client is None else {**data, "sid": client})

    def _put(self, message: str | bytes, client: str | None) -> None:
        for queue, own in list(self._open.items()):
            if client in (None, "", own):
                with contextlib.suppress(asyncio.QueueFull):
                    queue.put_nowait(message)


async def _send(socket: WebSocket, queue: "asyncio.Queue[Any]") -> None:
    while True:
        message = await queue.get()
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_text(message)


def _text(kind: str, data: Any) -> str:
    return json.dumps({"type": kind, "data": data})
