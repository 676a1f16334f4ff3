"""The command line as such: startup, exit statuses, what is shown of an error."""

import importlib
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from sdjax import convert
from sdjax.convert.errors import CheckpointError
from sdjax.scripts import main as cli
from sdjax.tasks import results

import models

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "flax", "numpy", "PIL", "tokenizers", "transformers", "torch", "tensorflow", "huggingface_hub", "tqdm")
COMMANDS = [[], *([name] for name in cli.COMMANDS)]


def run_python(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "sdjax")
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = f"""
import sys
from sdjax.scripts.main import main
try:
    main({[*command, "--help"]!r})
except SystemExit as end:
    assert end.code == 0, end.code
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("loaded: []\n")
    assert "exit status:" in result.stdout


@pytest.mark.parametrize("script", ["txt2img", "convert", "inspect_checkpoint"])
def test_scripts_run_as_files(script: str) -> None:
    # Python puts a script's folder in front of its path: no module there may hide one of the standard library
    result = run_python(str(ROOT / "scripts" / f"{script}.py"), "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: sdjax ")


def test_no_script_hides_a_module_of_the_standard_library() -> None:
    assert not {path.stem for path in (ROOT / "scripts").glob("*.py")} & sys.stdlib_module_names


@pytest.mark.parametrize("argv", [["nonsense"], ["txt2img", "--nonsense"], ["txt2img", "--promp", "a"], ["--nonsense"]])
def test_unknown_words_are_bad_usage(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert argv[-1] in capsys.readouterr().err or argv[-1] == "a"


def test_version_is_printed(capsys: pytest.CaptureFixture) -> None:
    import sdjax

    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"sdjax {sdjax.__version__}\n"


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, *flags: str) -> int:
    """Returns the exit status of `sdjax inspect` where reading the file raises `error`."""

    def inspect(path: str, **options: object) -> None:
        raise error

    monkeypatch.setattr(convert, "inspect", inspect)
    return cli.main(["inspect", "file", *flags])


STATUSES = [
    (ValueError("height is wrong"), 2, "height is wrong"),
    (CheckpointError("no such tensor"), 3, "no such tensor"),
    (results.ImageError("one flat colour"), 4, "one flat colour"),
    (results.OutOfMemoryError("try less"), 5, "try less"),
    (MemoryError(), 5, "out of memory"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmore"), 5, "allocating 1 bytes."),
    (OSError(28, "No space left on device"), 1, "No space left on device"),
    (TypeError("odd"), 1, "internal error: TypeError: odd"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize(("error", "status", "sentence"), STATUSES, ids=lambda value: type(value).__name__)
def test_errors_become_a_sentence_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: BaseException, status: int, sentence: str
) -> None:
    assert fail_with(monkeypatch, error) == status
    out = capsys.readouterr()
    assert sentence in out.err
    assert "Traceback" not in out.err
    assert out.out == ""
    assert f"  {status} " in cli.EXIT_STATUS


OUT_OF_MEMORY = [
    ("txt2img", "a smaller --n_samples, smaller --H and --W, --dtype bfloat16"),
    ("convert", "a computer whose memory holds the model"),
    ("inspect", "close other programs"),
]


@pytest.mark.parametrize(("name", "advice"), OUT_OF_MEMORY, ids=lambda value: value.split()[0])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 1 bytes")], ids=["host", "device"])
def test_out_of_memory_says_what_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: Exception, name: str, advice: str
) -> None:
    def run(args: object) -> None:
        raise error

    module = importlib.import_module(f"sdjax.scripts.{cli.COMMANDS[name][0]}")
    monkeypatch.setattr(module, "run", run)
    assert cli.main([name, *{"txt2img": [], "convert": ["in", "out"], "inspect": ["in"]}[name]]) == 5
    err = capsys.readouterr().err
    assert "memory" in err.splitlines()[0]
    assert advice in err
    known = {flag for action in module.make_parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"--\w+", advice)) <= known


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert fail_with(monkeypatch, ValueError("height is wrong"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_inspect_prints_the_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    report = types.SimpleNamespace(text=lambda: "family: sd1", to_dict=lambda: {"family": "sd1"})
    monkeypatch.setattr(convert, "inspect", lambda path, variant: report)
    assert cli.main(["inspect", "file"]) == 0
    assert capsys.readouterr().out == "family: sd1\n"
    assert cli.main(["inspect", "file", "--json"]) == 0
    assert capsys.readouterr().out == '{\n  "family": "sd1"\n}\n'


def test_convert_passes_its_flags_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "in", "v":
        Path(name).mkdir()
    calls = []
    report = types.SimpleNamespace(notices=["the averaged weights were taken"])
    monkeypatch.setattr(convert, "convert", lambda *args, **kwargs: calls.append((args, kwargs)) or report)
    flags = "--to ldm --dtype float16 --ema no --vae v --prediction v --config c --manifest m"
    flags += " --overwrite --with-ema-names --variant fp16"
    assert cli.main(["convert", "in", "out", *flags.split()]) == 0
    given = {"to": "ldm", "dtype": "float16", "ema": "no", "vae": Path("v"), "prediction": "v", "config": "c"}
    given |= {"vocab": None, "lossy": False, "quantise": None}
    assert calls == [
        ((Path("in"), "out"), {**given, "manifest": "m", "overwrite": True, "ema_names": True, "variant": "fp16"})
    ]
    assert capsys.readouterr() == ("out\n", "note: the averaged weights were taken\n")


def test_names_that_the_console_cannot_show_do_not_stop_it(tmp_path: Path) -> None:
    result = run_python("-m", "sdjax.scripts.main", "txt2img", "--ckpt", "x", "--from-file", "\u65e5\u672c",
                        PYTHONIOENCODING="ascii")  # fmt: skip
    assert result.returncode == 2
    assert r"--from-file \u65e5\u672c cannot be read" in result.stderr


def test_the_whole_way_from_a_model_to_another_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, "model", to="native")
    assert cli.main(["convert", "model", "folder", "--to", "diffusers", "--manifest", "hashes.json"]) == 0
    assert capsys.readouterr().out == "folder\n"
    assert Path("folder/model_index.json").is_file()
    assert cli.main(["inspect", "folder", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(pipe.params))
    assert sum(part["elements"] for part in report["parts"].values()) == numbers
    assert len(json.loads(Path("hashes.json").read_text())) == report["tensors"]
    # What is there is not replaced, and no option is taken for another
    assert cli.main(["convert", "model", "folder", "--to", "diffusers"]) == 1
    assert "folder" in capsys.readouterr().err
    assert cli.main(["convert", "model", "folder", "--to", "diffusers", "--overwrite"]) == 0


@pytest.mark.parametrize("argv", [["inspect", "bad"], ["convert", "bad", "out"], ["txt2img", "--ckpt", "bad"]])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"], ids=["empty", "text", "cut zip"])
def test_damaged_checkpoints_have_a_status_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, argv: list[str], content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad").write_bytes(content)
    assert cli.main(argv) == 3
    err = capsys.readouterr().err
    assert err.startswith(f"sdjax {argv[0]}: bad: ")
    assert len(err.splitlines()) == 1
