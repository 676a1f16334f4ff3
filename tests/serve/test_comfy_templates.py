"""All workflows for Stable Diffusion 1 and 2 of comfyui-workflow-templates, with the built-in model and small files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.adapters.delta import LowRank
from sdjax.convert.adapters.write import write_adapter
from sdjax.convert.names import tables
from sdjax.serve.comfy.checking import check
from sdjax.serve.comfy.installed import folder_of
from sdjax.serve.comfy.plain_host import PlainHost
from sdjax.serve.comfy.reading import read_workflow
from sdjax.serve.comfy.running import run

FOLDER = folder_of("comfyui_workflow_templates", "templates")
NAMES = (
    "default", "image2image", "inpaint_example", "inpaint_model_outpainting", "lora", "lora_multiple",
    "embedding_example", "controlnet_example", "mixing_controlnets", "depth_controlnet", "depth_t2i_adapter",
    "2_pass_pose_worship", "area_composition", "area_composition_reversed", "area_composition_square_area_for_subject",
    "hiresfix_latent_workflow", "hiresfix_esrgan_workflow", "latent_upscale_different_prompt_model", "esrgan_example",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOLDER is None, reason="needs comfyui-workflow-templates 0.1.28")]


class Host(PlainHost):
    """A host whose every input picture is the same: noise with a transparent square."""

    def has(self, kind, name):
        return kind == "input" or super().has(kind, name)

    def picture(self, name):
        pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 4)).astype(np.uint8)
        pixels[..., 3] = 255
        pixels[16:40, 16:40, 3] = 0
        return pixels


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    place = tmp_path_factory.mktemp("workflows")
    rng, adapter, config = np.random.default_rng(0), {}, sdjax.load("builtin").config
    for part in "unet", "text":
        for leaf in tables.part_parameters(part, getattr(config, part)):
            if leaf.path.endswith(("to_q/kernel", "q_proj/kernel")):
                c, d = leaf.shape
                adapter[leaf.path] = LowRank(*(rng.normal(size=s).astype("f") / 10 for s in ((c, 2), (2, d))), 1.0)
    write_adapter(place / "lora.safetensors", adapter, config)
    sizes = {"body.0": (4, 3), "body.2": (48, 4)}
    upscaler = {f"{name}.weight": rng.normal(size=(*size, 3, 3)).astype("f") / 20 for name, size in sizes.items()}
    upscaler |= {f"{name}.bias": np.zeros(size[0], "f") for name, size in sizes.items()}
    save_file({**upscaler, "body.1.weight": np.full(4, 0.2, "f")}, place / "upscaler.safetensors")
    models = [
        ("512-inpainting-ema.safetensors", "builtin-inpainting"), ("control:*", "builtin-edges"),
        ("lora:*", str(place / "lora.safetensors")), ("upscaler:*", str(place / "upscaler.safetensors")),
        ("*", "builtin"),
    ]  # fmt: skip
    return Host(models, place, place / "out")


def smaller(graph):
    """Returns a graph with two steps and a tenth of the size."""
    for number, node in graph.nodes.items():
        for name, value in node.inputs.items():
            if name == "steps":
                graph = graph.replace(number, name, 2)
            elif name in ("width", "height", "x", "y") and isinstance(value, int):
                least = 64 if name in ("width", "height") else 0
                graph = graph.replace(number, name, max(least, value // 10 // 8 * 8))
            elif name in ("left", "top", "right", "bottom"):
                graph = graph.replace(number, name, min(value, 16))
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_makes_its_pictures(name, host):
    graph = smaller(read_workflow((FOLDER / f"{name}.json").read_bytes()))
    shown = run(check(graph, host), host)
    pictures = [picture for ui in shown.values() for picture in ui["images"] if picture["type"] == "output"]
    assert pictures
    for one in pictures:
        path = Path(host.outdir) / one["filename"]
        assert read_workflow(path.read_bytes()) == graph
        pixels = sdjax.pictures.open_picture(path).pixels
        assert np.ptp(pixels) > 10
