"""The files around the code agree with it."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import sdjax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/workflows").iterdir()
}

# Of the schema of version 1.2.0 (citation-file-format/schema.json): what it allows, and what it asks for
KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
REQUIRED = {"authors", "cff-version", "message", "title"}
PERSON = {"address", "affiliation", "alias", "city", "country", "email", "family-names", "fax", "given-names",
          "name-particle", "name-suffix", "orcid", "post-code", "region", "tel", "website"}  # fmt: skip
ENTITY = PERSON - {"affiliation", "family-names", "given-names", "name-particle", "name-suffix"} | {
    "date-end", "date-start", "location", "name",
}  # fmt: skip


def test_the_citation_is_a_valid_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(citation) <= KEYS
    assert set(citation) >= REQUIRED
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert str(citation["version"]) == sdjax.__version__
    assert citation["license"] in PROJECT["license"]
    assert all(isinstance(word, str) for word in citation["keywords"])
    references = citation["references"]
    assert all({"authors", "title", "type"} <= set(reference) for reference in references)
    for author in [*citation["authors"], *(author for reference in references for author in reference["authors"])]:
        assert set(author) <= (ENTITY if "name" in author else PERSON)


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "tpu"])
def test_extras_for_devices_bear_the_names_of_jax(extra: str) -> None:
    assert PROJECT["optional-dependencies"][extra] == [f"jax[{extra}]"]
    assert extra in importlib.metadata.metadata("jax").get_all("Provides-Extra")


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds() -> None:
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", need).groups() for need in PROJECT["dependencies"])
    lines = (ROOT / ".github/oldest-jax.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned == {name: bounds[name] for name in ("jax", "jaxlib", "flax")}


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_promised() -> None:
    jobs = WORKFLOWS["ci"]["jobs"]
    assert any(step.get("run", "").split(" ")[0] == ".ci/run" for step in jobs["checks"]["steps"])
    assert "make docs" in [step.get("run") for step in jobs["docs"]["steps"]]
    promised = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+", c)}
    test = jobs["test"]
    assert set(test["strategy"]["matrix"]["python"]) == promised
    assert PROJECT["requires-python"] == f">={min(promised)}"
    oldest = f"matrix.python == '{min(promised)}' && format('{{0}}/.github/oldest-jax.txt', github.workspace)"
    assert oldest in test["env"]["PIP_CONSTRAINT"]


def test_every_action_is_pinned_by_its_commit() -> None:
    uses = [
        s["uses"] for flow in WORKFLOWS.values() for job in flow["jobs"].values() for s in job["steps"] if "uses" in s
    ]
    assert len(uses) >= 8
    assert [action for action in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    may = {
        (name, job)
        for name, flow in WORKFLOWS.items()
        for job, content in flow["jobs"].items()
        if content.get("permissions", flow["permissions"]) != {"contents": "read"}
    }
    assert may == {("release", "publish")}
    assert WORKFLOWS["release"]["jobs"]["publish"]["permissions"] == {"id-token": "write"}


def test_the_container_is_built_from_all_that_is_packed() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {*tool["package-dir"].values(), PROJECT["readme"], "LICENSE", "pyproject.toml"} == kept
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER (?!root)\w+$", dockerfile, re.MULTILINE)
    assert re.search(r"^VOLUME /cache$", dockerfile, re.MULTILINE)


def test_every_folder_with_code_is_packed() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {
        (path.parent, package) for package, top in tool["package-dir"].items() for path in (ROOT / top).rglob("*.py")
    }
    names = {
        ".".join([package, *folder.relative_to(ROOT / tool["package-dir"][package]).parts])
        for folder, package in folders
    }
    assert names <= set(tool["packages"])


def test_every_program_beside_the_package_answers_help() -> None:
    programs = [path for folder in ("docs", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]
    run = {path.name: text for path in programs if "__main__" in (text := path.read_text(encoding="utf-8"))}
    assert len(run) > 40
    own = re.compile(r"\.parse_args\(|^from make_reference import .*\bwrite\b", re.MULTILINE)
    assert [name for name, text in run.items() if not own.search(text)] == []
