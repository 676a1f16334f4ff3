"""ComfyUI's own page on our server: opens, loads a workflow, queues it, shows progress, a preview and the picture.

SDJAX_TEST_SCREENSHOT names a file for a screenshot, such as docs/images/comfyui.png.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
PATIENCE = 300_000  # milliseconds: the first picture compiles
pytest.importorskip("comfyui_frontend_package")
pytest.importorskip("websockets")


def node(number: int, kind: str, values: list[Any], inputs: dict[str, int], outputs: list[str], x: int) -> dict:
    """Returns a node of the editor; `inputs` and `outputs` in their order."""
    return {
        "id": number, "type": kind, "widgets_values": values, "pos": [x, 100 + 230 * (number % 3)], "size": [300, 200],
        "inputs": [{"name": name, "type": "*", "link": link} for name, link in inputs.items()], "mode": 0,
        "outputs": [{"name": name, "type": name, "links": []} for name in outputs],
    }  # fmt: skip


WORKFLOW = {
    "version": 0.4, "last_node_id": 6, "last_link_id": 7,
    "nodes": [
        node(1, "CheckpointLoaderSimple", ["builtin"], {}, ["MODEL", "CLIP", "VAE"], 0),
        node(2, "CLIPTextEncode", ["a red car"], {"clip": 1}, ["CONDITIONING"], 340),
        node(3, "EmptyLatentImage", [64, 64, 1], {}, ["LATENT"], 340),
        node(4, "KSampler", [7, "fixed", 60, 5, "euler", "normal", 1],
             {"model": 2, "positive": 3, "negative": 4, "latent_image": 5}, ["LATENT"], 680),
        node(5, "VAEDecode", [], {"samples": 6, "vae": 7}, ["IMAGE"], 1020),
        node(6, "SaveImage", ["browser"], {"images": 8}, [], 1020),
    ],
    "links": [
        [1, 1, 1, 2, 0, "CLIP"], [2, 1, 0, 4, 0, "MODEL"], [3, 2, 0, 4, 1, "CONDITIONING"],
        [4, 2, 0, 4, 2, "CONDITIONING"], [5, 3, 0, 4, 3, "LATENT"], [6, 4, 0, 5, 0, "LATENT"], [7, 1, 2, 5, 1, "VAE"],
        [8, 5, 0, 6, 0, "IMAGE"],
    ],
}  # fmt: skip
HEARD = ("execution_start", "progress", "b_preview", "executed", "execution_success", "execution_error")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server with the built-in model."""
    command = [sys.executable, "-m", "sdjax", "serve", "--port", "0", "--outdir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.kill()


def test_the_editor_runs_a_workflow(browser: "Browser", address: str) -> None:
    page = browser.new_context(viewport={"width": 1400, "height": 860}, locale="en-US").new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/comfy/")
    page.wait_for_function("() => window.app?.graph?.nodes")
    page.evaluate("workflow => window.app.loadGraphData(workflow)", WORKFLOW)
    page.evaluate(
        "kinds => { window.heard = []; for (const kind of kinds)"
        " app.api.addEventListener(kind, () => window.heard.push(kind)) }",
        list(HEARD),
    )
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(
        "() => window.heard.includes('execution_success') || window.heard.includes('execution_error')"
    )
    heard = set(page.evaluate("() => window.heard"))
    assert heard == set(HEARD) - {"execution_error"}
    page.wait_for_function("() => app.graph.getNodeById(6).imgs?.[0]?.naturalWidth === 64")
    if shot := os.environ.get("SDJAX_TEST_SCREENSHOT"):
        page.keyboard.press("Escape")
        page.wait_for_timeout(1000)
        page.screenshot(path=shot)
