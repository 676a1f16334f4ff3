"""Copies a local folder into a bucket from time to time, because object stores cannot append."""

import tempfile
import time
from pathlib import Path
from typing import Any

from sdjax.storage import addresses, buckets

EVERY = 60.0  # seconds between two copies
WHAT = "copying the run's log to"


class Mirror:
    """A local `folder` that is copied to a remote one: `copy` copies the files that have changed.

    At the start the file `name` is fetched from the remote folder, if it exists there. `due` is the time, by the
    monotonic clock, of the next copy.
    """

    def __init__(self, target: Any, name: str):
        self.target = addresses.address(target)
        self._kept = tempfile.TemporaryDirectory(prefix="sdjax-", ignore_cleanup_errors=True)
        self.folder = Path(self._kept.name)
        self._copied: dict[Path, tuple[int, int]] = {}
        self.due = time.monotonic() + EVERY
        before = buckets.get(f"{self.target}/{name}")
        if before is not None:
            (self.folder / name).write_bytes(before)

    def copy(self) -> None:
        """Copies the files that are new or have changed. Raises OSError with one sentence."""
        self.due = time.monotonic() + EVERY
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            status = path.stat()
            now = status.st_size, status.st_mtime_ns
            if self._copied.get(path) != now:
                buckets.upload(path, f"{self.target}/{path.relative_to(self.folder).as_posix()}", WHAT)
                self._copied[path] = now

    def close(self) -> None:
        """Copies the remaining changes and removes the local folder. Raises as `copy`."""
        try:
            self.copy()
        finally:
            self._kept.cleanup()
