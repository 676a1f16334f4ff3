"""Models of the hub: what is fetched, from where, and what is said if that fails. Against a server of our own."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import hub_process
import hub_server
import jax
import numpy as np
import pytest
import safetensors.numpy

from sdjax import convert
from sdjax.convert.containers import reading
from sdjax.convert.errors import CheckpointError
from sdjax.loading import hub

import models

REPOSITORY = "someone/stable-thing"
TOKEN = "hf_this_is_a_secret"


def resolve(address: str, cache: Path, *calls: list, **env: str) -> list[str]:
    """Returns what a process of its own makes of each call."""
    given = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "log")
        lines = hub_process.resolve(calls, {**os.environ, "HF_HUB_OFFLINE": "0", **given, **env}, log)
        assert TOKEN not in "\n".join(lines) + log.read_text()
    assert len(lines) == len(calls)
    return lines


def folder_of(line: str) -> Path:
    assert line.startswith("path "), line
    return Path(line.removeprefix("path "))


def held(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def server():
    with hub_server.serve(hub_server.Hub()) as served:
        yield served


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="mounts a disk of 600 kB")
def test_a_full_disk_is_seen_before_anything_is_fetched(server, tmp_path) -> None:
    server.add(REPOSITORY, {"config.json": b"{}", "model.safetensors": bytes(2 * 2**20)})
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", tmp_path]).returncode:
        pytest.skip("cannot mount a disk here")
    try:
        (line,) = resolve(server.address, tmp_path, [REPOSITORY])
        assert line.startswith(f"error fetching {REPOSITORY} into {tmp_path}")
        assert "the disk is full; free some space (2 MiB are needed, 600 KiB are free)" in line
        assert server.sent() == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


LOAD = """
import sys
import jax
import sdjax
pipe = sdjax.load(sys.argv[1], dtype="float32")
print(pipe.source, pipe.config.unet.channels, sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(pipe.params)))
"""


def test_load_takes_a_repository(server, tmp_path) -> None:
    pipe = models.pipeline()
    folder = tmp_path / "model"
    convert.save(pipe.config, pipe.params, folder, to="diffusers")
    server.add(REPOSITORY, {name: (folder / name).read_bytes() for name in held(folder)})
    given = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run([sys.executable, "-c", LOAD, REPOSITORY], env=os.environ | given, capture_output=True,
                            text=True, timeout=120)  # fmt: skip
    assert result.returncode == 0, result.stderr
    total = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(pipe.params))
    name, channels, found = result.stdout.split()
    assert (name, channels) == (REPOSITORY, str(pipe.config.unet.channels))
    assert float(found) == total  # the same bytes in the same order


def weights(value: float) -> bytes:
    return safetensors.numpy.save({"weight": np.full((4,), value, np.float32)})


DESCRIPTIONS = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "README.md": b"a model",
    "LICENSE.md": b"a licence",
    "unet/config.json": b'{"sample_size": 64}',
    "vae/config.json": b'{"scaling_factor": 0.18215}',
    "text_encoder/config.json": b'{"hidden_act": "quick_gelu"}',
    "scheduler/scheduler_config.json": b'{"beta_start": 0.00085}',
    "tokenizer/tokenizer_config.json": b'{"model_max_length": 77}',
    "tokenizer/vocab.json": b'{"!": 0}',
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "feature_extractor/preprocessor_config.json": b'{"size": 224}',
}  # every content another one: the cache keeps each once
PLAIN = {
    "unet/diffusion_pytorch_model.safetensors": weights(1),
    "vae/diffusion_pytorch_model.safetensors": weights(2),
    "text_encoder/model.safetensors": weights(3),
}
HALF = {
    "unet/diffusion_pytorch_model.fp16.safetensors": weights(0.5),
    "text_encoder/model.fp16.safetensors": weights(0.25),
}
OTHERS = {
    "unet/diffusion_pytorch_model.bin": b"torch",
    "vae/diffusion_pytorch_model.bin": b"torch",
    "text_encoder/pytorch_model.bin": b"torch",
    "unet/diffusion_flax_model.msgpack": b"flax",
    "unet/diffusion_pytorch_model.non_ema.safetensors": weights(9),
    "text_encoder/model.onnx": b"onnx",
    "text_encoder/tf_model.h5": b"tf",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": weights(8),
    "samples/cat.png": b"png",
    "unet/extra/deep/config.json": b"{}",
    "model.ckpt": b"whole",
    "model-ema.safetensors": b"whole",
    ".gitattributes": b"",
}


def test_one_set_of_safetensors_is_fetched_of_a_pipeline(server, tmp_path) -> None:
    server.add(REPOSITORY, DESCRIPTIONS | PLAIN | HALF | OTHERS)
    folder = folder_of(resolve(server.address, tmp_path, [REPOSITORY])[0])
    assert held(folder) == set(DESCRIPTIONS | PLAIN)
    assert server.sent() == sorted(DESCRIPTIONS | PLAIN)
    # What the cache holds can be read: its entries are links
    with reading.read(folder) as file:
        assert sorted(file.tensors) == ["text_encoder/weight", "unet/weight", "vae/weight"]


def test_second_time_nothing_is_fetched(server, tmp_path) -> None:
    commit = server.add(REPOSITORY, DESCRIPTIONS | PLAIN)
    first = resolve(server.address, tmp_path, [REPOSITORY])
    assert server.sent()
    assert resolve(server.address, tmp_path, [REPOSITORY]) == first
    assert server.sent() == []
    assert hub.commit_of(folder_of(first[0])) == commit
    assert folder_of(first[0]).is_relative_to(tmp_path)


def test_variant_is_taken_where_there_is_one(server, tmp_path) -> None:
    server.add(REPOSITORY, DESCRIPTIONS | PLAIN | HALF | OTHERS)
    folder = folder_of(resolve(server.address, tmp_path, [REPOSITORY, None, "fp16"])[0])
    assert held(folder) == set(DESCRIPTIONS | HALF) | {"vae/diffusion_pytorch_model.safetensors"}
    with reading.read(folder, variant="fp16") as file:
        assert file["unet/weight"][0] == 0.5
    (line,) = resolve(server.address, tmp_path, [REPOSITORY, None, "fp8"])
    assert "'fp8'" in line
    assert "'fp16'" in line


def test_bin_is_fetched_where_there_is_no_safetensors(server, tmp_path) -> None:
    files = {name: data for name, data in (PLAIN | OTHERS).items() if name != "vae/diffusion_pytorch_model.safetensors"}
    server.add(REPOSITORY, DESCRIPTIONS | files)
    folder = folder_of(resolve(server.address, tmp_path, [REPOSITORY])[0])
    assert {name for name in held(folder) if name.endswith((".bin", ".safetensors"))} == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/model.safetensors",
    }


def test_revision_is_a_branch_a_tag_or_a_commit(server, tmp_path) -> None:
    server.add(REPOSITORY, DESCRIPTIONS | PLAIN)
    old = {**PLAIN, "unet/diffusion_pytorch_model.safetensors": weights(7)}
    commit = server.add(REPOSITORY, DESCRIPTIONS | old, "v1")
    lines = resolve(server.address, tmp_path, [REPOSITORY, "v1"], [REPOSITORY, commit], [REPOSITORY], [REPOSITORY, "v"])
    assert lines[0] == lines[1]
    assert lines[2] != lines[0]
    with reading.read(folder_of(lines[0])) as file:
        assert file["unet/weight"][0] == 7
    assert lines[3] == f"error {REPOSITORY}: the repository has no revision 'v'"


def test_broken_transfer_goes_on_where_it_stopped(server, tmp_path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    large = safetensors.numpy.save({"weight": np.arange(6 * 2**20, dtype=np.float32)})  # parts of 10 MiB are kept
    server.add(REPOSITORY, DESCRIPTIONS | PLAIN | {name: large})
    server.cut.add(name)
    # Before its version 2 huggingface_hub goes on when called again; since then it tries again itself
    first, second = resolve(server.address, tmp_path, [REPOSITORY], [REPOSITORY])
    assert first == second or "was interrupted; the finished part is kept" in first
    folder = folder_of(second)
    assert (folder / name).read_bytes() == large
    ranges = [asked for _, path, asked in server.asked if path.endswith(name) and asked]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").removesuffix("-")) <= len(large) // 2


def test_what_an_interruption_left_is_completed(server, tmp_path) -> None:
    server.add(REPOSITORY, DESCRIPTIONS | PLAIN)
    folder = folder_of(resolve(server.address, tmp_path, [REPOSITORY])[0])
    lost = folder / "unet/diffusion_pytorch_model.safetensors"  # as after an interruption
    lost.resolve().unlink()
    lost.unlink(missing_ok=True)
    server.asked.clear()
    (offline,) = resolve(server.address, tmp_path, [REPOSITORY], HF_HUB_OFFLINE="1")
    assert offline.startswith(f"error {REPOSITORY}: ")
    assert "cache" in offline
    assert server.asked == []
    assert folder_of(resolve(server.address, tmp_path, [REPOSITORY])[0]) == folder
    assert server.sent() == ["unet/diffusion_pytorch_model.safetensors"]


def test_without_network_the_cache_is_used(server, tmp_path) -> None:
    server.add(REPOSITORY, DESCRIPTIONS | PLAIN | HALF | OTHERS)
    lines = resolve(server.address, tmp_path, [REPOSITORY], [REPOSITORY, None, "fp16"])
    server.asked.clear()
    calls = [REPOSITORY], [REPOSITORY, None, "fp16"]
    assert resolve(server.address, tmp_path, *calls, HF_HUB_OFFLINE="1") == lines
    assert server.asked == []
    assert resolve(nowhere(), tmp_path, *calls) == lines
    server.refused[REPOSITORY] = (503, "")
    assert resolve(server.address, tmp_path, *calls) == lines


def nowhere() -> str:
    """Returns an address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


REFUSED = {
    "a/gated": (403, "GatedRepo", "accept its terms at {address}/a/gated and log in"),
    "a/private": (401, "", "if it is private, log in with `hf auth login`"),
    "a/down": (500, "", "{address} cannot be reached (HTTP status 500)"),
    "a/odd": (418, "", "{address} answered with HTTP status 418"),
    "a/missing": (404, "RepoNotFound", "nothing of that name is on this computer or at {address}"),
}


def test_errors_are_one_sentence(server, tmp_path) -> None:
    server.refused = {name: (status, code) for name, (status, code, _) in REFUSED.items()}
    paths = ["./no/such", "models/sd.ckpt"]
    lines = resolve(server.address, tmp_path, *([name] for name in [*REFUSED, *paths]))
    for line, (name, (_, _, sentence)) in zip(lines, REFUSED.items(), strict=False):
        assert line.startswith(f"error {name}: ")
        assert sentence.format(address=server.address) in line
    assert all("no such file or folder" in line for line in lines[-2:])
    (line,) = resolve(nowhere(), tmp_path, [REPOSITORY])
    assert "cannot be reached" in line
    (line,) = resolve(server.address, tmp_path, [REPOSITORY], HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids" in line


def test_single_files(server, tmp_path) -> None:
    extra = {"v1.yaml": b"model:", "README.md": b"", "cat.png": b"", "other/x.ckpt": b"x"}
    server.add("a/one", {"sd.safetensors": weights(1), "sd.ckpt": b"", **extra})
    server.add("a/old", {"sd.ckpt": b"old", **extra})
    server.add("a/many", {"a.safetensors": weights(1), "b.safetensors": weights(2), **extra})
    server.add("a/vae", {"config.json": b"{}", "diffusion_pytorch_model.safetensors": weights(4),
                         "diffusion_pytorch_model.bin": b"", "vae.ckpt": b""})  # fmt: skip
    names = ["a/one", "a/old", "a/many", "a/many/b.safetensors", "a/many/other/x.ckpt", "a/many/c.safetensors", "a/vae"]
    lines = resolve(server.address, tmp_path, *([name] for name in names))
    paths = [folder_of(lines[i]) for i in (0, 1, 3, 4, 6)]
    assert [path.name for path in paths[:4]] == ["sd.safetensors", "sd.ckpt", "b.safetensors", "x.ckpt"]
    assert held(paths[0].parent) == {"sd.safetensors", "v1.yaml", "README.md"}
    assert lines[2] == (
        "error a/many: which file? Name one, such as a/many/a.safetensors; its files are a.safetensors, b.safetensors, "
        "other/x.ckpt"
    )
    assert "has no file 'c.safetensors'; its files are a.safetensors" in lines[5]
    assert held(paths[4]) == {"config.json", "diffusion_pytorch_model.safetensors"}
    with reading.read(paths[4]) as file:
        assert sorted(file.tensors) == ["weight"]


HOSTILE = ("../evil.json", "unet/../../../evil.json", "/tmp/evil.json", "unet/..\\evil.json", "unet/*.json",
           "..", "C:/evil.json", "unet/a\nb.json", "~/evil.json", "unet//evil.json")  # fmt: skip


def test_names_that_lead_out_of_the_folder_are_never_fetched(server, tmp_path) -> None:
    cache = tmp_path / "deep" / "in" / "cache"
    server.add(REPOSITORY, DESCRIPTIONS | PLAIN | dict.fromkeys(HOSTILE, b"evil"))
    folder = folder_of(resolve(server.address, cache, [REPOSITORY])[0])
    assert held(folder) == set(DESCRIPTIONS | PLAIN)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]
    assert written == []
    for name in HOSTILE:
        with pytest.raises(CheckpointError, match="has no file"):
            hub.choose_files(REPOSITORY, [*HOSTILE, "a.ckpt"], file=name)


SHARDS = {
    "plain": ("unet/diffusion_pytorch_model.safetensors.index.json", "unet/diffusion_pytorch_model-{}.safetensors"),
    "old": ("unet/diffusion_pytorch_model.fp16.safetensors.index.json", ""),
    "half": ("unet/diffusion_pytorch_model.safetensors.index.fp16.json",
             "unet/diffusion_pytorch_model.fp16-{}.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize(("variant", "kind"), [(None, "plain"), ("fp16", "half")])
def test_shards_come_with_their_own_index_alone(variant: str | None, kind: str) -> None:
    names = [*DESCRIPTIONS, *PLAIN, "text_encoder/model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"]
    names.remove("unet/diffusion_pytorch_model.safetensors")
    for index, shard in SHARDS["plain"], SHARDS["half"]:
        names += [index, *(shard.format(f"0000{i}-of-00002") for i in (1, 2))]
    fetched = hub.choose_files(REPOSITORY, names, variant=variant).fetched
    index, shard = SHARDS[kind]
    unet = {name for name in fetched if name.startswith("unet/")}
    assert unet == {"unet/config.json", index, *(shard.format(f"0000{i}-of-00002") for i in (1, 2))}
    names.remove(shard.format("00002-of-00002"))
    with pytest.raises(CheckpointError, match="lacks some of the files"):
        hub.choose_files(REPOSITORY, names, variant=variant)


def test_other_models_are_refused_before_they_are_fetched() -> None:
    names = ["model_index.json", "transformer/diffusion_pytorch_model.safetensors", "vae/model.safetensors", "x.ckpt"]
    with pytest.raises(CheckpointError, match="no weights ..safetensors or .bin. in unet and text_encoder"):
        hub.choose_files(REPOSITORY, names)
    with pytest.raises(CheckpointError, match="neither a model_index.json nor"):
        hub.choose_files(REPOSITORY, ["README.md", "model.onnx"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("owner/name", True),
        ("stabilityai/stable-diffusion-2-1-base", True),
        ("owner/na.me_1/sub/file.safetensors", True),
        ("owner/name/file.txt", False),
        ("owner/file.ckpt", False),
        ("owner/file.SafeTensors", False),
        ("name", False),
        ("./owner/name", False),
        ("../name", False),
        ("/owner/name", False),
        ("owner/name/", False),  # not as the hub writes it, though `resolve` understands it
        ("owner/na--me", False),
        ("owner/na..me", False),
        ("owner/-name", False),
        ("owner/name.git", False),
        ("owner\\name", False),
        ("owner/na me", False),
        ("owner/" + "n" * 97, False),
        ("owner/name\0", False),
        (Path("owner/name"), False),
    ],
)
def test_names_of_the_hub_are_told_from_paths(path: str | Path, expected: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_name(path) is expected


def test_local_path_goes_before_the_hub(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    assert hub.resolve("owner/name") == Path("owner/name")
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.commit_of(tmp_path) is None
    with pytest.raises(ValueError, match="owner/name is a local path"):
        hub.resolve("owner/name", revision="main")


def test_local_path_does_not_even_import_the_hubs_library(tmp_path) -> None:
    code = f"""
import sys
from sdjax import hub
hub.resolve({str(tmp_path)!r})
print([name for name in ("huggingface_hub", "httpx", "requests") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n", result.stderr
