"""Traced programs that are kept from run to run."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_imports import FEW_PICTURES

from sdjax.adapters.attached import Attached
from sdjax.adapters.patch import patched
from sdjax.config import ScheduleConfig
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.nn import kept_shapes
from sdjax.pipeline import cache, traced
from sdjax.pipeline.traced import Traced
from sdjax.samplers import DDIM, Linear
from sdjax.scripts.main import main
from sdjax.storage import executables
from sdjax.storage.kept import Unkept, described

calls = []


def scaled(static, weights, state, keys):
    calls.append(static)
    return {"x": weights["w"] * state["x"] + static + jax.random.normal(keys[0], state["x"].shape), "n": state["n"] + 1}


def doubled(static, x):
    calls.append(static)
    return static * x


def pair(static, x):
    return x, static * x


@pytest.fixture
def folder(tmp_path, monkeypatch):
    kept = tmp_path / "programs"
    kept.mkdir()
    monkeypatch.setattr(cache, "folder", lambda: kept)
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "data")
    calls.clear()
    return kept


def traced_files(folder):
    return sorted(folder.glob(f"*{traced.ENDING}"))


def arguments():
    return {"w": jnp.float32(3)}, {"x": jnp.arange(4.0), "n": jnp.int32(5)}, jax.random.split(jax.random.key(1), 2)


def test_a_kept_program_is_not_traced_again_and_gives_the_same(folder):
    want = jax.jit(lambda *args: scaled(2, *args))(*arguments())
    calls.clear()
    for _ in range(2):  # each as in a process of its own
        got = Traced(scaled, 2)(*arguments())
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert calls == [2]
    assert len(traced_files(folder)) == 1


def test_a_kept_executable_is_neither_lowered_nor_compiled(folder, monkeypatch):
    want = Traced(scaled, 2)(*arguments())
    monkeypatch.setattr(traced._Program, "lower", lambda self: 1 / 0)
    jax.tree.map(np.testing.assert_array_equal, Traced(scaled, 2)(*arguments()), want)
    (folder.parent / "data" / executables.KEY_FILE).write_bytes(bytes(executables.KEY_BYTES))  # another user's key
    with pytest.raises(ZeroDivisionError):
        Traced(scaled, 2)(*arguments())


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "first"])
def test_results_are_where_those_of_jit_are(kept, folder):
    x = np.float32([3, 4])
    for put in (lambda x: x, jnp.asarray, lambda x: jax.device_put(x, jax.devices()[-1])):
        want = jax.jit(lambda x: doubled(2, x))(put(x))
        for _ in range(1 + kept):
            got = Traced(doubled, 2)(put(x))
        np.testing.assert_array_equal(got, want)
        assert got.devices() == want.devices()


def test_an_executable_that_xla_refuses_is_compiled_again(folder, monkeypatch):
    want = Traced(doubled, 2)(np.float32(4))

    def refuse(*args):
        raise RuntimeError("another XLA")

    monkeypatch.setattr(executables, "load", refuse)
    assert Traced(doubled, 2)(np.float32(4)) == want
    assert calls == [2]


@pytest.mark.parametrize("change", ["static", "shape", "type", "sources", "damage", "cut"])
def test_another_program_and_a_damaged_file_are_traced(change, folder, monkeypatch):
    x = np.arange(3, dtype=np.float32)
    Traced(doubled, 2)(x)
    (file,) = traced_files(folder)
    static = 3 if change == "static" else 2
    x = {"shape": np.arange(4, dtype=np.float32), "type": np.arange(3, dtype=np.int32)}.get(change, x)
    if change == "sources":
        monkeypatch.setattr(traced, "sources", lambda: "another version")
    if change == "damage":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:20])
    np.testing.assert_array_equal(Traced(doubled, static)(x), static * x)
    assert len(calls) == 2


def test_a_patched_program_is_not_kept(folder):
    with patched([Attached()]):
        Traced(doubled, 2)(np.float32(4))
    assert list(folder.iterdir()) == []


def test_what_is_lowered_is_what_is_called(folder):
    shape = jax.ShapeDtypeStruct((3,), np.float32)
    assert Traced(doubled, 2).lower(shape).as_text() == Traced(doubled, 2).lower(np.zeros(3, np.float32)).as_text()
    assert calls == [2]


def test_results_of_another_structure_are_kept(folder, monkeypatch):
    for _ in range(2):
        same, double = Traced(pair, 2)(np.float32(4))
        assert (float(same), float(double)) == (4, 8)
        monkeypatch.setattr(traced._Program, "lower", lambda self: 1 / 0)
    assert len(traced_files(folder)) == 1


def test_descriptions_differ_where_values_do():
    values = [1, 1.0, True, "1", (1,), [1], None, DDIM(), DDIM(eta=0.5), Linear(), ScheduleConfig(), np.dtype("int8")]
    assert len({json.dumps(described(value)) for value in values}) == len(values)
    assert described(DDIM(eta=0.5)) == described(DDIM(eta=0.5))


@dataclasses.dataclass(frozen=True)
class Users:
    value: int = 1


@pytest.mark.parametrize(
    "value", [Users(), lambda x: x, (1, Users()), ClassifierFree, object()],
    ids=["instance", "function", "inside a tuple", "class", "object"],
)  # fmt: skip
def test_what_a_name_cannot_say_is_not_kept(value, folder):
    with pytest.raises(Unkept):
        described(value)


def test_files_that_were_not_used_for_longest_are_removed(folder, monkeypatch):
    x = np.float32(2)
    Traced(doubled, 1)(x)
    first = sorted(folder.iterdir(), key=lambda one: one.suffix)
    monkeypatch.setattr(traced, "MAX_BYTES", {one.suffix: one.stat().st_size * 3 // 2 for one in first})
    Traced(doubled, 5)(x)
    left = sorted(folder.iterdir(), key=lambda one: one.suffix)
    assert [one.suffix for one in left] == [one.suffix for one in first] == [".executable", ".traced"]
    assert not set(left) & set(first)


def test_shapes_that_are_kept_are_not_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setenv("SDJAX_COMPILATION_CACHE", "1")
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)}, "b": jax.ShapeDtypeStruct((), np.float32)}
    assert kept_shapes.kept("net", ScheduleConfig(), lambda: shapes) == shapes
    assert kept_shapes.kept("net", ScheduleConfig(), lambda: 1 / 0) == shapes
    (file,) = tmp_path.rglob("*.json")
    for damaged in (b"", b"[]", b'{"a": [[-1], "float32"]}', b'{"a": [[1], "nonsense"]}', b"[" * 100_000):
        file.write_bytes(damaged)
        assert kept_shapes.kept("net", ScheduleConfig(), lambda: shapes) == shapes
    with pytest.raises(ZeroDivisionError):
        kept_shapes.kept("another net", ScheduleConfig(), lambda: 1 / 0)


def test_there_is_no_folder_when_keeping_programs_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setenv("SDJAX_COMPILATION_CACHE", "0")
    assert cache.folder() is None
    with pytest.raises(ValueError, match="name one with --folder"):
        cache.keep_all(tmp_path)


@pytest.mark.parametrize("words", [["builtin", "--size", "100"], ["nothing.safetensors"]])
def test_compiling_what_cannot_be_leaves_no_folder(words, tmp_path, capsys):
    assert main(["compile", *words, "--folder", str(tmp_path / "programs")]) in (2, 3)
    assert ("--size: height is a multiple of 8" in capsys.readouterr().err) == ("--size" in words)
    assert not (tmp_path / "programs").exists()


@pytest.mark.slow  # processes of their own
def test_a_compiled_model_needs_no_compiler(tmp_path):
    """What a warm picture compiles, traces and imports is counted: its time follows from that."""
    counted = (
        "import sys, jax.monitoring as m, sdjax; n = []; m.register_event_listener(lambda e, **_: n.append(e));"
        "m.register_event_duration_secs_listener(lambda e, *_, **__: n.append(e));"
        "sdjax.text_to_image(sdjax.load('builtin'), ['a cat', 'a dog'], num_steps=7, sampler='dpmpp_2m');"
        "print(*(n.count(f'/jax/{e}') for e in ('compilation_cache/compile_requests_use_cache',"
        " 'compilation_cache/cache_hits', 'core/compile/jaxpr_trace_duration')));"
        f"print([one for one in {FEW_PICTURES!r} if one in sys.modules])"
    )
    asked = {**os.environ, "SDJAX_COMPILATION_CACHE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": ""}
    asked["XDG_DATA_HOME"] = str(tmp_path / "data")
    compiling = ["-m", "sdjax", "compile", "builtin", "--batch", "2", "--folder", str(tmp_path / "programs")]
    subprocess.run([sys.executable, *compiling], env=asked, check=True)
    asked["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "programs")
    out = subprocess.run([sys.executable, "-c", counted], env=asked, check=True, capture_output=True, text=True).stdout
    counts, modules = out.splitlines()
    requests, hits, traces = map(int, counts.split())
    assert requests == hits <= 3  # of single operations
    assert traces <= 4  # these, and the structure of the sampler's state
    assert modules == "[]"
