"""Who may ask what: a wall before all routes, against other pages in the same browser and other computers.

A web page from elsewhere cannot read our answers, but it can send requests to this computer. So requests that change
something need our own Origin, or none, as programs send them. A name that an attacker points at this computer (DNS
rebinding) is refused by its Host. Kinds of content that a foreign form can send need our own Origin or an
Authorization, which a foreign page cannot add.
"""

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sdjax.serve.server import LOOPBACK, ServerSettings

READING = ("GET", "HEAD", "OPTIONS")
OF_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded", "text/plain")  # a foreign page may send these
OPEN = ("/page/",)  # the page's files hold no secrets: the page itself asks for the token
PING = "/internal/ping"  # says that the server lives, to load balancers too
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """Refuses requests that the settings do not allow, with a sentence as JSON."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refused = refusal(scope, self._settings)
        if refused is None:
            await self._app(scope, receive, with_headers(send))
            return
        status, sentence = refused
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": sentence[:120]})
            return
        headers = {"WWW-Authenticate": 'Basic realm="sdjax"'} if status == 401 and self._settings.user else {}
        if status == 401 and not self._settings.user:
            headers = {"WWW-Authenticate": "Bearer"}
        answer = JSONResponse({"error": sentence, "detail": sentence}, status, headers)
        await answer(scope, receive, with_headers(send))


def refusal(scope: Scope, settings: ServerSettings) -> tuple[int, str] | None:
    """Returns the HTTP status and the sentence with which a request is refused; None if it may pass."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not settings.guarded and _name(host) not in LOOPBACK:
        port = (scope.get("server") or (None, None))[1] or settings.port
        return 421, f"this server answers on this computer's own address only, such as http://127.0.0.1:{port}"
    method = scope.get("method", "GET")
    origin, own = headers.get("origin"), False
    if origin is not None:
        own = origin in settings.origins or urlsplit(origin).netloc.lower() == host.lower()
        if not own and (method not in READING or scope["type"] == "websocket"):
            return 403, "a page from another address may not change anything here"
    elif method not in READING and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "a page from another address may not change anything here"
    if settings.guarded and not _open(scope, settings) and not _knows(headers, scope, settings):
        return 401, "a token or a password is needed: as Authorization: Bearer TOKEN, or by HTTP Basic"
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method not in READING and kind in OF_FORMS and not own and "authorization" not in headers:
        return 403, f"{kind} is taken from our own page, or with an Authorization; send JSON (application/json) instead"
    return None


def with_headers(send: Send) -> Send:
    """Returns `send`, with the headers that all answers have."""

    async def sending(message: dict) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            message = {**message, "headers": [*message["headers"], *(one for one in HEADERS if one[0] not in there)]}
        await send(message)

    return sending  # type: ignore[return-value]


def _name(host: str) -> str:
    """Returns the name of a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _open(scope: Scope, settings: ServerSettings) -> bool:
    path = scope["path"]
    if path == PING:
        return True
    return settings.user is None and scope["type"] == "http" and (path == "/" or path.startswith(OPEN))


def _knows(headers: Headers, scope: Scope, settings: ServerSettings) -> bool:
    """Returns whether a request has the token or the password."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return settings.token is not None and _same(value.strip(), settings.token)
    if kind.lower() != "basic":
        return False
    try:
        name, _, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        return False
    if settings.user is not None and _same(name, settings.user[0]) & _same(password, settings.user[1]):
        return True
    return settings.token is not None and _same(password, settings.token)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8"), other.encode("utf-8"))
