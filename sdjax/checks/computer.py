"""This computer: its kind of processor, and how its C library keeps memory."""

import ctypes
import functools
import hashlib
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """Returns a name of this computer's kind of processor."""
    # In a cluster, machines may share the home folder. A program compiled for one processor may crash on another
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"


RETURNED_FROM = 2**20  # bytes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def return_large_blocks() -> None:
    """Makes glibc give blocks of RETURNED_FROM bytes back to the system when they are freed.

    By default it keeps freed blocks of up to 32 MiB, and small ones that lie between them keep them apart. Other C
    libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        library.mallopt(option, RETURNED_FROM)
