"""A script that ends while it still refers to a checkpoint ends in silence, however it refers to it."""

import subprocess
import sys

import numpy as np
import pytest
from checkpoint_writer import safetensors_file, torch_zip
from pickle_writer import tensors

ARRAYS = {"a": np.ones((4, 5), np.float32), "b": np.arange(3, dtype=np.float32)}
READ = "import sys; from sdjax import convert; path = sys.argv[1]\n"
WAYS = {
    "a global": "t = convert.read(path); print(len(t))",
    "an array of it": "t = convert.read(path); a = t['a']; del t; print(a.sum())",
    "a cycle": "t = convert.read(path); c = [t]; c.append(c); t.me = c; del t, c; import gc; gc.disable()",
    "a default argument": "def f(t=convert.read(path)): return t\nprint(len(f()))",
    "a class": "class A:\n    t = convert.read(path)\nA.me = A()",
    "atexit": "import atexit; t = convert.read(path); atexit.register(lambda t=t: print(len(t)))",
    "read in atexit": "import atexit, builtins\natexit.register(lambda: setattr(builtins, 't', convert.read(path)))",
    "a daemon thread": "import threading\nready = threading.Event()\n"
    "def hold():\n    t = convert.read(path); ready.set(); threading.Event().wait(); print(t)\n"
    "threading.Thread(target=hold, daemon=True).start(); ready.wait()",
    "a finished thread": "import threading\nlocal = threading.local()\n"
    "def hold(): local.t = convert.read(path)\nx = threading.Thread(target=hold); x.start(); x.join()",
    "the modules": "sys.modules['mine'] = convert.read(path)",
    "builtins": "import builtins; builtins.mine = convert.read(path)",
    "an exception": "try:\n    t = convert.read(path); t['no']\nexcept KeyError as error:\n    kept = error",
    "a generator": "def f():\n    with convert.read(path) as t:\n        yield len(t)\ng = f(); print(next(g))",
    "a mapped file": "from sdjax.convert.containers.mapped import MappedFile as M; import builtins; "
    "builtins.mine = M(path)",
    "a closed one": "t = convert.read(path); t.close(); sys.modules['mine'] = t",
    "sys.exit": "t = convert.read(path); sys.exit(0)",
}


def run(path, script, *flags):
    done = subprocess.run([sys.executable, *flags, "-c", READ + script, path], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors_file(ARRAYS))
    return tmp_path / "a.safetensors"


def test_a_script_ends_in_silence_however_it_refers_to_a_checkpoint(path):
    assert run(path, "\n".join(WAYS.values()).replace("t = convert", "t = last = convert")) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_script_ends_in_silence(way, path):
    assert run(path, WAYS[way]) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-X", "dev"), ("-W", "error"), ("-O",)])
def test_so_does_a_zip_read_under_stricter_rules(flags, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(torch_zip({"state_dict": tensors(ARRAYS)}))
    script = "t = convert.read(path); import builtins; builtins.mine = t, t['a']"
    assert run(path, script, *flags) == (0, "")
