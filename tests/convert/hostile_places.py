"""Paths that are not checkpoints: folders with bad indices, links, pipes, devices, other files.

Each function makes something in an empty folder and returns the path to read; None where the system cannot make it.
"""

import json
import os

import checkpoint_writer as writer
import hostile_archives
import hostile_pickles
import numpy as np

ARRAYS = {"a": np.arange(3, dtype=np.float32), "b": np.arange(2, dtype=np.float16)}
TENSORS = writer.safetensors_file(ARRAYS)
NAME, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
SHARD = "diffusion_pytorch_model-{:05}-of-{:05}.safetensors"


def content(data):
    def make(folder):
        (folder / "x.ckpt").write_bytes(data)
        return folder / "x.ckpt"

    return make


def files(table):
    """A folder of these files; a value may be bytes, JSON, or a function that is given the path."""

    def make(folder):
        for name, data in table.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(data):
                if data(path) is None:
                    return None
            else:
                path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return folder

    return make


def index(weight_map, **shards):
    """A component's folder whose index gives these files for its tensors."""
    return files({INDEX: {"metadata": {}, "weight_map": weight_map}, SHARD.format(1, 1): TENSORS, **shards})


def link(target):
    def make(path):
        try:
            path.symlink_to(target)
        except OSError:
            return None  # needs a privilege on Windows
        return path

    return make


def pipe(path):
    if not hasattr(os, "mkfifo"):
        return None
    os.mkfifo(path)
    return path


def linked(target):
    return lambda folder: link(target)(folder / "x.ckpt")


def device(path):
    return lambda folder: path if os.path.exists(path) else None


def links_in_a_circle(folder):
    return link("y")(folder / "x") and link("x")(folder / "y")


def many_files(folder):
    for i in range(10_001):
        (folder / f"{i}.txt").touch()
    return folder


def many_links_to_a_large_folder(folder):
    (folder / "large").mkdir()
    for i in range(2_000):
        (folder / "large" / str(i)).touch()
    return folder if all(link("large")(folder / f"folder{i}") for i in range(2_000)) else None


def shards_of(data, count=150):
    """A folder of one file, costly to read, under many names."""

    def make(folder):
        (folder / "blob").write_bytes(data)
        names = [SHARD.format(i, count).replace("safetensors", "bin") for i in range(count)]
        weight_map = {str(i): name for i, name in enumerate(names)}
        (folder / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder if all(link("blob")(folder / name) for name in names) else None

    return make


COSTLY_PICKLE = hostile_archives.pickle_files(
    hostile_pickles.pickle(
        b"}X\1\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
        b"0X\3\0\0\0cpuK\0NtQK\0K\0\x85K\1\x85\x89}tRs" + b"(" + b"N" * 100_000 + b"1"
    )
)[1].replace(b"]q\0.", b"]q\0X\1\0\0\x000a.") + bytes(8)
COSTLY_HEADER = writer.safetensors_header(
    b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' + b" " * 2**20 + b"}"
)
DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
REGULAR = "expected a regular file, but this is"
NO_SHARD = "which is no shard's name"

ALL = {
    "nothing": (lambda folder: folder / "x.ckpt", "there is no such file"),
    "nothing in nothing": (lambda folder: folder / "x" / "y.ckpt", "there is no such file"),
    "a file as a folder": (lambda folder: content(b"x")(folder) / "y", "Not a directory|no such file"),
    "a null in the name": (lambda folder: folder / "x\0.ckpt", "it cannot be opened|no such file"),
    "a name of 5,000 letters": (lambda folder: folder / ("x" * 5000), "it cannot be opened|no such file"),
    "empty": (content(b""), "the file is empty"),
    "one byte": (content(b"\x80"), "expected a checkpoint of torch.save"),
    "zeros": (content(bytes(1000)), "begins with zeros"),
    "text": (content(b"<!DOCTYPE html><html></html>"), "this is text"),
    "a pointer to the file": (content(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
    "a pickle alone": (content(hostile_pickles.CODE["REDUCE"][0]), "a pickle that torch.save did not write"),
    "a tar": (content(b"sys_info\0".ljust(512, b"\0") + bytes(1024)), "its first bytes are none of theirs"),
    "gzip": (content(b"\x1f\x8b\x08" + bytes(100)), "its first bytes are none of theirs"),
    "a folder of nothing": (lambda folder: folder, "the folder has no weights"),
    "a pipe": (lambda folder: pipe(folder / "x.ckpt"), f"{REGULAR} a pipe"),
    "a link to a pipe": (lambda folder: pipe(folder / "p") and linked("p")(folder), f"{REGULAR} a pipe"),
    "/dev/zero": (device("/dev/zero"), f"{REGULAR} a device"),
    "/dev/null": (device("/dev/null"), f"{REGULAR} a device"),
    "/dev/random": (device("/dev/random"), f"{REGULAR} a device"),
    "/dev/tty": (device("/dev/tty"), f"{REGULAR} a device"),
    "a link to /dev/zero": (linked("/dev/zero"), f"{REGULAR} a device|no such file"),
    "/proc/self/mem": (device("/proc/self/mem"), "the file is empty|cannot be opened"),
    "/proc/kcore": (device("/proc/kcore"), "the file is empty|cannot be opened|neither's|first bytes"),
    "a link to nothing": (linked("nothing"), "there is no such file"),
    "a link to itself": (linked("x.ckpt"), "lead in a circle|cannot be opened"),
    "links in a circle": (links_in_a_circle, "lead in a circle|cannot be opened"),
    "10,001 files": (many_files, "more than 10000 files in its folders"),
    "2,000 links to a folder of 2,000": (many_links_to_a_large_folder, "more than 10000 files in its folders"),
    "weights that are a pipe": (files({NAME: pipe}), f"{REGULAR} a pipe"),
    "weights that are /dev/zero": (files({NAME: link("/dev/zero")}), f"{REGULAR} a device"),
    "weights that are text": (files({NAME: b"hello, world. this is text"}), "expected a checkpoint of torch.save"),
    "weights below that hold code": (
        files(
            {"unet/diffusion_pytorch_model.bin": hostile_archives.pickle_files(hostile_pickles.CODE["REDUCE"][0])[0]}
        ),
        r"it calls builtins\.exec",
    ),
    "index: up": (index({"a": "../" + NAME}), NO_SHARD),
    "index: far away": (index({"a": "/etc/passwd"}), NO_SHARD),
    "index: a device": (index({"a": "/dev/zero"}), NO_SHARD),
    "index: up, by a shard's name": (index({"a": "../" + SHARD.format(1, 1)}), NO_SHARD),
    "index: below": (index({"a": "x/" + SHARD.format(1, 1)}), NO_SHARD),
    "index: backslash": (index({"a": "..\\" + SHARD.format(1, 1)}), NO_SHARD),
    "index: null": (index({"a": SHARD.format(1, 1) + "\0"}), NO_SHARD),
    "index: line feed": (index({"a": SHARD.format(1, 1) + "\n"}), NO_SHARD),
    "index: itself": (index({"a": INDEX}), NO_SHARD),
    "index: another file": (index({"a": "optimizer.bin"}), NO_SHARD),
    "index: a number": (index({"a": 7}), NO_SHARD),
    "index: a list": (index({"a": [SHARD.format(1, 1)]}), NO_SHARD),
    "index: not there": (index({"a": SHARD.format(2, 2)}), "which is not there"),
    "index: nothing": (index({}), "does not give a file for each tensor"),
    "index: a list of files": (index([SHARD.format(1, 1)]), "does not give a file for each tensor"),
    "index: without its map": (files({INDEX: {}, SHARD.format(1, 1): TENSORS}), "does not give a file for each tensor"),
    "index: a tensor too many": (index(dict.fromkeys("abc", SHARD.format(1, 1))), "lacks 'c'"),
    "index: two files with one tensor": (
        index(
            {"a": SHARD.format(1, 2), "b": SHARD.format(2, 2)},
            **{SHARD.format(1, 2): TENSORS, SHARD.format(2, 2): TENSORS},
        ),
        "'a' is in two files",
    ),
    "index: a shard that is a pipe": (
        index({"a": SHARD.format(1, 2)}, **{SHARD.format(1, 2): pipe}),
        f"{REGULAR} a pipe",
    ),
    "index: a shard that is a link to a device": (
        index({"a": SHARD.format(1, 2)}, **{SHARD.format(1, 2): link("/dev/zero")}),
        f"{REGULAR} a device",
    ),
    "index: a shard that is a link out to text": (
        index({"a": SHARD.format(1, 2)}, **{SHARD.format(1, 2): link("/etc/passwd")}),
        "expected a checkpoint of torch.save|no such file",
    ),
    "index: a shard that is a link in a circle": (
        index({"a": SHARD.format(1, 2)}, **{SHARD.format(1, 2): link(SHARD.format(1, 2))}),
        "symbolic links|which is not there",
    ),
    "index: a shard that is a folder": (
        index({"a": SHARD.format(1, 2)}, **{f"{SHARD.format(1, 2)}/x": b"x"}),
        "which is not there",
    ),
    "index: a pipe": (files({INDEX: pipe}), f"{REGULAR} a pipe"),
    "index: /dev/zero": (files({INDEX: link("/dev/zero")}), f"{REGULAR} a device"),
    "index: empty": (files({INDEX: b""}), "the file is empty"),
    "index: not JSON": (files({INDEX: b"hello"}), "its JSON cannot be read"),
    "index: a JSON list": (files({INDEX: b"[]"}), "no object of names and values"),
    "index: a name twice": (files({INDEX: b'{"weight_map":{"a":"x","a":"y"}}'}), "the key 'a' twice"),
    "index: NaN": (files({INDEX: b'{"weight_map":NaN}'}), "NaN is not JSON"),
    "index: infinite": (files({INDEX: b'{"weight_map":1e999}'}), "a number that is too large"),
    "index: a million digits": (files({INDEX: b'{"x":' + b"9" * 10**6 + b"}"}), "a number of too many digits"),
    "index: a million decimals": (files({INDEX: b'{"x":0.' + b"9" * 10**6 + b"}"}), "does not give a file for each"),
    "index: braces in braces": (files({INDEX: DEEP}), "nested too deeply|does not give a file for each tensor"),
    "index: half a million lists": (files({INDEX: b'{"x":[' + b"[]," * 349_000 + b"[]]}"}), "does not give a file"),
    "index: 2 MB": (files({INDEX: b'{"x":"' + b"y" * 2**21 + b'"}'}), "more than 1048576 bytes of JSON"),
    "index: not UTF-8": (files({INDEX: b'{"\xff":1}'}), "its JSON cannot be read"),
    "index: 150 shards, costly pickles": (shards_of(COSTLY_PICKLE), "more than 300000 instructions"),
    "index: 150 shards, costly headers": (shards_of(COSTLY_HEADER), "more than 4194304 bytes of safetensors headers"),
    "index: 250 shards": (
        shards_of(writer.safetensors_file({"x": np.zeros(0, np.float32)}), 250),
        "more than 200 files",
    ),
    "configuration that is a pipe": (files({NAME: TENSORS, "config.json": pipe}), f"{REGULAR} a pipe"),
    "configuration of 2 MB": (
        files({NAME: TENSORS, "config.json": b'{"x":"' + b"y" * 2**21 + b'"}'}),
        "more than 1048576 bytes of JSON",
    ),
    "configuration that is not JSON": (files({NAME: TENSORS, "config.json": b"hello"}), "its JSON cannot be read"),
    "60 components": (files({f"c{i:02}/{NAME}": TENSORS for i in range(60)}), "it has 60 folders of weights"),
}
