"""The page with the real server and the built-in model: what it asks for is what the server makes, and keeps."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import acts
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Start = Callable[..., str]
pytestmark = pytest.mark.browser
PATIENCE = 300  # seconds: the first picture compiles


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Returns a function that starts the server on a free port, after stopping the one before, on the same folder."""
    started: list[subprocess.Popen] = []

    def stop() -> None:
        for one in started:
            one.kill()
            one.communicate()
        started.clear()

    def run(**environment: str) -> str:
        stop()
        command = [sys.executable, "-m", "sdjax", "serve", "--port", "0", "--outdir", str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment))
        assert started[0].stdout is not None
        return started[0].stdout.readline().split()[-1]

    yield run
    stop()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, locale="en-US")
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    yield page
    context.close()


def visit(page: "Page", address: str) -> None:
    page.goto(address)
    page.wait_for_selector("body[data-ready]")


def wait_for_programs(page: "Page") -> None:
    """Waits until the server has compiled what it compiles ahead, so that pictures are made in a known time."""
    end = time.monotonic() + PATIENCE
    while not page.request.get(f"{page.url.rstrip('/')}/api/v1/status").json()["warmed"]:
        assert time.monotonic() < end
        page.wait_for_timeout(200)


def make(page: "Page", prompt: str) -> np.ndarray:
    """Returns the picture that the page makes of a prompt."""
    count = page.locator("#history li").count()
    page.fill("#prompt", prompt)
    page.press("#prompt", "Control+Enter")
    acts.until(page, f"document.querySelectorAll('#history li').length === {count + 1}", PATIENCE)
    return newest(page)


def newest(page: "Page") -> np.ndarray:
    name = page.get_attribute("#history li:first-child", "data-name")
    answer = page.request.get(f"{page.url.rstrip('/')}/api/v1/pictures/{name}")
    return np.asarray(Image.open(io.BytesIO(answer.body())))


def test_a_picture_its_settings_and_the_history_survive_a_killed_server(page: "Page", start: Start) -> None:
    visit(page, start())
    wait_for_programs(page)
    first = make(page, "a rocket on a green background")
    assert first.shape == (64, 64, 3)
    assert first[2, 2, 1] > max(first[2, 2, 0], first[2, 2, 2])  # green
    page.fill("#field-num_steps", "7")
    page.click(".picture-actions button:text-is('Use its settings')")
    acts.until(page, "document.querySelector('#field-seed').value !== ''")
    assert page.input_value("#field-num_steps") == "20"
    again = make(page, page.input_value("#prompt"))
    np.testing.assert_allclose(again.astype(int), first, atol=1)  # programs of other sizes round otherwise
    visit(page, start())
    assert page.locator("#history li").count() == 2
    np.testing.assert_array_equal(newest(page), again)  # the file that was written before


def test_only_what_is_under_the_mask_changes(page: "Page", start: Start) -> None:
    visit(page, start())
    before = make(page, "a red heart on a yellow background")
    page.click(".picture-actions button:text-is('Inpaint')")
    page.wait_for_selector("#editor canvas")
    page.wait_for_timeout(300)
    page.fill("#field-feather", "0")
    page.fill("#field-strength", "1")
    page.locator(".size input").fill("16")
    acts.draw(page, (0.5, 0.5), (0.52, 0.52))
    after = make(page, "a cat on a yellow background")
    different = (before != after).any(-1)
    rows, columns = np.nonzero(different)
    assert different.any()
    assert rows.min() >= 20
    assert rows.max() <= 44
    assert columns.min() >= 20
    assert columns.max() <= 44


def test_a_running_picture_is_cancelled(page: "Page", start: Start) -> None:
    visit(page, start())
    make(page, "a rocket on a green background")
    page.fill("#field-num_steps", "150")
    page.fill("#field-num_images", "60")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#run", state="visible")
    acts.until(page, "document.querySelector('#run-text').textContent.includes('%')", PATIENCE)
    page.keyboard.press("Escape")
    acts.until(page, "document.querySelector('#run').hidden", 30)
    assert page.inner_text("#status") == "Cancelled"


def test_a_server_with_a_token_asks_for_it(page: "Page", start: Start) -> None:
    page.goto(start(SDJAX_TOKEN="correct horse"))
    page.fill("#token", "correct horse")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready]")
    page.fill("#prompt", "a rocket on a green background")
    page.press("#prompt", "Control+Enter")
    acts.until(page, "document.querySelectorAll('#history li').length === 1", PATIENCE)
    acts.until(page, "document.querySelector('#shown img')?.naturalWidth === 64")
    page.reload()
    page.wait_for_selector("body[data-ready]")  # the tab keeps the token


def test_the_lists_of_the_form_are_the_servers(page: "Page", start: Start) -> None:
    from sdjax.samplers import SAMPLERS

    visit(page, start())
    offered = page.evaluate("[...document.querySelector('#field-sampler').options].map((one) => one.value)")
    assert offered[0] == ""
    assert set(offered[1:]) <= set(SAMPLERS)
    assert len(offered) > 30
    page.fill("#prompt", "a (red:1.2) boat")
    acts.until(page, "document.querySelector('#prompt-tokens').textContent === '3 / 75'")
