"""Read-only memory maps of regular files, opened so that nothing else (pipe, device, socket, folder) is ever read."""

import errno
import mmap
import os
import pathlib
import stat
from collections.abc import Callable

from sdjax.convert.containers.places import why_missing
from sdjax.convert.errors import CheckpointError
from sdjax.storage.addresses import local

# A span longer than this is looked at for holes before its bytes are: a sparse file makes terabytes out of nothing.
HOLES_ALLOWED = 256 * 2**20
EXTENTS_LOOKED_AT = 1000


class MappedFile:
    """A regular file, mapped read-only. Nothing is read until it is looked at.

    The arrays that are views of the map keep it alive after `close`. A file that is cut short by another program while
    it is mapped ends this one (SIGBUS), as with every memory map.
    """

    _fd: int | None = None
    _map: mmap.mmap | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises CheckpointError unless `path`, links followed, is a regular file with something in it."""
        self.path = pathlib.Path(local(path))
        try:
            _check_regular(os.stat(self.path), self.path)
            # O_NONBLOCK: should a pipe take the file's place meanwhile, opening it still does not wait for a writer.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self.path, flags)
            status = os.fstat(self._fd)
            _check_regular(status, self.path)
            self.size = status.st_size
            if self.size == 0:
                raise self.error("the file is empty")
            self._map = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
            self.size = len(self._map)
        except (OSError, ValueError, OverflowError) as error:
            self._close_descriptor()
            if isinstance(error, CheckpointError):
                raise
            gone = isinstance(error, FileNotFoundError)
            raise CheckpointError(why_missing(self.path) if gone else why(error), self.path) from error

    def error(self, reason: str) -> CheckpointError:
        """Returns the exception to raise: `reason` with the file's name before it."""
        return CheckpointError(reason, self.path)

    @property
    def map(self) -> mmap.mmap:
        """The map, indexed like bytes. Raises CheckpointError after `close`."""
        if self._map is None:
            raise self.error("the file was closed; read it again")
        return self._map

    def bytes(self, start: int, stop: int) -> bytes:
        """Returns a copy of the bytes from `start` to `stop`, fewer where the file ends before."""
        return self.map[max(start, 0) : max(stop, 0)]

    def view(self, start: int, stop: int) -> memoryview:
        """Returns the bytes from `start` to `stop` without copying. Raises CheckpointError where there are none."""
        if not 0 <= start <= stop <= self.size:
            raise self.error(f"bytes {start} to {stop} were looked for in a file of {self.size}; it was cut short")
        if stop - start > HOLES_ALLOWED and self._holes(start, stop) > HOLES_ALLOWED:
            raise self.error(
                f"most of bytes {start} to {stop} was never written (a sparse file, or a download that stopped); "
                "get the file again"
            )
        return memoryview(self.map)[start:stop]

    def release(self, start: int, stop: int) -> None:
        """Gives the pages between `start` and `stop` back to the system; looked at again, they are read again."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = min(stop, self.size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

    def close(self) -> None:
        """Lets go of the file; arrays that were taken from it stay valid."""
        self._close_descriptor()
        if self._map is not None:
            mapped, self._map = self._map, None
            try:  # contextlib's names too may be gone when the interpreter ends
                mapped.close()
            except BufferError:  # arrays still look at it; it is closed with the last of them
                return

    # Bound here: when the interpreter ends, a module's names may be gone before the last of its objects are
    def _close_descriptor(self, close: Callable[[int], None] = os.close) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            close(fd)

    def __del__(self) -> None:
        self._close_descriptor()

    def _holes(self, start: int, stop: int) -> int:
        """Returns how many of these bytes lie in holes, as far as the file system tells; 0 where it does not."""
        if not hasattr(os, "SEEK_HOLE") or self._fd is None:
            return 0
        holes = 0
        try:
            for _ in range(EXTENTS_LOOKED_AT):
                if start >= stop:
                    break
                try:
                    data = min(os.lseek(self._fd, start, os.SEEK_DATA), stop)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # ENXIO: no data from here to the end
                        raise
                    data = stop
                holes += data - start
                start = os.lseek(self._fd, data, os.SEEK_HOLE) if data < stop else stop
        except OSError:
            return holes
        return holes


def _check_regular(status: os.stat_result, path: pathlib.Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
            stat.S_IFSOCK: "a socket",
        }
        kind = kinds.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise CheckpointError(f"expected a regular file, but this is {kind}", path)


def why(error: OSError | ValueError | OverflowError) -> str:
    """Returns the words for a file that the system does not open."""
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT:
            return "there is no such file"
        if error.errno == errno.ELOOP:
            return "its symbolic links lead in a circle"
        return f"it cannot be opened ({error.strerror or error})"
    return f"it cannot be opened ({error})"  # a null character in the name; a file larger than the address space
