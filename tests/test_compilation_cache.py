"""The cache of compiled programs: where it lies, what of the user's choices stands, processes that share it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdjax.pipeline import cache

# A program that takes long enough to compile to be kept, compiled after another one had been; then JAX's own words
PROGRAM = """
import json, sys, time, jax, jax.numpy as jnp
hits, kept = [], jax.config.jax_compilation_cache_dir
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: x + 1)(1.0)
from sdjax.pipeline import cache
folder = cache.enable()
cache.enable()
if "run" in sys.argv:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert jax.jit(lambda x: jnp.sort(x * 2)[::-1])(jnp.arange(8.0))[0] == 14
config = jax.config
print(json.dumps({
    "folder": folder and str(folder),
    "dir": config.jax_compilation_cache_dir,
    "size": config.jax_compilation_cache_max_size,
    "seconds": config.jax_persistent_cache_min_compile_time_secs,
    "hits": sum(event.endswith("/cache_hits") for event in hits),
}))
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's way to move a cache folder")


def start(*args: str, **env: str) -> subprocess.Popen:
    kept = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, *args], env={**kept, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def run(*args: str, **env: str) -> dict:
    return finish(start(*args, **env))


def test_programs_are_kept_in_the_users_cache_folder_within_bounds(tmp_path: Path) -> None:
    found = run(XDG_CACHE_HOME=str(tmp_path))
    assert found["folder"] == found["dir"]
    assert Path(found["dir"]).is_relative_to(tmp_path / "sdjax" / "compiled")
    assert (found["size"], found["seconds"]) == (cache.MAX_BYTES, cache.MIN_SECONDS)


def test_what_the_user_chose_stands(tmp_path: Path) -> None:
    home, own = {"XDG_CACHE_HOME": str(tmp_path)}, str(tmp_path / "own")
    jaxs = {"dir": own, "size": -1, "seconds": 1.0, "folder": None, "hits": 0}
    assert run(JAX_COMPILATION_CACHE_DIR=own, **home) == jaxs
    assert run(JAX_ENABLE_COMPILATION_CACHE="0", **home) == {**jaxs, "dir": None}
    assert run(SDJAX_COMPILATION_CACHE="0", **home) == {**jaxs, "dir": None}
    assert not (tmp_path / "sdjax").exists()
    bounds = {"JAX_COMPILATION_CACHE_MAX_SIZE": "1000", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1.0"}
    found = run(**bounds, **home)
    assert (found["size"], found["seconds"]) == (1000, 1.0)
    assert found["folder"] is not None


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = run("run", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert (found["folder"], found["dir"]) == (None, None)


def test_an_unknown_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDJAX_COMPILATION_CACHE", "/tmp/cache")
    with pytest.raises(ValueError, match="SDJAX_COMPILATION_CACHE must be 0 or 1; got '/tmp/cache'"):
        cache.enable.__wrapped__()


@pytest.mark.slow
def test_processes_share_it_and_survive_one_that_was_killed_while_writing(tmp_path: Path) -> None:
    """Warnings are errors there, so that a damaged entry or a lock that is not given back would end a process."""
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    together = [start("run", **home) for _ in range(3)]
    folders = {finish(process)["dir"] for process in together}
    (folder,) = map(Path, folders)
    entries = sorted(folder.glob("*-cache"))
    assert entries
    assert run("run", **home)["hits"] > 0
    # JAX writes an entry and then its time: this is what a process leaves that ends in between
    entries[0].write_bytes(entries[0].read_bytes()[:100])
    entries[0].with_name(entries[0].name.replace("-cache", "-atime")).unlink()
    run("run", **home)
    assert sorted(folder.glob("*-cache")) == entries
    assert entries[0].stat().st_size > 100
    assert run("run", **home)["hits"] > 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777], ids=["all", "the group", "all, sticky"])
def test_a_folder_that_others_may_write_is_not_used(mode: int, tmp_path: Path) -> None:
    """A kept program is machine code: whoever writes one there would run it as this user."""
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(mode)
    process = start("run", JAX_COMPILATION_CACHE_DIR=str(own))  # where warnings are errors
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"other users may write into {own}" in err
    ignoring = PROGRAM.replace("import json", "import warnings; warnings.simplefilter('ignore'); import json", 1)
    asked = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(own), "SDJAX_COMPILATION_CACHE": "1"}
    ran = subprocess.run([sys.executable, "-c", ignoring, "run"], env=asked, check=True, capture_output=True, text=True)
    found = json.loads(ran.stdout)
    assert (found["folder"], found["dir"], list(own.iterdir())) == (None, None, [])
    with pytest.raises(ValueError, match="other users may write into"):
        cache.keep_all(own)
