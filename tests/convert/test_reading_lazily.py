"""Reading a large file takes neither its size in memory nor its time: tensors come one by one, out of a memory map."""

import os
import pathlib
import subprocess
import sys

import checkpoint_writer as writer
import numpy as np
import pickle_writer as pickles
import pytest

GIB = 2**30
TENSORS = 64  # of 16 MiB

SCRIPT = """
import sys
from sdjax.convert.containers import reading

def held():
    with open("/proc/self/status") as status:
        lines = dict(line.split(":") for line in status)
    return [int(lines[counter].split()[0]) * 1024 for counter in ("VmRSS", "VmData")]

def grown():
    return max(now - then for now, then in zip(held(), before))

before = held()
with reading.read(sys.argv[1]) as file:
    assert file.nbytes == 2**30, file.nbytes
    opened = most = grown()
    for name in file:
        assert not file[name][::1000].any()  # touches every page
        most = max(most, grown())
        file.release(name)
    print(opened, most)
"""


def write_safetensors(path):
    each = GIB // TENSORS
    entries = {
        f"{i}.weight": {"dtype": "F16", "shape": [each // 2], "data_offsets": [i * each, (i + 1) * each]}
        for i in range(TENSORS)
    }
    with open(path, "wb") as out:
        out.write(writer.safetensors_header(entries))
        out.truncate(out.tell() + GIB)


def write_legacy(path):
    each = GIB // TENSORS
    tensors = {
        f"{i:02}.weight": pickles.Tensor(
            pickles.Storage(f"{i:02}", np.broadcast_to(np.float16(0), each // 2)), (each // 2,)
        )
        for i in range(TENSORS)
    }
    pickle, storages = pickles.pickled(tensors, legacy=True)
    machine, _ = pickles.pickled({"little_endian": True})
    with open(path, "wb") as out:
        out.write(writer.LEGACY_HEAD + machine + pickle + pickles.pickled(sorted(storages))[0])
        for _ in storages:
            out.write((each // 2).to_bytes(8, "little"))
            out.seek(each, 1)
        out.truncate()


@pytest.mark.few(1)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("write", [write_safetensors, write_legacy])
def test_a_file_of_a_gibibyte_is_never_in_memory(tmp_path, write):
    write(tmp_path / "x")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    opened, read = map(int, done.stdout.split())
    assert opened < 8 * 2**20  # 64 entries of a header, and the map's first pages
    assert read < 40 * 2**20  # one tensor, copied once where a legacy file's lies unaligned


def test_no_call_of_one_system_is_taken_for_granted():
    # On Windows os has none of these: each must be asked for with getattr or hasattr.
    only_posix = {name for name in dir(os) if name.startswith(("O_", "SEEK_", "mkfifo", "pread", "posix_", "lstat"))}
    only_posix -= {"O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_BINARY", "lstat"}
    only_posix -= {"SEEK_SET", "SEEK_CUR", "SEEK_END"}
    root = pathlib.Path(__file__).parents[2] / "convert"
    for path in root.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        used = {name for name in only_posix if f"os.{name}" in text}
        guarded = {name for name in used if "SEEK_" in name and 'hasattr(os, "SEEK_HOLE")' in text}
        assert used == guarded, path.name
        assert "import resource" not in text, path.name
        assert "import fcntl" not in text, path.name
