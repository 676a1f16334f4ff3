"""The page in Chromium, against a small server. CHROMIUM names the program; by default it is the one on the PATH."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fake_server import FakeServer
    from playwright.sync_api import Browser, Page

SIZES = {"wide": (1280, 860), "narrow": (400, 860)}


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator["FakeServer"]:
    """A server of its own for each test."""
    from fake_server import FakeServer

    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def open_page(browser: "Browser", server: "FakeServer") -> Iterator[Callable[..., "Page"]]:
    """Returns a function that opens the page at a size of SIZES. The test fails if the page logs an error."""
    contexts, errors = [], []

    def open_at(size: str = "wide", theme: Any = "light", **options: Any) -> "Page":
        width, height = SIZES[size]
        options = {"locale": "en-US", "reduced_motion": "reduce", **options}
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
        page.goto(server.address)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert errors == []
