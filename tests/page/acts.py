"""What the tests of the page do again and again."""

import io
import time
from typing import TYPE_CHECKING

import numpy as np
from fake_server import FakeServer, picture
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page


def until(page: "Page", expression: str, seconds: float = 8) -> None:
    """Waits until an expression is true. The page's policy forbids Playwright's own function for it."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(20)


def generate(page: "Page", prompt: str = "a lighthouse") -> None:
    """Makes pictures of a prompt by the keyboard, and waits for the end."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#run", state="visible")
    page.wait_for_selector("#run", state="hidden")


def open_picture(page: "Page", mode: str, width: int = 320, height: int = 256) -> None:
    """Opens a picture of one colour in the editor of a mode."""
    page.click(f"#mode-{mode}")
    file = {"name": "input.png", "mimeType": "image/png", "buffer": picture(9, width, height)}
    page.set_input_files("#editor input[type=file]", file)
    page.wait_for_selector("#editor canvas")
    page.wait_for_timeout(100)  # the canvas takes its size in the next frame


def draw(page: "Page", *places: tuple[float, float]) -> None:
    """Draws a line through points of the canvas, as shares of its width and height."""
    page.evaluate("document.querySelector('#editor canvas').scrollIntoView({ block: 'center' })")
    box = page.locator("#editor canvas").bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()


def sent(server: FakeServer, name: str, job: int = -1) -> np.ndarray:
    """Returns the pixels, uint8 [h, w, 3], of an input of a job."""
    upload = server.works[job]["inputs"][name]
    assert upload.startswith("upload:")
    return np.asarray(Image.open(io.BytesIO(server.uploads[upload[7:]])).convert("RGB"))


def drop(page: "Page", target: str, content: bytes, name: str = "picture.png") -> None:
    """Drops a PNG file on an element."""
    data = page.evaluate_handle(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            return data;
        }""",
        [list(content), name],
    )
    page.dispatch_event(target, "drop", {"dataTransfer": data})
