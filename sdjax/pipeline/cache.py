"""Keeps compiled programs from run to run, in JAX's own cache. The default folder is in the user's cache folder.

JAX limits the cache's size (`jax_compilation_cache_max_size`) and locks the cache for every access, so processes may
share the folder. One case it does not handle: a process that is killed while writing leaves an entry without the time
of its last use, and every later write fails. We remove such entries here.

Compiled programs are machine code. So no folder is used that belongs to another user, or that others may write.
"""

import functools
import os
from pathlib import Path

from sdjax.checks.computer import processor
from sdjax.checks.notes import note
from sdjax.storage import files
from sdjax.storage.kept import ENVIRONMENT

MAX_BYTES = 2 * 2**30  # JAX's limit; one program of a full-size model takes some 20 MB
ROOM = 64 * 2**20  # with fewer free bytes on the disk, nothing is kept
MIN_SECONDS = 0.1  # faster compilations are not kept; JAX's default of 1 s would skip half of a small model's programs
LOCK_SECONDS = 10.0

_ENTRY, _TIME, _LOCK = "-cache", "-atime", ".lockfile"  # JAX's names


@functools.cache
def enable() -> Path | None:
    """Makes JAX keep up to MAX_BYTES of compiled programs, and returns the folder. Only the first call has an effect.

    Returns None and changes nothing in three cases: the cache is switched off (by SDJAX_COMPILATION_CACHE=0 or by JAX's
    own switch), JAX already has a folder, or the user's cache folder cannot be written (or its disk is full). The
    user's settings of JAX's limits are kept. Each kind of processor has its own folder. A folder that other users may
    write is not used: a note says so, and if JAX already has it, it is taken away from JAX.

    Raises ValueError if SDJAX_COMPILATION_CACHE is neither 0 nor 1.
    """
    import jax
    import platformdirs

    from sdjax.nn.jax_settings import setting  # here, so that `import sdjax` stays fast

    wanted = os.environ.get(ENVIRONMENT, "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"the environment variable {ENVIRONMENT} must be 0 or 1; got {wanted!r}")
    own = setting("jax_compilation_cache_dir")
    if own is not None and _refused(Path(str(own))):
        from jax.experimental.compilation_cache import compilation_cache

        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
        return None
    if wanted == "0" or not setting("jax_enable_compilation_cache") or own is not None:
        return None
    folder = platformdirs.user_cache_path("sdjax") / "compiled" / processor()
    try:
        files.check_folder(folder, "keeping compiled programs in", ROOM)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)  # one that was made under a permissive umask
        if _refused(folder):
            return None
        _remove_halves(folder)
    except (OSError, NotImplementedError):  # no space, no permission or no file locks: compile every time
        return None
    _set("jax_compilation_cache_max_size", MAX_BYTES, default=-1)
    _set("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS, default=1.0)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def folder() -> Path | None:
    """Returns the folder in which JAX keeps compiled programs, the user's own or that of `enable`.

    Returns None if there is none, it is not on this computer, or SDJAX_COMPILATION_CACHE is 0.
    """
    from sdjax.nn.jax_settings import setting

    enable()
    place = setting("jax_compilation_cache_dir")
    kept = isinstance(place, str) and place and "://" not in place and setting("jax_enable_compilation_cache")
    return Path(str(place)) if kept and os.environ.get(ENVIRONMENT, "1") == "1" else None


def keep_small() -> None:
    """Makes JAX keep programs that compile in less than MIN_SECONDS too. Networks that run layer by layer have many."""
    if enable() is not None:
        _set("jax_persistent_cache_min_compile_time_secs", 0.0, default=MIN_SECONDS)


def keep_all(place: Path | None) -> None:
    """Makes JAX keep all programs, in the folder `place`, or in that of `folder` for None.

    Raises ValueError if there is no folder.
    """
    import jax

    if place is not None:
        if others_may_write(place):
            raise ValueError(f"other users may write into {place}: use a folder that only you may write (chmod go-w)")
        jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if folder() is None:
        raise ValueError(
            f"there is no folder that keeps programs: name one with --folder, and do not set {ENVIRONMENT}=0"
        )


def others_may_write(folder: Path) -> bool:
    """Returns whether a folder is another user's, or others may write into it. The system's own user (root) is trusted.

    Returns False for a folder that does not exist, and on systems without such rights.
    """
    if not hasattr(os, "getuid") or not folder.is_dir():
        return False
    found = folder.stat()
    return found.st_uid not in (0, os.getuid()) or bool(found.st_mode & 0o022)


def _refused(folder: Path) -> bool:
    """Returns whether a folder must not be used, and says why in a note."""
    refused = others_may_write(folder)
    if refused:
        note(
            f"compiled programs are not kept: other users may write into {folder}, and compiled programs are machine "
            "code. Make it a folder that only you may write (chmod go-w), or name another one with "
            "JAX_COMPILATION_CACHE_DIR"
        )
    return refused


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
