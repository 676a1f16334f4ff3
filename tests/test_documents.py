"""Commands and links in the documents work: commands are parsed by the real parsers, names and links resolve."""

import argparse
import ast
import functools
import importlib
import inspect
import re
import runpy
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import sdjax
from sdjax.configs import builtin
from sdjax.scripts import main

import documents
from documents import ROOT, Command

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
OTHERS = {"apt", "curl", "git", "serve", ".venv/bin/ruff"}  # programs that are not ours


@functools.cache
def parser(name: str) -> argparse.ArgumentParser:
    assert name in main.COMMANDS, f"there is no command {name!r}"
    return importlib.import_module(f"sdjax.scripts.{main.COMMANDS[name][0]}").make_parser()


def flags(name: str) -> set[str]:
    return {flag for action in parser(name)._actions for flag in action.option_strings}


def check_sdjax(words: list[str]) -> None:
    if words == ["--help"]:
        return
    try:
        parser(words[0]).parse_args(words[1:])
    except SystemExit as stop:
        if stop.code:
            pytest.fail("the parser refuses this")


def check_make(words: list[str]) -> None:
    values = dict(word.split("=", 1) for word in words if "=" in word)
    assert set(values) <= {"ARGS", *re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE)}
    (target,) = [word for word in words if "=" not in word]
    assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), f"the Makefile has no {target}"
    if target == "run":
        check_sdjax(["txt2img", *shlex.split(values.get("ARGS", ""))])
    if target == "train-builtin":
        check_training(shlex.split(values.get("ARGS", "")))


def check_training(words: list[str]) -> None:
    """Of the training of the built-in model: `--config.a.b=value` is a setting, others are flags with a value."""
    own = re.findall(
        r'flags\.DEFINE_\w+\("(\w+)"', (ROOT / "sdjax/train/builtin/training.py").read_text(encoding="utf-8")
    )
    for word in words:
        if not word.startswith("--"):
            continue
        name, _, value = word[2:].partition("=")
        if not name.startswith("config."):
            assert name in own
            continue
        setting = functools.reduce(lambda node, key: node[key], name.split(".")[1:], builtin.get_config())
        type(setting)(value)


def check_pip(words: list[str]) -> None:
    (what,) = [word for word in words[1:] if not word.startswith("-")]
    assert set(re.findall(r"[\w-]+", what)) <= set(PROJECT["optional-dependencies"])


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "command", "exec")
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
        if words[1].startswith("sdjax.train."):
            importlib.import_module(words[1]).make_parser().parse_args(words[2:])
    else:
        assert (ROOT / words[0]).is_file()
        name = next((name for name, (file, _) in main.COMMANDS.items() if words[0] == f"scripts/{file}.py"), None)
        if name is not None:
            check_sdjax([name, *words[1:]])


def check_docker(words: list[str]) -> None:
    arguments = [word.partition("=")[0] for flag, word in zip(words, words[1:]) if flag == "--build-arg"]
    assert all(f"ARG {name}" in DOCKERFILE for name in arguments)
    if words[0] == "run":
        check_sdjax(words[words.index("sdjax") + 1 :])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "sdjax": check_sdjax, "make": check_make, "pip": check_pip, "python": check_python, "docker": check_docker,
}  # fmt: skip


@pytest.mark.parametrize("command", list(documents.commands()), ids=str)
def test_every_command_is_one_that_its_program_takes(command: Command) -> None:
    program, *words = command.words
    if program not in OTHERS:
        CHECKS[program](words)


@pytest.mark.parametrize("command", list(documents.mentions()), ids=str)
def test_every_command_in_a_sentence_exists_with_its_flags(command: Command) -> None:
    _, name, *words = command.words
    if name == "help":  # alone, or before a command's name
        return check_sdjax(main._read_help(["help", *words]))
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= flags(name) | {"--help"}


PYTHON = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}")
    for page in documents.PAGES
    for i, block in enumerate(documents.blocks(page.read_text(encoding="utf-8"), "python", "{code-cell} ipython3"))
]


@pytest.mark.parametrize("block", PYTHON)
def test_every_name_and_argument_in_python_exists(block: str) -> None:
    """Follows imports of sdjax and dotted names from them, and binds the keywords of calls."""
    tree = ast.parse(block)
    known: dict[str, object] = {"sdjax": sdjax}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sdjax":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = getattr(module, alias.name)

    def value(node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute) and (owner := value(node.value)) is not None:
            if inspect.ismodule(owner) and not hasattr(owner, node.attr):
                return importlib.import_module(f"{owner.__name__}.{node.attr}")
            return getattr(owner, node.attr)
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            value(node)
        if isinstance(node, ast.Call) and inspect.isfunction(function := value(node.func)):
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                continue
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(function).bind(*node.args, **keywords)


@pytest.mark.parametrize(("page", "target"), list(documents.links()), ids=str)
def test_every_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    if anchor:
        assert anchor in documents.anchors(file)


def test_pictures_are_small_and_shown() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in documents.PAGES)
    for folder, most in ("images", 640_000), ("drawings", 20_000):
        pictures = list((ROOT / "docs" / folder).glob("*"))
        assert sum(picture.stat().st_size for picture in pictures) <= most
        assert [picture.name for picture in pictures if f"{folder}/{picture.name}" not in pages] == []


def test_every_page_of_the_manual_is_in_its_contents() -> None:
    listed = {
        (index.parent / f"{line}.md").resolve()
        for index in sorted((ROOT / "docs").rglob("index.md"))
        for block in documents.blocks(index.read_text(encoding="utf-8"), "{toctree}")
        for line in block.splitlines()
        if line and not line.startswith(":")
    }
    assert {page for page in documents.PAGES if page.is_relative_to(ROOT / "docs")} - {ROOT / "docs/index.md"} == listed


@pytest.mark.parametrize("place", ["Makefile", "docs/performance.md"])
def test_the_allocator_is_told_what_was_measured(place: str) -> None:
    told = re.search(r"GLIBC_TUNABLES ?\??= ?(\S+)", (ROOT / place).read_text())[1]
    assert told == runpy.run_path(str(ROOT / "benchmarks" / "allocator.py"))["TUNABLES"]


def test_nothing_installs_sdjax_by_name_alone() -> None:
    """It is on no index: what bears its name there is somebody else's."""
    folders = ("docs", "benchmarks", "scripts", "sdjax", "convert", "configs", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if "_build" not in path.parts]
    files = [path for path in files if path.suffix in (".md", ".py", ".sh", ".yaml", ".sbatch")]
    files += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "pyproject.toml"]
    by_name = re.compile(
        r"pip\d? install[^\n`]*?(?<![\w/.-])sdjax(?:\[[\w,]*\])?(?!\S* @ )(?=[\s'\"`)]|$)", re.MULTILINE
    )
    here = Path(__file__)
    assert [str(path) for path in files if path != here and by_name.search(path.read_text(encoding="utf-8"))] == []
    assert by_name.search("~/venv/bin/pip install --quiet 'sdjax[tpu,train]'")
    assert by_name.search("`pip install sdjax[train]` brings what it needs")
