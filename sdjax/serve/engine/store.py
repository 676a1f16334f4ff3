"""What survives a restart: jobs with their inputs, and the history, in SQLite; the pictures are PNG files.

A job is in the file before it is acknowledged. It stays there as "waiting" until its pictures are: the rows of its
pictures and its end are one transaction. So after a crash it runs again, and its pictures, whose names follow from its
id, are in the history once.
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from sdjax import errors
from sdjax.pictures.image import pack, unpack
from sdjax.serve.engine.work import Finished, Record, UnknownPicture, Work
from sdjax.storage import files

FILE, LOCK = "engine.sqlite", "engine.lock"
KEPT = 2000  # ended jobs whose end is remembered
TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, created REAL, state TEXT, error TEXT, task TEXT, settings TEXT, model TEXT, client TEXT,
    priority INTEGER, save INTEGER, notes TEXT);
CREATE TABLE IF NOT EXISTS inputs (job TEXT, name TEXT, png BLOB, PRIMARY KEY (job, name));
CREATE TABLE IF NOT EXISTS pictures (
    name TEXT PRIMARY KEY, job TEXT, created REAL, task TEXT, settings TEXT, seed TEXT, height INTEGER, width INTEGER);
CREATE INDEX IF NOT EXISTS by_time ON pictures (created);
CREATE TABLE IF NOT EXISTS chosen (what TEXT PRIMARY KEY, value TEXT);
"""


class Store:
    """The engine's files: a database in the folder `state`, and pictures in the folder `outputs`."""

    def __init__(self, state: Path, outputs: Path) -> None:
        self.outputs, self._lock = outputs, threading.RLock()
        for folder in state, outputs:
            with errors.doing("making the folder", folder):
                folder.mkdir(parents=True, exist_ok=True)
        self._own = filelock.FileLock(state / LOCK, thread_local=False)
        try:
            self._own.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(f"another server uses the folder {state}: give each server a folder of its own") from None
        for left in outputs.glob(files.PASSING):  # of a server that was killed while it wrote
            left.unlink(missing_ok=True)
        self._base = sqlite3.connect(state / FILE, check_same_thread=False, isolation_level=None)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")
        self._base.executescript(TABLES)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Returns the database for one transaction. An error of the disk becomes an OSError that says so."""
        with self._lock:
            try:
                self._base.execute("BEGIN IMMEDIATE")
                yield self._base
                self._base.execute("COMMIT")
            except BaseException as error:
                if self._base.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._base.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise OSError(f"the server's list of jobs could not be written: {error}") from error
                raise

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._base.execute(query, values).fetchall()

    def add(self, id: str, created: float, work: Work) -> None:
        """Keeps a job. It is on the disk when this returns; raises OSError otherwise."""
        given = [(id, name, pack(pixels)) for name, pixels in work.inputs.items()]
        row = (
            id, created, "waiting", None, work.task, json.dumps(work.settings), work.model, work.client, work.priority,
            int(work.save), "[]",
        )  # fmt: skip
        with self._writing() as base:
            base.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            base.executemany("INSERT INTO inputs VALUES (?, ?, ?)", given)

    def waiting(self) -> list[tuple[str, float, Work]]:
        """Returns the jobs that have not ended: ids, times of creation and works, in order of creation."""
        found = self._all(
            "SELECT id, created, task, settings, model, client, priority, save FROM jobs WHERE state = 'waiting' "
            "ORDER BY created"
        )
        out = []
        for id, created, task, settings, model, client, priority, save in found:
            inputs = {name: unpack(png) for name, png in self._all("SELECT name, png FROM inputs WHERE job = ?", id)}
            out.append((id, created, Work(task, json.loads(settings), inputs, model, client, priority, bool(save))))
        return out

    def end(
        self, id: str, state: str, error: str | None, notes: list[str], made: Mapping[str, Finished], task: str
    ) -> None:
        """Keeps the end of a job and the rows of its pictures by their names, all or nothing."""
        now = time.time()
        rows = [
            (name, id, now + number * 1e-6, task, json.dumps(one.settings), None if one.seed is None else str(one.seed),
             *one.pixels.shape[:2])
            for number, (name, one) in enumerate(made.items())
        ]  # fmt: skip
        with self._writing() as base:
            base.execute("UPDATE jobs SET state = ?, error = ?, notes = ? WHERE id = ?",
                         (state, error, json.dumps(notes), id))  # fmt: skip
            base.execute("DELETE FROM inputs WHERE job = ?", (id,))
            base.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            base.execute(
                "DELETE FROM jobs WHERE state != 'waiting' AND id NOT IN (SELECT id FROM jobs WHERE state != 'waiting' "
                "ORDER BY created DESC LIMIT ?)",
                (KEPT,),
            )

    def ended(self, id: str) -> tuple[float, str, str | None, list[str], Work] | None:
        """Returns when a job that is over was created, its state, error, notes and work; None if there is none."""
        found = self._all(
            "SELECT created, state, error, notes, task, settings, model, client, priority, save FROM jobs "
            "WHERE id = ? AND state != 'waiting'",
            id,
        )
        if not found:
            return None
        created, state, error, notes, task, settings, model, client, priority, save = found[0]
        work = Work(task, json.loads(settings), {}, model, client, priority, bool(save))
        return created, state, error, json.loads(notes), work

    def write(self, name: str, png: bytes) -> None:
        """Writes a picture's file, whole or not at all. Raises OSError with a sentence."""
        files.write_file(self.path(name), png, overwrite=True, what="writing the picture")

    def path(self, name: str) -> Path:
        """Returns where a picture of this name lies."""
        return self.outputs / f"{name}.png"

    def picture(self, name: str) -> bytes:
        """Returns the content of a picture's file. Raises UnknownPicture for names that are not in the history."""
        if not self._all("SELECT 1 FROM pictures WHERE name = ?", name):
            raise UnknownPicture(name)
        try:
            return self.path(name).read_bytes()
        except OSError:
            raise UnknownPicture(name) from None

    def pictures_of(self, id: str) -> list[Record]:
        """Returns the pictures of a job, in order."""
        return self._records("WHERE job = ? ORDER BY created", id)

    def history(self, before: float | None, limit: int) -> list[Record]:
        """Returns the newest pictures that were made before a time, the newest first."""
        until = float("inf") if before is None else before
        return self._records("WHERE created < ? ORDER BY created DESC LIMIT ?", until, limit)

    def _records(self, which: str, *values: Any) -> list[Record]:
        found = self._all(
            f"SELECT job, name, created, task, settings, seed, height, width FROM pictures {which}", *values
        )
        return [
            Record(job, name, created, task, json.loads(settings), None if seed is None else int(seed), (height, width))
            for job, name, created, task, settings, seed, height, width in found
        ]

    def forget(self, name: str) -> None:
        """Deletes a picture. Raises UnknownPicture if there is none of this name.

        The file goes first: on a full disk that makes the room that the database needs.
        """
        if not self._all("SELECT 1 FROM pictures WHERE name = ?", name):
            raise UnknownPicture(name)
        with errors.doing("deleting the picture", name):
            self.path(name).unlink(missing_ok=True)
        with self._writing() as base:
            base.execute("DELETE FROM pictures WHERE name = ?", (name,))

    def choose(self, what: str, value: str) -> None:
        """Keeps a choice, such as the current model."""
        with self._writing() as base:
            base.execute("INSERT OR REPLACE INTO chosen VALUES (?, ?)", (what, value))

    def chosen(self, what: str) -> str | None:
        """Returns the choice that was kept, None if there is none."""
        found = self._all("SELECT value FROM chosen WHERE what = ?", what)
        return found[0][0] if found else None

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._base.close()
        self._own.release()
