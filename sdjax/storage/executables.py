"""Compiled programs kept from run to run, so that the first picture waits for no compiler.

An executable is machine code, and JAX reads it with pickle. Both would run whatever a stranger put in the file. So an
executable is read only if this user wrote it on this computer: every file has a code (HMAC-SHA256) made with a random
key, which is in the user's own data folder and nowhere else. The code covers the executable and its circumstances: the
program, the device, and the versions of JAX and of the driver. A file from elsewhere, a changed one, and one for other
circumstances has another code. It is not read; the program is compiled again.
"""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

import jax
import jaxlib
import platformdirs

from sdjax.checks.computer import processor
from sdjax.storage.files import write_file

KEY_FILE = "executables.key"
KEY_BYTES, CODE_BYTES = 32, 32
LARGEST = 2**32  # bytes of one executable
ENDING = ".executable"


def load(path: Path, program: str, device: jax.Device, in_tree: Any, out_tree: Any) -> Any:
    """Returns the compiled program in the file, or None if it was not written by this user for this device.

    `program` is the SHA-256 of the exported program.
    """
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    key = _key(make=False)
    data = path.read_bytes()
    code, payload = data[:CODE_BYTES], data[CODE_BYTES:]
    if key is None or not hmac.compare_digest(code, _code(key, payload, program, device)):
        return None
    from jax.experimental import serialize_executable

    return serialize_executable.deserialize_and_load(payload, in_tree, out_tree, execution_devices=[device])


def save(path: Path, compiled: Any, program: str, device: jax.Device) -> None:
    """Writes a compiled program to a file. Raises OSError with a sentence."""
    from jax.experimental import serialize_executable

    payload = serialize_executable.serialize(compiled)[0]
    key = _key(make=True)
    assert key is not None
    write_file(path, _code(key, payload, program, device) + payload, overwrite=True, what="keeping a compiled program")


def file_name(program: str, device: jax.Device) -> str:
    """Returns the name of the file for a program on a device, so that several devices may share a folder."""
    return f"{hashlib.sha256(_circumstances(program, device)).hexdigest()[:32]}{ENDING}"


def _circumstances(program: str, device: jax.Device) -> bytes:
    what = {
        "program": program,
        "device": device.device_kind,
        "platform": [device.platform, device.client.platform_version],
        "versions": [jax.__version__, jaxlib.__version__],
        "processor": processor(),
        "flags": [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")],
    }
    return json.dumps(what, sort_keys=True).encode()


def _code(key: bytes, payload: bytes, program: str, device: jax.Device) -> bytes:
    about = _circumstances(program, device)
    return hmac.digest(key, len(about).to_bytes(8, "big") + about + payload, "sha256")


def _key(*, make: bool) -> bytes | None:
    """Returns this user's key on this computer. Without `make`, returns None if there is none."""
    path = platformdirs.user_data_path("sdjax") / KEY_FILE
    try:
        key = path.read_bytes()
    except OSError:
        key = b""
    if len(key) == KEY_BYTES:
        return key
    if not make:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    key = secrets.token_bytes(KEY_BYTES)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key
