"""What went wrong, as an HTTP status and a sentence: one table for all interfaces."""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.exceptions import HTTPException

from sdjax.errors import sentence
from sdjax.serve.bodies import Refused
from sdjax.serve.engine import Full, UnknownJob, UnknownPicture

LOG = logging.getLogger(__name__)
NOTHING_HERE = (
    "there is nothing at this path; there are our own interface at /api/v1/, A1111's at /sdapi/v1/ and /controlnet/, "
    "OpenAI's at /v1/, ComfyUI's at /prompt, /queue, /history and so on, and the page at /"
)


class Refusal(NamedTuple):
    """An answer to a request that could not be done."""

    status: int
    sentence: str
    headers: Mapping[str, str] = {}


def _full(error: Full) -> Refusal:
    return Refusal(429, str(error), {"Retry-After": str(max(1, round(error.retry_after)))})


def _disk(error: OSError) -> Refusal:
    LOG.error("%s", sentence(error))
    return Refusal(507, "the server cannot write its files: its log says more")


def _http(error: HTTPException) -> Refusal:
    sentences = {404: NOTHING_HERE, 405: "this path takes requests of another method"}
    return Refusal(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers or {})


REFUSALS: dict[type[Exception], Callable[..., Refusal]] = {  # the first that fits
    Full: _full,
    UnknownJob: lambda error: Refusal(404, "there is no job with this id"),
    UnknownPicture: lambda error: Refusal(404, "there is no picture with this name"),
    Refused: lambda error: Refusal(error.status, str(error)),
    ValueError: lambda error: Refusal(422, str(error)),
    HTTPException: _http,
    OSError: _disk,
}


def refusal_of(error: Exception) -> Refusal:
    """Returns the answer to a request, by the kind of the error. Nothing about the server's inside is told."""
    for kind, make in REFUSALS.items():
        if isinstance(error, kind):
            return make(error)
    LOG.error("a request failed", exc_info=error)
    return Refusal(500, f"an error inside the server ({type(error).__name__}): its log says more")
