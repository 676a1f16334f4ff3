"""Hostile files of every kind: refused with the file's name and the reason, cheaply, and nothing of them is executed.

All are read by one process that notes what the reading does (supervised_reading.py).
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import checkpoint_writer as writer
import hostile_archives
import hostile_pickles
import hostile_places
import hostile_safetensors
import hostile_tensors
import pytest

from sdjax.convert.containers import reading

HERE = pathlib.Path(__file__).parent
SECONDS = 30  # processor time; the costliest takes 0.3 here, and ten times as much on a busy machine
BYTES = 64 * 2**20

FORMS = {"zip": writer.torch_zip, "legacy": writer.torch_legacy}


def write_tensors(form, value):
    return lambda path: path.write_bytes(FORMS[form](value))


def in_folder(make):
    def place(path):
        path.mkdir()
        return make(path)

    return place


def corpus():
    """Returns what to make, bytes or a function of a path, and the reason to expect, by name."""
    cases = {f"place: {name}": (in_folder(make), reason) for name, (make, reason) in hostile_places.ALL.items()}
    cases |= hostile_archives.ALL
    cases |= {f"safetensors: {name}": case for name, case in hostile_safetensors.ALL.items()}
    for name, (pickle, reason) in hostile_pickles.PICKLES.items():
        zipped, legacy = hostile_archives.pickle_files(pickle)
        cases[f"zip: pickle: {name}"] = (zipped, reason)
        cases[f"legacy: pickle: {name}"] = (legacy, reason)
    for form in FORMS:
        for name, (value, reason) in hostile_tensors.VALUES.items():
            cases[f"{form}: {name}"] = (write_tensors(form, value), reason)
        for name, (identity, reason) in hostile_tensors.STORAGES.items():
            value = {"x": hostile_tensors.stored_as(*identity, legacy=form == "legacy")}
            cases[f"{form}: {name}"] = (write_tensors(form, value), reason)
    return cases


CASES = corpus()


def make(cases, folder):
    """Makes the files of a corpus; returns their paths by name, without what this system cannot make."""
    paths = {}
    for i, (name, content) in enumerate(cases.items()):
        path = folder / f"case{i}.ckpt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            made = content(path)
            if made is None:
                continue
            path = made if isinstance(made, (str, pathlib.Path)) else path
        paths[name] = str(path)
    return paths


def supervise(folder, paths):
    """Returns what came of reading each file."""
    (folder / "honest").mkdir()
    honest = []
    for name, data in {
        "zip": writer.torch_zip(writer.training_checkpoint(writer.some_arrays())),
        "legacy": writer.torch_legacy(writer.training_checkpoint(writer.some_arrays())),
        "safetensors": writer.safetensors_file(writer.some_arrays(), {"format": "pt"}),
    }.items():
        honest.append(str(folder / "honest" / name))
        (folder / "honest" / name).write_bytes(data)
    (folder / "honest" / "folder").mkdir()
    (folder / "honest" / "folder" / "model.safetensors").write_bytes(data)
    honest.append(str(folder / "honest" / "folder"))
    (folder / "working").mkdir()
    done = subprocess.run(
        [sys.executable, str(HERE / "supervised_reading.py")],
        input=json.dumps([honest, list(paths.values())]),
        cwd=folder / "working",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list((folder / "working").iterdir()), "a file was written"
    return dict(zip(paths, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    paths = make({name: content for name, (content, _) in CASES.items()}, folder)
    return {name: (paths[name], result) for name, result in supervise(folder, paths).items()}


@pytest.mark.parametrize("kind", ["place", "zip", "legacy", "safetensors"])
def test_hostile_files_are_refused_with_name_and_reason(outcomes, kind):
    wrong = []
    for name, (path, result) in outcomes.items():
        if name.startswith(f"{kind}: "):
            refusal = result.get("refused", "")
            # A folder's fault may lie in a file of it.
            if not refusal.startswith(reading.CheckpointError("", path).args[0][:-2].removesuffix("...")):
                wrong.append(f"{name}: does not name its file: {result}")
            elif not re.search(CASES[name][1], refusal):
                wrong.append(f"{name}: another reason than {CASES[name][1]!r}: {result}")
    assert not wrong, "\n".join(wrong)


def test_hostile_files_cost_little_time_and_at_most_64_megabytes(outcomes):
    # Where the system enforces the limit of memory, breaking it would have been a MemoryError, or the process's end.
    costs = {name: (result["seconds"], result.get("bytes", 0)) for name, (_, result) in outcomes.items()}
    assert not {name: cost for name, cost in costs.items() if cost[0] > SECONDS or cost[1] > BYTES}


def test_reading_hostile_files_runs_imports_writes_and_calls_nothing(outcomes):
    assert not {name: result["events"] for name, (_, result) in outcomes.items() if result["events"]}


def test_the_heaviest_files_allowed_are_read_within_the_same_bounds(tmp_path):
    paths = make(hostile_safetensors.HEAVY, tmp_path)
    for name, result in supervise(tmp_path, paths).items():
        assert "read" in result, (name, result)
        assert result["seconds"] < SECONDS, name
        assert result.get("bytes", 0) < BYTES, name


def test_the_corpus_runs_code_in_an_unpickler_that_is_not_careful(tmp_path):
    # Else the tests above would prove nothing: in Python's own, every one of these writes the file `canary`.
    (tmp_path / "pickles").mkdir()
    live = {name: data for name, (data, _) in hostile_pickles.CODE.items() if name != "functions of the system"}
    live.pop("Python 2's names")  # Python 3 reads them from protocols before 3 only
    if importlib.util.find_spec("torch") is None:  # the pickle stops where it names torch before it gets to the call
        live.pop("a call in a tensor's hooks")
    for i, data in enumerate(live.values()):
        (tmp_path / "pickles" / str(i)).write_bytes(data)
    script = (
        "import contextlib, copyreg, os, pathlib, pickle, collections.abc\n"
        "for code in (0x21,): copyreg.add_extension('builtins', 'exec', code)\n"
        "for path in sorted(pathlib.Path('pickles').iterdir(), key=lambda path: int(path.name)):\n"
        "    with contextlib.suppress(Exception): pickle.loads(path.read_bytes())\n"
        "    print(os.path.exists('canary'))\n"
        "    with contextlib.suppress(OSError): os.remove('canary')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    ran = dict(zip(live, done.stdout.split(), strict=True))
    assert not [name for name, wrote in ran.items() if wrote != "True"]
