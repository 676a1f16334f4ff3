"""Errors of the system as sentences, and files that appear whole or not at all."""

import collections
import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdjax import errors
from sdjax.pictures import image
from sdjax.storage import files

NUMBERS = ["ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EMFILE", "ENFILE",
           "EIO", "EFBIG", "ENOENT", "ELOOP", "EBUSY", "ESTALE"]  # fmt: skip
PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_error_names_what_was_done_and_the_path(name, tmp_path):
    number = getattr(errno, name)
    with pytest.raises(OSError) as caught, errors.doing("writing the picture", tmp_path / "a.png", 3 * 2**20):
        raise OSError(number, os.strerror(number), "/dev/fd/3")
    assert caught.value.errno == number
    assert type(caught.value) is type(OSError(number, ""))
    text = str(caught.value)
    assert text.startswith(f"writing the picture {tmp_path}/a.png failed: ")
    assert os.strerror(number).lower() in text.lower()
    assert "[Errno" not in text
    assert len(text.splitlines()) == 1
    assert ("3 MiB are needed" in text) == (name in ("ENOSPC", "EDQUOT"))
    assert errors.sentence(caught.value) == text


def test_an_error_is_said_once_and_sentences_stay(tmp_path):
    inner = errors.doing("inner", "a")
    with pytest.raises(OSError, match="^inner a failed") as caught, errors.doing("outer", "b"), inner:
        raise OSError(errno.EIO, "x")
    assert caught.value.errno == errno.EIO
    with pytest.raises(FileExistsError, match="^as it is$"), errors.doing("outer", "b"):
        raise FileExistsError("as it is")
    with pytest.raises(ValueError, match="^other$"), errors.doing("outer", "b"):
        raise ValueError("other")


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"mine")
    Path("folder").mkdir()
    os.symlink("gone", "dangling")
    os.symlink("circle", "circle")
    return tmp_path


WRONG = [
    ("file/a.png", "file is a file, and not a folder"),
    ("file/deep/er/a.png", "file is a file, and not a folder"),
    ("dangling/a.png", "dangling is a link to gone, which is not there"),
    ("circle/a.png", "circle"),
    ("n" * 300 + ".png", "a name in it has 304 bytes, too many"),
    ("folder/" + "\u65e5" * 90 + ".png", "a name in it has 274 bytes, too many"),
    ("folder", "is a folder"),
    ("file", "exists"),
    ("dangling", "exists"),
    ("/proc/nothing/a.png", "/proc/nothing/a.png"),
]


@pytest.mark.parametrize(("path", "said"), WRONG, ids=lambda value: value[:20])
def test_what_cannot_be_written_is_said_and_leaves_nothing(places, path, said):
    before = sorted(places.rglob("*"))
    with pytest.raises(OSError, match="(?s).") as caught:
        image.save_png(path, PICTURE)
    assert said in str(caught.value)
    assert "[Errno" not in str(caught.value)
    assert sorted(places.rglob("*")) == before
    assert Path("file").read_bytes() == b"mine"


def test_a_file_that_grows_too_large_is_not_left(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"new/a.bin failed: the file would be larger.*File too large") as caught:
            files.write_file(tmp_path / "new" / "a.bin", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []


def test_a_line_is_written_whole_or_not_at_all(tmp_path):
    files.append(tmp_path / "log", b"first\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.append(tmp_path / "log", b"second line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "log").read_bytes() == b"first\n"


def test_room_is_looked_at_where_the_file_will_be(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return collections.namedtuple("usage", "total used free")(10**9, 0, 2**20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    files.check_room(tmp_path / "not" / "there", 2**20, "copying to")
    with pytest.raises(
        OSError, match=r"copying to .*there failed: .*\(1 GiB are needed, 1 MiB are free\).*, or pay"
    ) as e:
        files.check_room(tmp_path / "not" / "there", 2**30, "copying to", ", or pay")
    assert e.value.errno == errno.ENOSPC
    assert set(asked) == {tmp_path}


def test_a_folder_is_looked_at_without_being_made(places):
    files.check_folder("folder/new/newer", "writing into")
    assert os.listdir("folder") == []
    for bad in ("file", "file/x", "dangling", "dangling/x", "n" * 300):
        with pytest.raises(OSError, match="^writing into .* failed: "):
            files.check_folder(bad, "writing into")


@pytest.mark.parametrize("kept", [True, False])
def test_a_folder_that_was_made_for_nothing_goes_again(places, kept):
    with contextlib.suppress(KeyError), files.folder_for("new/er"):
        if kept:
            Path("new/kept").touch()
        raise KeyError
    assert Path("new").exists() == kept
    assert not Path("new/er").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("command", [["inspect", "model", "--json"], ["inspect", "model"]])
def test_standard_output_on_a_full_disk(tmp_path, command):
    from sdjax import convert

    import models

    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, tmp_path / "model", to="native")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sdjax.scripts.main", *command], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("sdjax inspect: writing to standard output failed: the disk is full; ")
    assert len(done.stderr.splitlines()) == 1
