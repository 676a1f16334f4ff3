"""The canvas: masks, sketches, margins, undo, zoom, and drawing by the keyboard, by what the server gets."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import acts
import numpy as np
import pytest

if TYPE_CHECKING:
    from fake_server import FakeServer
    from playwright.sync_api import Page

    Open = Callable[..., Page]

pytestmark = pytest.mark.browser


def send(page: "Page", server: "FakeServer") -> None:
    """Presses Generate and waits until the server has the job."""
    count = len(server.works)
    page.click("#generate")
    acts.until(page, f"document.querySelectorAll('#history li').length === {count + 1}")


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_a_mask_is_white_where_it_was_drawn(open_page: "Open", server: "FakeServer", size: str) -> None:
    page = open_page(size)
    acts.open_picture(page, "inpaint")
    acts.draw(page, (0.5, 0.5), (0.52, 0.5))
    send(page, server)
    work, mask = server.works[0], acts.sent(server, "mask")
    assert work["task"] == "inpaint"
    assert mask.shape == (256, 320, 3)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[128, 160].tolist() == [255, 255, 255]  # the middle of the canvas is that of the picture
    assert mask[10, 10].tolist() == [0, 0, 0]
    columns = np.flatnonzero(mask[..., 0].any(0))
    assert 40 <= columns[-1] - columns[0] + 1 <= 70  # a brush of 48 pixels and a short line
    np.testing.assert_array_equal(acts.sent(server, "image"), np.full((256, 320, 3), acts.sent(server, "image")[0, 0]))


def test_undo_redo_eraser_and_clear_change_the_mask(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    acts.open_picture(page, "inpaint")
    acts.draw(page, (0.4, 0.5), (0.41, 0.5))
    acts.draw(page, (0.6, 0.5), (0.61, 0.5))
    page.keyboard.press("Control+z")
    send(page, server)
    one = acts.sent(server, "mask")[..., 0] > 0
    page.click("#show-canvas")
    page.focus("#editor canvas")
    page.keyboard.press("Control+Shift+z")
    send(page, server)
    two = acts.sent(server, "mask")[..., 0] > 0
    assert one[:, :160].any()
    assert not one[:, 170:].any()
    assert (two & one).sum() == one.sum()
    assert two[:, 170:].any()
    page.click("#show-canvas")
    page.focus("#editor canvas")
    page.keyboard.press("e")
    acts.draw(page, (0.4, 0.5), (0.41, 0.5))
    send(page, server)
    np.testing.assert_array_equal(acts.sent(server, "mask")[..., 0] > 0, two & ~one)
    page.click("#show-canvas")
    page.click("[data-label=clear]")
    page.click("#generate")
    page.wait_for_selector(".message:has-text('Draw a mask')")
    assert len(server.works) == 3


def test_strokes_land_under_the_pointer_when_zoomed_and_moved(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    acts.open_picture(page, "inpaint")
    for _ in range(4):
        page.click("[data-label='zoom.in']")
    page.keyboard.press("h")
    acts.draw(page, (0.5, 0.5), (0.6, 0.5))  # moves the picture to the right by a tenth of the canvas
    page.keyboard.press("b")
    acts.draw(page, (0.6, 0.5), (0.601, 0.5))
    send(page, server)
    rows, columns = np.nonzero(acts.sent(server, "mask")[..., 0])
    assert abs(rows.mean() - 128) < 2
    assert abs(columns.mean() - 160) < 2  # what was the middle before
    assert np.ptp(columns) < 52


def test_a_sketch_is_part_of_the_picture_in_its_colour(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    acts.open_picture(page, "image")
    page.fill("input[type=color]", "#ff0000")
    acts.draw(page, (0.5, 0.5), (0.51, 0.5))
    send(page, server)
    image = acts.sent(server, "image")
    assert server.works[0]["task"] == "img2img"
    assert "mask" not in server.works[0]["inputs"]
    assert image[128, 160].tolist() == [255, 0, 0]
    assert image[5, 5].tolist() != [255, 0, 0]
    assert not {"width", "height"} & server.works[0]["settings"].keys()  # as large as the picture


def test_a_picture_grows_by_its_margins_without_a_mask(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    acts.open_picture(page, "inpaint")
    page.fill("#field-expand-left", "64")
    page.fill("#field-expand-bottom", "32")
    send(page, server)
    assert server.works[0]["settings"]["expand"] == [64, 0, 0, 32]
    assert list(server.works[0]["inputs"]) == ["image"]


def test_a_mask_can_be_drawn_by_the_keyboard(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    acts.open_picture(page, "inpaint")
    page.focus("#editor canvas")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    send(page, server)
    _, columns = np.nonzero(acts.sent(server, "mask")[..., 0])
    assert columns.min() == pytest.approx(160 - 24, abs=2)
    assert columns.max() == pytest.approx(160 + 24 + 24, abs=2)  # half a brush to the right


def test_the_tools_are_one_stop_of_the_tab_key(open_page: "Open") -> None:
    page = open_page()
    acts.open_picture(page, "inpaint")
    page.focus("[data-label='tool.mask']")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.label") == "tool.paint"
    assert page.locator("#editor .toolbar button[tabindex='0']").count() == 1
