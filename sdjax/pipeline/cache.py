"""Keeps compiled programs from run to run: JAX's own cache, in the user's cache folder unless the user chose another.

JAX limits the cache's size (`jax_compilation_cache_max_size`), and takes a lock for whatever it reads, writes and
throws out, so processes may share the folder. One thing it leaves to us: a process that is killed while it writes
leaves an entry without the time of its last use, and every later write then fails. Such entries are removed here.
"""

import functools
import hashlib
import os
import platform
from pathlib import Path

from sdjax.storage import files

ENVIRONMENT = "SDJAX_COMPILATION_CACHE"  # 0 switches it off, 1 is the default
MAX_BYTES = 2 * 2**30  # JAX's limit; one program of a full-size model takes some 20 MB
ROOM = 64 * 2**20  # bytes free on its disk, below which nothing is kept
MIN_SECONDS = 0.1  # what took less to compile is not kept; JAX's 1 s would leave out half of a small model's programs
LOCK_SECONDS = 10.0

_ENTRY, _TIME, _LOCK = "-cache", "-atime", ".lockfile"  # JAX's names


@functools.cache
def enable() -> Path | None:
    """Makes JAX keep compiled programs, at most MAX_BYTES of them, and returns the folder; the first call decides.

    Returns None and changes nothing if the cache is switched off, by SDJAX_COMPILATION_CACHE=0 or by JAX's own switch;
    if JAX has a folder already; and if the user's cache folder cannot be written to or its disk is full. Limits that
    the user gave JAX stay. Each kind of processor has a folder of its own.

    Raises ValueError if SDJAX_COMPILATION_CACHE is neither 0 nor 1.
    """
    import jax
    import platformdirs

    from sdjax.nn.jax_settings import setting  # here, so that `import sdjax` stays fast

    wanted = os.environ.get(ENVIRONMENT, "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"the environment variable {ENVIRONMENT} is 0 or 1; got {wanted!r}")
    off = wanted == "0" or not setting("jax_enable_compilation_cache")
    if off or setting("jax_compilation_cache_dir") is not None:
        return None
    folder = platformdirs.user_cache_path("sdjax") / "compiled" / _processor()
    try:
        files.check_folder(folder, "keeping compiled programs in", ROOM)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_halves(folder)
    except (OSError, NotImplementedError):  # no place, no right to write, or no locks there: compile every time
        return None
    _set("jax_compilation_cache_max_size", MAX_BYTES, default=-1)
    _set("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS, default=1.0)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _set(name: str, value: float, *, default: float) -> None:
    """Sets one of JAX's options, unless it has been set already."""
    import jax

    from sdjax.nn.jax_settings import setting

    if name.upper() not in os.environ and setting(name) == default:
        jax.config.update(name, value)


def _remove_halves(folder: Path) -> None:
    """Removes entries without a time and times without an entry. Raises OSError if the folder cannot be locked."""
    import filelock

    with filelock.FileLock(folder / _LOCK, timeout=LOCK_SECONDS):
        entries = {path.name.removesuffix(_ENTRY) for path in folder.glob(f"*{_ENTRY}")}
        times = {path.name.removesuffix(_TIME) for path in folder.glob(f"*{_TIME}")}
        for key in entries ^ times:
            for suffix in (_ENTRY, _TIME):
                (folder / f"{key}{suffix}").unlink(missing_ok=True)


def _processor() -> str:
    # A program compiled for one processor may stop on another one that shares the home folder, as in a cluster
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"
