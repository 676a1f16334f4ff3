"""A folder of this computer whose files are copied into a bucket from time to time: object stores cannot append."""

import tempfile
import time
from pathlib import Path
from typing import Any

from sdjax.storage import addresses, buckets

EVERY = 60.0  # seconds between two copies
WHAT = "copying the run's log to"


class Mirror:
    """`folder`, which starts with the file `name` of the remote one if that is there; `copy` copies what has changed.

    `due` is the time, of the monotonic clock, after which to copy again.
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
        """Copies what is left, and removes the folder. Raises as `copy`."""
        try:
            self.copy()
        finally:
            self._kept.cleanup()
