"""Reads files in a process that notes everything the reading does: run as a script, one JSON list of paths on stdin.

For each path it writes what came of it (what was raised, or how many tensors there were), seconds of processor time,
and the events of Python's audit hooks that no reader may cause. While a file is read the process may have 64 MB more of
private memory than before; where the system does not enforce that, the peak of Python's own memory is written too.
"""

import json
import os
import re
import sys
import time
import tracemalloc

from sdjax.convert.containers import reading
from sdjax.convert.errors import CheckpointError

LIMIT = 64 * 2**20
HARMFUL = re.compile(
    r"import|exec|compile|open|marshal|pickle|code\.|ctypes|subprocess|socket|urllib|webbrowser|shutil|tempfile|winreg"
    r"|os\.(?!scandir|listdir)|builtins|cpython\.(?!_PySys_ClearAuditHooks)|function\.__new__|object\.__(set|del)attr__"
)

events: list[str] = []
watching = False


def hook(event: str, args: tuple) -> None:
    if not watching or not HARMFUL.match(event):
        return
    if event == "open" and (args[1] in (None, "r", "rb")) and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    if event == "import" and args[0] in sys.modules:
        return
    events.append(f"{event} {args!r}"[:200])


def attempt(path: str) -> dict:
    """Reads all tensors of one file."""
    start = time.process_time()
    try:
        with reading.read(path) as file:
            for name in file:
                file[name]
            result = {"read": len(file)}
    except CheckpointError as error:
        result = {"refused": str(error)}
    except BaseException as error:
        result = {"raised": f"{type(error).__name__}: {error}"[:300]}
    result["seconds"] = time.process_time() - start
    return result


def limit_memory() -> bool:
    """Lets the process have LIMIT more bytes of private memory than now. Returns whether the system can do that."""
    try:
        import resource

        with open("/proc/self/status") as status:
            now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + LIMIT, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return False
    return True


def main() -> None:
    global watching
    honest, paths = json.load(sys.stdin)
    for path in honest:  # what is imported or allocated once, by the first file of its kind
        assert "read" in attempt(path), path
    sys.addaudithook(hook)
    for path in paths:
        limited = limit_memory()
        watching = True
        result = attempt(path)
        watching = False
        if not limited:
            tracemalloc.start()
            attempt(path)
            result["bytes"] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        print(json.dumps({**result, "events": events[:]}), flush=True)
        events.clear()


if __name__ == "__main__":
    main()
