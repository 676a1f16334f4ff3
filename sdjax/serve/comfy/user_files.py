"""What the editor keeps on the server: settings, saved workflows, and pictures to work on.

Everything lies in one folder. A name from outside never becomes a path: files are named by hashes, and an index has
the names.
"""

import contextlib
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from sdjax.storage.files import write_file

MOST_FILES = 2000
LONGEST_NAME = 300
MOST_BYTES = 512 * 2**20  # of all files together
INDEX = "names.json"
WRITING = "keeping the editor's files"


class UserFiles:
    """Files by name, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._index: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                self._index = {str(name): entry for name, entry in found.items() if isinstance(entry, dict)}

    def names(self, start: str = "") -> list[str]:
        """Returns the names that begin with `start`."""
        with self._lock:
            return sorted(name for name in self._index if name.startswith(start))

    def about(self, name: str) -> dict[str, Any]:
        """Returns {"size", "modified"} of a file. Raises KeyError."""
        with self._lock:
            return dict(self._index[name])

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises KeyError if there is none."""
        with self._lock:
            if name not in self._index:
                raise KeyError(name)
            try:
                return self._place(name).read_bytes()
            except FileNotFoundError:
                raise KeyError(name) from None

    def write(self, name: str, content: bytes) -> None:
        """Keeps a file. Raises ValueError for a bad name and for too many or too large files."""
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise ValueError(f"a name has 1 to {LONGEST_NAME} printable characters")
        with self._lock:
            used = sum(entry.get("size", 0) for other, entry in self._index.items() if other != name)
            if len(self._index) >= MOST_FILES or used + len(content) > MOST_BYTES:
                raise ValueError("the editor's files have no more room: delete some of them")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._replace(self._place(name), content)
            self._index[name] = {"size": len(content), "modified": time.time()}
            self._save()

    def delete(self, name: str) -> None:
        """Deletes a file. Raises KeyError if there is none."""
        with self._lock:
            del self._index[name]
            self._place(name).unlink(missing_ok=True)
            self._save()

    def _place(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()

    def _save(self) -> None:
        self._replace(self._folder / INDEX, json.dumps(self._index).encode())

    def _replace(self, path: Path, content: bytes) -> None:
        write_file(path, content, what=WRITING, overwrite=True)
