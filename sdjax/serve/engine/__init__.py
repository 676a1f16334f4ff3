"""The engine of the server: continuous batching of all tasks, a queue and a history that survive a restart."""

from sdjax.serve.engine.context import Context
from sdjax.serve.engine.engine import Engine
from sdjax.serve.engine.job import Job
from sdjax.serve.engine.tasks import TASKS
from sdjax.serve.engine.work import (
    Cancelled,
    Event,
    Finished,
    Full,
    Record,
    UnknownJob,
    UnknownPicture,
    Work,
)

__all__ = [
    "TASKS", "Cancelled", "Context", "Engine", "Event", "Finished", "Full", "Job", "Record", "UnknownJob",
    "UnknownPicture", "Work",
]  # fmt: skip
