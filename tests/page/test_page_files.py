"""The page's files: texts in two languages, no text in code, nothing from outside, and all of them installed."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sdjax.serve.page import routes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "sdjax/serve/page"
SCRIPTS = {path.relative_to(PAGE).as_posix(): path.read_text(encoding="utf-8") for path in PAGE.rglob("*.js")}
HTML = (PAGE / "index.html").read_text(encoding="utf-8")
TEXTS = {
    language: json.loads((PAGE / f"texts/{language}.json").read_text(encoding="utf-8")) for language in ("en", "zh")
}
STRING = re.compile(r"""(?<![\w/])"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`|'((?:[^'\\\n]|\\.)*)'""")
# Names that keys are made of with a value: all keys that begin so count as used
MADE = ("field.", "hint.", "section.", "mode.", "task.", "kind.", "tool.", "action.", "theme.", "ended.", "guide.",
        "key.", "controls.", "image_prompts.")  # fmt: skip


def strings(script: str) -> list[str]:
    """Returns the string literals of a script without its comments."""
    code = re.sub(r"/\*.*?\*/", "", script, flags=re.DOTALL)
    code = re.sub(r"(?m)(^|\s)//.*$", "", code)
    return [next(filter(None, found.groups()), "") for found in STRING.finditer(code)]


def test_both_languages_have_the_same_texts_with_the_same_gaps() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, text in TEXTS["en"].items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", TEXTS["zh"][key])), key
        assert text.strip()
        assert TEXTS["zh"][key].strip()


def test_every_text_that_the_page_names_exists_and_every_text_is_named() -> None:
    named = set(re.findall(r'data-(?:text|label|placeholder|tip)="([^"]+)"', HTML))
    for script in SCRIPTS.values():
        named |= set(re.findall(r'(?:text|label|placeholder|tip): "([^"]+)"', script))
        named |= set(re.findall(r'\bt\("([^"]+)"', script))
    named.discard("txt2img")  # the task of the mode "text"
    assert named - TEXTS["en"].keys() == set()
    literals = {text for script in SCRIPTS.values() for text in strings(script)}
    unused = {key for key in TEXTS["en"] if key not in named and key not in literals and not key.startswith(MADE)}
    assert unused == set()


def test_every_field_and_mode_has_a_label() -> None:
    schema = SCRIPTS["schema.js"]
    fields = re.findall(r'\{ name: "([\w.]+)", kind', schema)
    assert len(fields) > 25
    sections = re.findall(r'\{ name: "(\w+)", modes: [^}]*\}', schema)
    titled = [name for name in sections if f'name: "{name}"' in schema and name not in ("input", "main")]
    keys = {*(f"field.{name}" for name in fields), *(f"section.{name}" for name in titled)}
    assert keys - TEXTS["en"].keys() == set()


def test_no_words_stand_in_the_code() -> None:
    for name, script in SCRIPTS.items():
        assert not re.search(r"[\u4e00-\u9fff]", script), name
        for text in strings(script):
            assert not re.search(r"[A-Z][a-z]+ [a-z]+ |^[A-Z][a-z]+ [a-z]+", text), (name, text)
    between = re.sub(r"<(script|title|style)\b.*?</\1>|<kbd>.*?</kbd>|<!--.*?-->", "", HTML, flags=re.DOTALL)
    words = [text.strip() for text in re.findall(r">([^<>]+)<", between) if text.strip()]
    assert words == ["sdjax"]
    assert not re.search(r'\s(?:aria-label|placeholder|title|alt)="[^"]', HTML)


def test_nothing_becomes_markup_and_nothing_comes_from_outside() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|\.srcdoc|setHTML"
    )
    for name, script in SCRIPTS.items():
        assert not re.search(forbidden, script), name
        assert set(re.findall(r"https?://[^\"'`\s]+", script)) <= {"http://www.w3.org/2000/svg"}, name
    styles = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.css"))
    assert "url(" not in styles
    assert "@import" not in styles
    assert not re.search(r"https?://|\son\w+=|\sstyle=|<style|<script(?! type=\"module\" src=\"page/)", HTML)


def test_each_module_has_one_idea_of_at_most_300_lines() -> None:
    for name, text in SCRIPTS.items():
        assert len(text.splitlines()) <= 300, name
        assert text.startswith("// "), name


def test_all_files_of_the_page_are_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for path in PAGE.rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts or path.suffix == ".py":
            continue
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert package in setuptools["packages"]
        assert any(path.match(pattern) for pattern in setuptools["package-data"][package]), path


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(Starlette(routes=routes.routes())) as client:  # one event loop for all requests
        yield client


def test_the_policy_allows_this_server_alone(client: TestClient) -> None:
    for address in "/", "/page/main.js", "/page/texts/zh.json":
        answer = client.get(address)
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert policy["trusted-types"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_file_that_the_page_names_is_served_and_no_other(client: TestClient) -> None:
    for name in re.findall(r'(?:src|href)="(page/[^"#]+)', HTML):
        assert client.get(f"/{name}").status_code == 200
    wanted = {
        (PAGE / name).parent.joinpath(one).resolve().relative_to(PAGE).as_posix()
        for name, script in SCRIPTS.items()
        for one in re.findall(r'from "(\.[^"]+)"', script)
    }
    assert wanted == SCRIPTS.keys() - {"main.js"}  # every module is imported
    for address in wanted:
        assert client.get(f"/page/{address}").headers["content-type"].startswith("text/javascript"), address
    for hidden in "routes.py", "__init__.py", "../engine/work.py", "%2e%2e/routes.py", "index.html", "texts", "":
        assert client.get(f"/page/{hidden}").status_code == 404


def test_a_file_that_did_not_change_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/style.css")
    again = client.get("/page/style.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
