"""This computer's kind of processor. A program compiled for one processor may crash on another."""

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
