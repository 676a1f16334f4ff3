"""Calls of sdjax.hub in a process of their own: huggingface_hub reads its environment when it is imported."""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

# One process imports JAX, which takes a second, and the others are its copies where the system has these
CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
CONTEXT.set_forkserver_preload(["sdjax.convert"])


def resolve(calls: list[list], environment: dict[str, str], log: Path) -> list[str]:
    """Returns "path PLACE" or "error SENTENCE" of each call of hub.resolve. What the process writes goes to `log`."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_answer, args=(there, calls, environment, str(log)))
    process.start()
    there.close()
    try:
        assert here.poll(120), "no answer in two minutes"
        lines = here.recv()
    except EOFError:
        raise AssertionError(log.read_text()) from None
    finally:
        process.kill()
        process.join()
    return lines


def _answer(connection: Connection, calls: list[list], environment: dict[str, str], log: str) -> None:
    with open(log, "w") as file:
        for stream in 1, 2:
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    from sdjax import hub
    from sdjax.convert.errors import CheckpointError

    lines = []
    for call in calls:
        try:
            lines.append(f"path {hub.resolve(*call)}")
        except (CheckpointError, OSError) as error:
            lines.append(f"error {error}")
    sys.stderr.flush()
    connection.send(lines)
