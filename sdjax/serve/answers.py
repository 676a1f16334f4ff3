"""What went wrong, as an HTTP status and a sentence: one table for all interfaces."""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.exceptions import HTTPException

from sdjax.errors import sentence
from sdjax.serve.bodies import Refused
from sdjax.serve.engine import Full, UnknownJob, UnknownPicture

LOG = logging.getLogger(__name__)


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


REFUSALS: dict[type[Exception], Callable[..., Refusal]] = {  # the first that fits
    Full: _full,
    UnknownJob: lambda error: Refusal(404, "there is no job with this id"),
    UnknownPicture: lambda error: Refusal(404, "there is no picture with this name"),
    Refused: lambda error: Refusal(error.status, str(error)),
    ValueError: lambda error: Refusal(422, str(error)),
    HTTPException: lambda error: Refusal(error.status_code, str(error.detail), error.headers or {}),
    OSError: _disk,
}


def refusal_of(error: Exception) -> Refusal:
    """Returns the answer to a request, by the kind of the error. Nothing about the server's inside is told."""
    for kind, make in REFUSALS.items():
        if isinstance(error, kind):
            return make(error)
    LOG.error("a request failed", exc_info=error)
    return Refusal(500, f"an error inside the server ({type(error).__name__}): its log says more")
