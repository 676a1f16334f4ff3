"""Models and logs in a bucket, with fsspec's file system in memory in the store's place."""

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sdjax import convert
from sdjax.loading import builtin
from sdjax.storage import buckets
from sdjax.train.checkpoints.mirror import Mirror


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    files = MemoryFileSystem()
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    monkeypatch.setattr(fsspec, "filesystem", lambda kind: files)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    yield files
    files.store.clear()
    assert not (tmp_path / "gs:").exists()


def test_a_model_goes_into_a_bucket_and_comes_back(store):
    convert.convert(builtin.FOLDER, "gs://bucket/model.safetensors")
    convert.convert("gs://bucket/model.safetensors", "s3://bucket/folder")
    here, there = convert.read(builtin.FOLDER), convert.read("s3://bucket/folder")
    assert all(np.array_equal(there[name], here[name]) for name in here)
    with pytest.raises(FileExistsError, match="s3://bucket/folder exists"):
        convert.convert("gs://bucket/model.safetensors", "s3://bucket/folder")


def test_a_file_is_fetched_again_once_it_changed(store):
    buckets.put("gs://bucket/x", b"1")
    first = buckets.fetch("gs://bucket/x")
    assert buckets.fetch("gs://bucket/x") == first
    buckets.put("gs://bucket/x", b"23")
    assert buckets.fetch("gs://bucket/x").read_bytes() == b"23"


def test_a_name_that_only_begins_alike_is_another(store):
    buckets.put("gs://bucket/run2/x", b"1")
    assert buckets.contents("gs://bucket/run") == {}
    with pytest.raises(FileNotFoundError, match="gs://bucket/run"):
        buckets.fetch("gs://bucket/run")


def test_a_log_is_copied_and_taken_up_again(store):
    mirror = Mirror("gs://bucket/run", "log.jsonl")
    (mirror.folder / "log.jsonl").write_text("1\n")
    mirror.close()
    again = Mirror("gs://bucket/run", "log.jsonl")
    assert (again.folder / "log.jsonl").read_text() == "1\n"
    again.close()
    assert buckets.get("gs://bucket/run/log.jsonl") == b"1\n"
