"""The page for everybody: axe-core's rules, both widths, both appearances, and the keyboard alone."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import acts
import pytest
from fake_server import picture

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Open = Callable[..., Page]

pytestmark = pytest.mark.browser


def violations(page: "Page") -> list[str]:
    """Returns what axe-core finds: rule, place, and what is wrong."""
    import axe_playwright_python

    script = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_no_rule_of_axe_is_broken(open_page: "Open", size: str, theme: str) -> None:
    page = open_page(size, theme)
    assert violations(page) == []
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.click("button:has-text('Add a control picture')")
    acts.generate(page, "a boat <lora:ink:0.8>")
    assert violations(page) == []
    for mode in "image", "inpaint", "upscale", "info":
        page.click(f"#mode-{mode}")
        assert violations(page) == [], mode
    acts.open_picture(page, "inpaint")
    assert violations(page) == []
    page.click("#mode-info")
    file = {"name": "boat.png", "mimeType": "image/png", "buffer": picture(1, text="a boat\nSteps: 9, Seed: 3")}
    page.set_input_files("#info-drop input", file)
    page.wait_for_selector("#info-found .primary")
    assert violations(page) == []
    page.click("#open-library")
    page.wait_for_selector("button.card")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.click("#open-help")
    assert violations(page) == []


def test_axe_would_find_a_fault(open_page: "Open") -> None:
    page = open_page()
    page.evaluate("document.querySelector('label[for=field-sampler]').remove()")
    assert any(one.startswith("select-name") for one in violations(page))


@pytest.mark.parametrize("mode", ["text", "image", "inpaint", "upscale", "info"])
def test_nothing_is_wider_than_400_pixels(open_page: "Open", mode: str) -> None:
    page = open_page("narrow")
    acts.generate(page, "a-very-long-word-without-a-space-" * 12)
    page.click(f"#mode-{mode}")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    wide = """[...document.querySelectorAll('body *')].filter((one) => one.getClientRects().length
        && one.getBoundingClientRect().right > 401 && !one.closest('.modes, .visually-hidden, .grids, option'))
        .map((one) => one.outerHTML.slice(0, 100))"""
    assert page.evaluate(wide) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_keyboard_alone_makes_and_chooses_pictures(open_page: "Open") -> None:
    page = open_page()
    page.keyboard.press("Alt+p")
    page.keyboard.type("a boat")
    for count in 1, 2:
        page.keyboard.press("Control+Enter")
        acts.until(page, f"document.querySelectorAll('#history li').length === {count}")
    page.focus("#history li[aria-selected=true]")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#history li:nth-child(2)", "aria-selected") == "true"
    page.keyboard.press("Alt+3")
    assert page.get_attribute("#mode-inpaint", "aria-selected") == "true"
    page.focus("#mode-inpaint")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#mode-image", "aria-selected") == "true"
    page.keyboard.press("?")
    assert page.locator("#help[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#help[open]").count() == 0


def test_the_focus_is_seen_everywhere(open_page: "Open") -> None:
    page = open_page()
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        style = page.evaluate(
            """(() => {
                const one = document.activeElement, style = getComputedStyle(one);
                return [one.id || one.dataset.label || one.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
            })()"""
        )
        seen.add(style[0])
        if style[0] != "BODY":
            assert style[1] != "none", style
            assert style[2] >= 2, style
    assert {"mode-text", "model", "prompt", "field-num_steps", "generate"} <= seen


def test_motion_is_reduced_if_the_system_says_so(open_page: "Open") -> None:
    page = open_page()
    durations = "[...document.querySelectorAll('*')].map((one) => getComputedStyle(one).transitionDuration)"
    assert set(page.evaluate(durations)) <= {"0s", "1e-05s"}
