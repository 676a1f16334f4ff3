"""Pictures that were uploaded and wait for the request that uses them. They are in memory only."""

import secrets
import threading
from collections import OrderedDict


class UnknownUpload(ValueError):
    """There is no upload with this id, or it is gone."""


class Uploads:
    """Files by random ids. The oldest are dropped when all together have more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes) -> str:
        """Returns the id of a new file."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._files[name] = content
            self._size += len(content)
            while self._size > self._most and len(self._files) > 1:
                self._size -= len(self._files.popitem(last=False)[1])
        return name

    def get(self, name: str) -> bytes:
        """Returns the content of a file. Raises UnknownUpload."""
        with self._lock:
            if name not in self._files:
                raise UnknownUpload("the upload is unknown, or too old: upload the picture again")
            self._files.move_to_end(name)
            return self._files[name]
