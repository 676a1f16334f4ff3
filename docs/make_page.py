"""Makes the pictures of docs/page.md: the page in Chromium, drawn with the built-in model.

    pip install '.[browser]'
    python docs/make_page.py --workdir runs/page

It starts `sdjax serve` and writes docs/images/page-*.png. CHROMIUM names the program; by default it is the one on the
PATH. The picture in Chinese needs a font with Chinese characters. Its cards are of empty files: a list opens none.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDE, NARROW = (1280, 860), (400, 860)
PROMPTS = ("a rocket on a green background", "a red heart on a yellow background", "an octopus on a blue background",
           "a cat on a pink background", "a snail on a green background")  # fmt: skip


def main() -> None:
    """Makes and writes all pictures, in 128 colours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a folder for the server's pictures and files")
    folder = parser.parse_args().workdir
    command = [sys.executable, "-m", "sdjax", "serve", "--port", "0", "--outdir", str(folder), "--models", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        program = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            wide = open_page(browser, address, WIDE, "light")
            text_to_image(wide)
            inpainting(open_page(browser, address, WIDE, "dark"))
            grid(open_page(browser, address, WIDE, "light"))
            narrow(browser, address)
            put_cards(wide, folder / "models" / "Lora")
            chinese(open_page(browser, address, WIDE, "light"))
        finally:
            browser.close()
            server.terminate()


def open_page(browser: Any, address: str, size: tuple[int, int], theme: str) -> Page:
    """Returns the page in a window of this size, light or dark."""
    context = browser.new_context(viewport=dict(zip(("width", "height"), size)), color_scheme=theme, locale="en-US")
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def generate(page: Page, prompt: str, seed: int = 0) -> None:
    """Makes a picture and waits for it."""
    page.fill("#prompt", prompt)
    page.fill("#field-seed", str(seed))
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#run", state="visible")
    page.wait_for_selector("#run", state="hidden")
    page.wait_for_timeout(300)


def text_to_image(page: Page) -> None:
    """The first mode, after some pictures."""
    page.click("summary:has-text('Second pass')")
    page.fill("#field-hires-enlarge", "2")
    page.click("summary:has-text('Second pass')")
    for number, prompt in enumerate(reversed(PROMPTS)):
        generate(page, prompt, number)
    page.evaluate("document.activeElement.blur()")
    save(page, "text")


def inpainting(page: Page) -> None:
    """A mask on the newest picture, in the dark."""
    page.click(".picture-actions button:text-is('Inpaint')")
    page.wait_for_selector("#editor canvas")
    page.wait_for_timeout(400)
    page.fill("#prompt", "a cat on a green background")
    page.locator(".size input").fill("20")
    box = page.locator("#editor canvas").bounding_box()
    assert box is not None
    places = [(0.42, 0.32), (0.5, 0.26), (0.58, 0.34), (0.55, 0.46), (0.46, 0.44), (0.5, 0.36)]
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=12)
    page.mouse.up()
    save(page, "inpaint")


def grid(page: Page) -> None:
    """Steps and samplers on one seed."""
    page.click("summary:has-text('X/Y/Z')")
    axes, values = page.locator(".axis select"), page.locator(".axis input")
    axes.nth(0).select_option("num_steps")
    values.nth(0).fill("2, 4, 8, 16")
    axes.nth(1).select_option("sampler")
    values.nth(1).fill("ddim, euler_ancestral, dpmpp_2m")
    generate(page, PROMPTS[0], 3)
    page.locator(".axis").last.scroll_into_view_if_needed()
    page.evaluate("document.activeElement.blur()")
    save(page, "grid")


def narrow(browser: Any, address: str) -> None:
    """Two windows of 400 pixels side by side, light and dark."""
    parts: list[Image.Image] = []
    for theme in "light", "dark":
        page = open_page(browser, address, NARROW, theme)
        if theme == "dark":
            page.click("#history li:nth-child(14)")
            page.evaluate("document.querySelector('#workspace').scrollIntoView()")
            page.wait_for_timeout(400)
        parts.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    sheet = Image.new("RGB", (2 * NARROW[0] + 24, NARROW[1]), "white")
    for number, part in enumerate(parts):
        sheet.paste(part, (number * (NARROW[0] + 24), 0))
    write(sheet, "narrow")


def put_cards(page: Page, folder: Path) -> None:
    """Puts files of LoRAs into the server's folder, with the pictures of the history beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("rocket", "heart", "octopus", "cat", "snail")):
        address = page.locator("#history img").nth(number).get_attribute("src")
        (folder / f"emoji-{name}.preview.png").write_bytes(page.request.get(page.url.rstrip("/") + address).body())
        (folder / f"emoji-{name}.safetensors").write_bytes(b"")
    page.click("#open-library")
    page.click("#library-refresh")
    page.wait_for_timeout(500)


def chinese(page: Page) -> None:
    """The list of files in Chinese."""
    page.click("#language")
    page.wait_for_timeout(300)
    page.click("#open-library")
    page.click("#kind-lora")
    page.wait_for_selector("button.card img")
    page.click("button.card:has-text('octopus')")
    page.wait_for_timeout(500)
    save(page, "library")


def save(page: Page, name: str) -> None:
    """Writes what the window shows."""
    write(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), name)


def write(picture: Image.Image, name: str) -> None:
    """Writes a PNG of 128 colours without dithering, which keeps texts clear."""
    flat = picture.quantize(128, dither=Image.Dither.NONE)
    flat.save(IMAGES / f"page-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
