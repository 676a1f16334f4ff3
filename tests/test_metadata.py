"""What tools write into a picture's file: the texts, and their meaning here. Nothing from a file is trusted."""

import io
import json
import random
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sdjax.pictures import PictureError
from sdjax.pictures.image import encode_png, infotext
from sdjax.pictures.metadata import comfyui, read_metadata
from sdjax.pictures.metadata.infotext import split
from sdjax.pictures.metadata.texts import MAX_TEXT, read_texts
from sdjax.tasks.from_metadata import understand

BLACK = np.zeros((8, 8, 3), np.uint8)


def png(**texts: str) -> bytes:
    return encode_png(BLACK, texts)


def exif(tag: int, value: bytes, kind: str, order: str = "<") -> bytes:
    """Returns a picture file whose EXIF has one entry, in the Exif directory if it is a UserComment."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHII", tag, 7, len(value), 44)
    if tag == 0x9286:
        first = struct.pack(f"{order}IH", 8, 1) + struct.pack(f"{order}HHII", 0x8769, 4, 1, 26) + bytes(4)
        block = head + first + struct.pack(f"{order}H", 1) + entry + bytes(4) + value
    else:
        block = head + struct.pack(f"{order}IH", 8, 1) + entry + bytes(44 - 22) + value
    out = io.BytesIO()
    Image.fromarray(BLACK).save(out, kind, exif=b"Exif\0\0" + block if kind == "JPEG" else block)
    return out.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be"])
def test_user_comments_of_every_byte_order_are_read(kind, order, code):
    text = "a caf\u00e9 \u65e5\nSteps: 5"
    assert read_texts(exif(0x9286, b"UNICODE\0" + text.encode(code), kind, order)) == {"UserComment": text}
    assert read_texts(exif(0x9286, b"ASCII\0\0\0plain", kind, order)) == {"UserComment": "plain"}


def test_comfyui_keeps_its_prompt_in_the_exif_of_a_webp():
    assert read_texts(exif(0x0110, b'prompt:{"1": {}}\0', "WEBP")) == {"prompt": '{"1": {}}'}


def test_all_text_chunks_of_a_png_are_read_and_packed_ones_are_limited():
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "plain")
    info.add_text("b", "packed " * 50, zip=True)
    info.add_itxt("c", "\u65e5\u672c " * 50, zip=True)
    info.add_text("bomb", "x" * (MAX_TEXT + 1), zip=True)
    out = io.BytesIO()
    Image.fromarray(BLACK).save(out, "PNG", pnginfo=info)
    assert read_texts(out.getvalue()) == {"a": "plain", "b": "packed " * 50, "c": "\u65e5\u672c " * 50}


A1111 = """\
a (cat:1.2), sitting
on a "mat"
Negative prompt: dog,
blurry
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 123456789012, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: c6a580b13a, VAE: vae-ft-mse.safetensors, \
Variation seed: 7, Variation seed strength: 0.2, Seed resize from: 512x640, Denoising strength: 0.55, Clip skip: 2, \
ENSD: 31337, RNG: CPU, Tiling: True, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Latent, \
Lora hashes: "add_detail: 7c6bad76eb54, x: 1", TI hashes: "easynegative: c74b4e810b03", Emphasis: No norm, \
NGMS: 0.5, ControlNet 0: "Module: canny, Model: c [d14c016b], Weight: 1", Version: v1.10.1"""


def values(data: bytes) -> dict:
    return {item.name: item.value for item in read_metadata(data).items if item.name}


@pytest.mark.parametrize("where", ["png", "jpeg"])
def test_every_key_of_a1111_has_its_meaning_or_is_named(where):
    data = png(parameters=A1111)
    if where == "jpeg":
        data = exif(0x9286, b"UNICODE\0" + A1111.encode("utf-16-be"), "JPEG", ">")
    found = read_metadata(data)
    assert (found.tool, found.task, found.needs) == ("a1111", "txt2img", ())
    assert found.model == {
        "name": "v1-5-pruned-emaonly", "hash": "6ce0161689", "vae": "vae-ft-mse.safetensors", "vae hash": "c6a580b13a"
    }  # fmt: skip
    assert values(data) == {
        "prompt": 'a (cat:1.2), sitting\non a "mat"', "negative_prompt": "dog,\nblurry", "num_steps": 28,
        "sampler": "DPM++ 2M", "schedule": "Karras", "guidance_scale": 6.5, "seed": 123456789012, "width": 512,
        "height": 768, "variation_seed": 7, "variation_strength": 0.2, "seed_resize": (640, 512), "strength": 0.55,
        "clip_skip": 2, "ensd": 31337, "noise_source": "CPU", "seamless": True, "hires.enlarge": 1.5,
        "hires.hires_steps": 12, "hires.upscale": "Latent", "emphasis": "no_norm", "skip.sigma": 0.5,
    }  # fmt: skip
    unknown = {item.key: item.text for item in found.items if item.name is None}
    assert unknown == {
        "Lora hashes": "add_detail: 7c6bad76eb54, x: 1", "TI hashes": "easynegative: c74b4e810b03",
        "ControlNet 0": "Module: canny, Model: c [d14c016b], Weight: 1",
    }  # fmt: skip


def test_pictures_from_pictures_are_told_apart():
    def of(text: str) -> tuple:
        found = read_metadata(png(parameters=f"a\nSteps: 1, Sampler: Euler, Seed: 2, {text}"))
        return found.task, found.needs

    assert of("Denoising strength: 0.5") == ("img2img", ("a picture",))
    assert of("Denoising strength: 0.5, Hires upscale: 2") == ("txt2img", ())
    assert of("Denoising strength: 0.5, Mask blur: 4") == ("inpaint", ("a picture", "a mask"))


@given(st.text(max_size=80), st.text(max_size=80), st.dictionaries(st.sampled_from("ABC"), st.text(max_size=20)))
@settings(max_examples=50, deadline=None)
def test_what_we_write_for_other_tools_is_read_back(prompt, negative, fields):
    def clean(text: str) -> str:  # what the form itself can hold
        return " ".join("".join(one if one.isprintable() else " " for one in text).split())

    prompt, negative = clean(prompt), clean(negative)
    own = {"Steps": 1, "Sampler": "Euler", "Seed": 2}
    fields = {f"Key {key}": clean(text).strip('" ') for key, text in fields.items() if clean(text).strip('" ')}
    text = infotext(prompt, negative, {**own, **fields})
    if prompt.startswith("Negative prompt:"):
        return
    found = split(text)
    assert found[:2] == (prompt, negative)
    assert {key: value for key, value in found[2].items() if key.startswith("Key")} == fields


GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 156680208700286, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m", "scheduler": "karras",
        "denoise": 1, "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "../../v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["11", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["11", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "l.safetensors", "strength_model": 1, "model": ["4", 0], "clip": ["4", 1]}},
    "11": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
}  # fmt: skip


def changed(number: str, **inputs: object) -> dict:
    graph = json.loads(json.dumps(GRAPH))
    graph[number]["inputs"].update(inputs)
    return graph


def test_the_usual_graph_of_comfyui_is_followed_from_the_picture_to_the_model():
    found = read_metadata(png(prompt=json.dumps(GRAPH), workflow="{}"))
    assert found.tool == "comfyui"
    assert found.model == {"name": "../../v1-5.safetensors"}  # shown, never opened
    assert values(png(prompt=json.dumps(GRAPH))) == {
        "seed": 156680208700286, "num_steps": 20, "guidance_scale": 8, "sampler": "dpmpp_2m", "schedule": "karras",
        "prompt": "a cat", "negative_prompt": "dog", "clip_skip": -2, "width": 512, "height": 640,
    }  # fmt: skip
    assert [item.key for item in found.items if item.name is None] == ["LoraLoader"]


def test_what_a_graph_does_besides_is_named():
    def unknown(graph: dict) -> list[str]:
        return [item.key for item in comfyui.read(json.dumps(graph)).items if item.name is None]

    assert "KSampler denoise" in unknown(changed("3", denoise=0.5))
    assert "batch_size" in unknown(changed("5", batch_size=4))
    assert "positive prompt" in unknown(changed("6", text=["4", 0]))
    assert "KSampler seed" in unknown(changed("3", seed=["4", 0]))
    assert comfyui.read(json.dumps(changed("3", latent_image=["8", 0]))).needs
    advanced = changed("3", noise_seed=5, start_at_step=3)
    advanced["3"]["class_type"] = "KSamplerAdvanced"
    assert "KSamplerAdvanced start_at_step" in unknown(advanced)


def test_the_sampler_whose_picture_is_saved_is_meant():
    graph = json.loads(json.dumps(GRAPH))
    graph["20"] = json.loads(json.dumps(GRAPH["3"]))
    graph["20"]["inputs"]["seed"] = 1
    found = comfyui.read(json.dumps(graph))
    assert {item.name: item.value for item in found.items}["seed"] == 156680208700286
    assert "KSampler" in [item.key for item in found.items if item.name is None]


INVOKE = {
    "app_version": "5.4.2", "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "dog",
    "width": 512, "height": 640, "seed": 5, "rand_device": "cpu", "cfg_scale": 7, "cfg_rescale_multiplier": 0.0,
    "steps": 30, "scheduler": "dpmpp_2m_k", "seamless_x": True, "seamless_y": False, "clip_skip": 0,
    "model": {"key": "k", "hash": "blake3:1", "name": "sd-1.5", "base": "sd-1", "type": "main"},
    "loras": [{"model": {"name": "x"}, "weight": 0.5}], "controlnets": [],
}  # fmt: skip


def test_invokeai_of_both_forms_is_understood():
    found = read_metadata(png(invokeai_metadata=json.dumps(INVOKE)))
    assert values(png(invokeai_metadata=json.dumps(INVOKE))) == {
        "prompt": "a cat", "negative_prompt": "dog", "seed": 5, "num_steps": 30, "guidance_scale": 7,
        "guidance_rescale": 0, "width": 512, "height": 640, "clip_skip": 0, "sampler": "dpmpp_2m_k", "seamless": "x",
    }  # fmt: skip
    assert [item.key for item in found.items if item.name is None] == ["loras"]
    assert found.model == {"name": "sd-1.5", "hash": "blake3:1"}
    image = {"prompt": [{"prompt": "a cat [dog]", "weight": 1}], "steps": 30, "cfg_scale": 7.5, "seed": 5, "width": 512,
             "height": 512, "sampler": "k_euler_a", "type": "txt2img", "threshold": 0, "hires_fix": True}  # fmt: skip
    old = png(**{"sd-metadata": json.dumps({"model": "stable diffusion", "model_weights": "w", "image": image})})
    assert values(old) == {
        "prompt": "a cat", "negative_prompt": "dog", "seed": 5, "num_steps": 30, "guidance_scale": 7.5,
        "width": 512, "height": 512, "sampler": "euler_a",
    }  # fmt: skip
    assert [item.key for item in read_metadata(old).items if item.name is None] == ["hires_fix"]


def test_settings_are_ours_and_what_has_no_counterpart_is_put_aside():
    understood = understand(read_metadata(png(parameters=A1111)))
    assert understood.settings["sampler"] == "dpmpp_2m"
    assert understood.settings["num_steps"] == 28
    assert understood.hires == {"enlarge": 1.5, "hires_steps": 12, "upscale": "Latent"}
    assert {"Lora hashes", "TI hashes", "ControlNet 0"} == {item.key for item in understood.unknown}
    text = "a\nSteps: 0, Sampler: Odd thing, Seed: -1, CFG scale: 7, Size: 512x512"
    understood = understand(read_metadata(png(parameters=text)))
    assert {item.key for item in understood.unknown} == {"Steps", "Sampler", "Seed"}
    assert {"num_steps", "sampler", "seed"}.isdisjoint(understood.settings)


HOSTILE = [
    "",
    "a cat",
    "Steps: 1",
    "Steps: " + "9" * 10_000 + ", Sampler: a, Seed: 1",
    "Steps: 1e9999, Sampler: a, Seed: 1",
    "a\nSteps: 1, Sampler: a, Seed: nan, CFG scale: inf",
    "x" * 3_000_000 + "\nSteps: 1, Sampler: a, Seed: 1",
    "Size: x, Steps: 1, Seed: 1",
    '"' * 100_000,
    "a: \\" * 50_000,
]


def said(data: bytes) -> str:
    """Returns the sentence with which a picture is refused; an empty text if it is understood."""
    try:
        understood = understand(read_metadata(data))
    except PictureError as error:
        return str(error)
    assert understood.settings.get("sampler") != "../../etc/passwd"
    return ""


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("keyword", ["parameters", "prompt", "invokeai_metadata", "sd-metadata", "sdjax"])
def test_hostile_texts_are_refused_or_harmless(keyword, text):
    sentence = said(png(**{keyword: text}))
    assert len(sentence) < 1000
    assert "\n" not in sentence


JSON_BOMBS = [
    "[" * 200_000,
    '{"image": ' + "[" * 200_000,
    json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0], "model": ["1", 0]}}}),
    json.dumps({"1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
                "2": {"class_type": "Reroute", "inputs": {"": ["2", 0]}},
                "3": {"class_type": "KSampler", "inputs": {"seed": [], "steps": {}, "model": ["2", 0]}}}),
    json.dumps({str(i): {"class_type": "KSampler", "inputs": {}} for i in range(10_000)}),
    json.dumps({"seed": 10**4000, "positive_prompt": "a"}),
    json.dumps({"positive_prompt": ["a"], "seed": True, "steps": "x", "model": [], "scheduler": {}}),
    json.dumps({"task": "txt2img", "prompt": 3, "seed": {}}),
    json.dumps({"task": "txt2img", "prompt": "a", "sampler": "../../etc/passwd", "sampler_options": {"x": [[]]}}),
    json.dumps({"task": "../x", "prompt": "a", "model": "m", "batch": -5, "dtype": "__import__('os')"}),
]  # fmt: skip


@pytest.mark.parametrize("text", JSON_BOMBS, ids=range(len(JSON_BOMBS)))
@pytest.mark.parametrize("keyword", ["prompt", "invokeai_metadata", "sd-metadata", "sdjax"])
def test_hostile_json_is_refused_or_harmless(keyword, text):
    assert len(said(png(**{keyword: text}))) < 1000


@pytest.mark.parametrize("last", ["a" * 100_000, " " * 100_000 + "x", 'ab: "' * 20_000, "a" * 4_000_000])
def test_reading_a_long_last_line_takes_no_square_of_its_length(last):
    start = time.process_time()
    assert len(said(png(parameters=f"a cat\n{last}"))) < 1000
    assert time.process_time() - start < 60  # a square would take minutes


def test_damaged_files_are_picture_errors_and_nothing_else():
    rng = random.Random(0)
    whole = [png(parameters=A1111), exif(0x9286, b"UNICODE\0" + A1111.encode("utf-16-le"), "JPEG"),
             exif(0x9286, b"ASCII\0\0\0" + b"a" * 50, "WEBP")]  # fmt: skip
    for data in whole:
        for _ in range(150):
            broken = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
            for _ in range(rng.randrange(4)):
                if broken:
                    broken[rng.randrange(min(len(broken), 400))] = rng.randrange(256)
            said(bytes(broken))


def test_a_picture_without_settings_says_so():
    with pytest.raises(PictureError, match="does not say how it was made"):
        read_metadata(png())
    with pytest.raises(PictureError, match="PNG, JPEG and WebP"):
        read_metadata(b"GIF89a")
    with pytest.raises(PictureError, match="grid of several pictures"):
        read_metadata(png(sdjax=json.dumps({"grid": {}})))
