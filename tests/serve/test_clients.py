"""Real clients of A1111's and OpenAI's interfaces, as PyPI has them, against a real server.

They are the extra `clients`. SDJAX_CLIENTS names a Python that has them, if this one does not.
"""

import functools
import os
import subprocess
import sys
import textwrap

import pytest

PYTHON = os.environ.get("SDJAX_CLIENTS", sys.executable)
pytestmark = pytest.mark.slow

WEBUIAPI = """
import webuiapi
from PIL import Image, ImageChops

api = webuiapi.WebUIApi(host="127.0.0.1", port=PORT, sampler="Euler a", steps=4)
size = dict(width=64, height=64, seed=3)
for name in (
    "options cmd_flags progress samplers sd_vae upscalers latent_upscale_modes loras sd_models hypernetworks"
    " face_restorers realesrgan_models prompt_styles scripts embeddings memory schedulers"
).split():
    assert getattr(api, f"get_{name}")() is not None, name
api.refresh_checkpoints()
api.interrupt()
api.skip()
api.util_wait_for_ready()
api.util_set_model("builtin")
assert api.util_get_current_model() == "builtin"
assert "Euler a" in api.util_get_sampler_names()
api.set_options({"randn_source": "CPU"})
made = api.txt2img(prompt="a rocket on a green background", negative_prompt="fog", batch_size=2, **size)
assert [one.size for one in made.images] == [(64, 64)] * 2
assert made.info["all_seeds"] == [3, 4]
assert made.info["warnings"] == []
assert "RNG: CPU" in made.info["infotexts"][0]
again = api.txt2img(prompt="a rocket on a green background", negative_prompt="fog", **size)
# to one level: batches of other sizes add up in another order
assert all(high <= 1 for _, high in ImageChops.difference(again.image, made.image).getextrema())
assert api.png_info(made.image).info.startswith("a rocket")
hires = api.txt2img(
    prompt="a rocket", enable_hr=True, hr_scale=2, denoising_strength=0.5, hr_upscaler=webuiapi.HiResUpscaler.Latent,
    **size,
)
assert hires.image.size == (128, 128)
mask = Image.new("L", (64, 64), 0)
mask.paste(255, (16, 16, 48, 48))
for more in {}, {"mask_image": mask, "inpaint_full_res": False}, {"mask_image": mask, "inpainting_fill": 1}:
    changed = api.img2img(images=[made.image], prompt="a cat", denoising_strength=0.6, **size, **more)
    assert changed.image.size == (64, 64)
    assert changed.info["warnings"] == []
unit = webuiapi.ControlNetUnit(image=made.image, module="canny", model="builtin-edges", weight=0.8)
steered = api.txt2img(prompt="a rocket", controlnet_units=[unit], **size)
assert steered.image.tobytes() != made.image.tobytes()
assert api.controlnet_version() == 3
assert "builtin-edges" in api.controlnet_model_list()
assert "canny" in api.controlnet_module_list()
assert api.controlnet_detect(images=[made.image], module="canny").image is not None
assert api.extra_single_image(image=made.image, upscaler_1="Lanczos", upscaling_resize=2).image.size == (128, 128)
several = api.extra_batch_images(images=[made.image] * 2, upscaler_1="None", upscaling_resize=1.5)
assert [one.size for one in several.images] == [(96, 96)] * 2
try:
    api.interrogate(made.image)
except RuntimeError as error:
    assert "no network here that describes pictures" in str(error)
else:
    raise AssertionError
"""

SD_BACKEND_CLIENT = """
import sd_backend_client as client
from PIL import Image

url = "http://127.0.0.1:PORT"
client.connect_to_backend(url)
web = client.A1111Webservice(url)
assert web.get_capabilities().controlnet
for name in dir(web):
    if name.startswith(("get_", "list_")) and name != "get_thumbnail":
        assert getattr(web, name)() is not None, name
web.progress_check()
web.refresh_checkpoints()
picture, mask = Image.new("RGB", (64, 64), (200, 30, 30)), Image.new("L", (64, 64), 0)
mask.paste(255, (16, 16, 48, 48))
body = dict(prompt="a rocket", width=64, height=64, steps=4, seed=3)
made = web.submit_txt2img(client.DiffusionRequestBody(**body)).wait(300)
assert [one.size for one in made.images] == [(64, 64)]
assert made.seed == 3
changed = web.submit_img2img(client.DiffusionRequestBody(**body, init_images=[picture])).wait(300)
assert changed.images[0].size == (64, 64)
filled = web.submit_inpaint(client.DiffusionRequestBody(**body, init_images=[picture], mask=mask)).wait(300)
assert filled.images[0].size == (64, 64)
assert web.submit_upscale(picture, 128, 128).wait(300).images[0].size == (128, 128)
canny = next(one for one in web.get_controlnet_preprocessors() if one.name == "canny")
assert web.submit_preprocessor_preview(picture, canny).wait(300).images[0].size == (64, 64)
"""

OPENAI = """
import base64, io
import openai
from PIL import Image

client = openai.OpenAI(base_url="http://127.0.0.1:PORT/v1", api_key="any", max_retries=0)
assert "builtin" in [one.id for one in client.models.list()]
assert client.models.retrieve("builtin").id == "builtin"
more = {"settings": {"num_steps": 4, "seed": 3}}

def opened(one):
    return Image.open(io.BytesIO(base64.b64decode(one.b64_json)))

made = client.images.generate(prompt="a rocket", size="64x64", n=2, extra_body=more)
assert [opened(one).size for one in made.data] == [(64, 64)] * 2
picture = base64.b64decode(made.data[0].b64_json)
hole = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
hole.paste((0, 0, 0, 0), (16, 16, 48, 48))
file = io.BytesIO()
hole.save(file, "PNG")
edited = client.images.edit(image=("a.png", picture), mask=("m.png", file.getvalue()), prompt="a cat", size="64x64")
assert opened(edited.data[0]).size == (64, 64)
varied = client.images.create_variation(image=("a.png", picture), n=1, size="64x64")
assert opened(varied.data[0]).size == (64, 64)
address = client.images.generate(prompt="a cat", size="64x64", response_format="url", extra_body=more).data[0].url
assert address.startswith("http://127.0.0.1:PORT/api/v1/pictures/")
try:
    client.images.generate(prompt="a cat", size="7x7x7")
except openai.BadRequestError as error:
    assert "WIDTHxHEIGHT" in str(error)
else:
    raise AssertionError
"""

IMAGE_GENERATION_MCP = """
import asyncio, json, os, sys, tempfile
import image_generation_mcp
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

async def main(folder):
    start = "IMAGE_GENERATION_MCP_"
    own = {"SD_WEBUI_HOST": "http://127.0.0.1:PORT", "READ_ONLY": "false", "SCRATCH_DIR": folder}
    environment = {**os.environ, **{start + name: value for name, value in own.items()}}
    command = os.path.join(os.path.dirname(sys.executable), "image-generation-mcp")
    async with Client(StdioTransport(command, ["serve"], env=environment)) as client:
        async def call(name, **arguments):
            return json.loads((await client.call_tool(name, arguments)).content[0].text)

        providers = await call("list_providers")
        models = providers["providers"]["sd_webui"]["capabilities"]["models"]
        assert "builtin" in [one["model_id"] for one in models]
        asked = await call("generate_image", prompt="a rocket on a green background", provider="sd_webui")
        for _ in range(900):
            state = await call("check_generation_status", image_id=asked["image_id"])
            if state["status"] != "generating":
                break
            await asyncio.sleep(1)
        assert state["status"] == "completed", state

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))
"""
CLIENTS = {
    "webuiapi": WEBUIAPI, "sd_backend_client": SD_BACKEND_CLIENT, "openai": OPENAI,
    "image_generation_mcp": IMAGE_GENERATION_MCP,
}  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Returns the port of a server, as `sdjax serve` starts it."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "sdjax", "serve", "--port", "0", "--outdir", str(folder / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()


@functools.cache
def has(name):
    """Returns whether the clients' Python has a package."""
    return subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", CLIENTS)
def test_a_real_client_works_as_it_is(port, name):
    if not has(name):
        pytest.skip(f"{name} is not installed")
    code = textwrap.dedent(CLIENTS[name]).replace("PORT", str(port))
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
