"""The server: what all its routes share."""

import dataclasses
import logging
from typing import TYPE_CHECKING

from sdjax.serve.uploads import Uploads

if TYPE_CHECKING:
    from sdjax.serve.engine import Engine, Job, Work
    from sdjax.serve.library import Library

LOG = logging.getLogger("sdjax.serve")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that one request may have. Sizes are in bytes, times in seconds."""

    json: int = 96 * 2**20  # pictures come as base64 in it
    picture: int = 64 * 2**20
    nesting: int = 32
    values: int = 200_000  # texts, numbers, lists and objects of a JSON text
    pictures: int = 32
    uploads: int = 256 * 2**20  # of all pictures that wait to be used
    header_seconds: float = 10
    body_seconds: float = 60


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, and who may use it.

    `token` or `user` (name, password) are asked of everybody. `origins` are further pages that may use it, as a browser
    spells them: "https://example.org". Raises ValueError if others can reach the
    address and nothing is asked.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    user: tuple[str, str] | None = None
    origins: tuple[str, ...] = ()
    log_prompts: bool = False
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.local and not self.guarded:
            raise ValueError(
                f"{self.host} can be reached by others: set a token or a password first (--token-file, --user-file, or "
                "the environment's SDJAX_TOKEN or SDJAX_USER)"
            )

    @property
    def local(self) -> bool:
        """Whether only this computer can reach the server."""
        return self.host in LOOPBACK

    @property
    def guarded(self) -> bool:
        """Whether requests must have a token or a password."""
        return self.token is not None or self.user is not None


@dataclasses.dataclass(eq=False)
class Server:
    """The engine, the library and the settings, for routes."""

    engine: "Engine"
    library: "Library"
    settings: ServerSettings = ServerSettings()
    uploads: Uploads = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.settings.limits.uploads)

    def submit(self, work: "Work") -> "Job":
        """Gives a work to the engine and writes a line into the log, with the prompt only if the settings say so.

        Raises as `Engine.submit` does.
        """
        job = self.engine.submit(work)
        prompt = work.settings.get("prompt", "") if self.settings.log_prompts else ""
        LOG.info("job %s: %s%s", job.id, work.task, f": {prompt!r}" if isinstance(prompt, str) and prompt else "")
        return job
