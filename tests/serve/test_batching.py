"""Continuous batching: pictures of one size are sampled together, and are those that are made alone."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from shelf import Shelf

import sdjax
from sdjax import samplers
from sdjax.adapters import LowRank, Strength
from sdjax.diffusion.conditioning import Conditioning
from sdjax.diffusion.constraint import Held
from sdjax.pipeline.model import make_keys
from sdjax.pipeline.placement import make_mesh
from sdjax.scripts.main import main
from sdjax.serve.engine import Engine, Work
from sdjax.serve.engine.device import Device
from sdjax.serve.engine.entries import common_contexts, power
from sdjax.serve.engine.joined import JoinedPipeline
from sdjax.serve.engine.low_rank import attention_layers
from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.request import Request

import models
from checks import count_compilations, near

ONE = {"devices": jax.devices()[:1]}
MIXED = [
    Request("a cat", seed=1, sampler="ddim", num_steps=7, guidance_scale=4.0),
    Request("a dog", negative_prompt="blurry", seed=2**40, sampler="dpmpp_2m", num_steps=4, guidance_scale=7.0),
    Request("an owl", seed=4, sampler="euler_ancestral", num_steps=6, guidance_scale=9.0, guidance_rescale=0.7),
    Request("a fox", seed=3, sampler="dpm2", num_steps=6, noise_source="torch_cpu"),
]


@pytest.fixture
def joined():
    """The small model, on a device that samples up to 2 pictures at once."""
    device = Device(make_mesh(jax.devices()[:1]), 2)
    yield JoinedPipeline.of(models.pipeline(), device)
    device.close()


def together(pipe, makers):
    """Returns the results of functions that run at once. The device begins when every one of them waits for it.

    All programs for one and two pictures are compiled before, so that all are sampled together.
    """
    device, results = pipe.device, [None] * len(makers)

    def run(i):
        results[i] = makers[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(makers))]
    for one in threads:
        one.start()
    for one in threads:
        one.join(120)
    assert all(one is not None for one in results)
    device.programs.wait_for_all()
    device.measured.chunks.clear()
    go = threading.Event()
    joining = device.sampling
    inside = threading.Semaphore(0)

    def join_late(entries):
        inside.release()
        go.wait(60)
        return joining(entries)

    object.__setattr__(device, "sampling", join_late)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(makers))]
    for one in threads:
        one.start()
    for _ in threads:
        inside.acquire(timeout=60)
    go.set()
    for one in threads:
        one.join(120)
    return results


def test_pictures_with_other_samplers_steps_and_scales_join_and_are_those_made_alone(joined):
    makers = [lambda one=one: sdjax.generate(joined, [one], **ONE)[0] for one in MIXED]  # two wait for their turn
    made = together(joined, makers)
    assert max(joined.device.measured.chunks) > 1
    pipe = models.pipeline()
    for request, picture in zip(MIXED, made, strict=True):
        assert near(sdjax.generate(pipe, [request], **ONE)[0], picture)  # one 8-bit level


@pytest.mark.slow  # compiles programs for each kind
def test_a_latent_that_is_held_as_in_comfyui_is_not_joined_with_others(joined):
    mesh, keys = make_mesh(jax.devices()[:1]), make_keys([1])
    rows = samplers.repeat(samplers.DDIM().steps(joined.schedule, 3), 1)
    x, branches = joined.noise(keys, 64, 64, mesh=mesh), [Conditioning(joined.encode_prompt(["a"], mesh=mesh))]
    held = Held(0 * x, np.arange(64).reshape(1, 8, 8, 1) % 2 * np.float32(1), x)
    rest = samplers.Linear(), rows, 14.6 * x, keys, branches
    makers = [lambda known=known: list(joined.sampling(*rest, known=known, mesh=mesh))[-1][1].x
              for known in (None, held)]  # fmt: skip
    for made, known in zip(together(joined, makers), (None, held), strict=True):
        want = models.pipeline().sample(*rest, known=known, mesh=mesh).x
        np.testing.assert_allclose(made, want, atol=1e-3)


def test_a_picture_that_is_given_up_leaves_and_closing_ends_the_others(joined):
    session = sdjax.generate.session(joined, MIXED[:1], **ONE)
    next(session)
    session.cancel()
    assert session.result() == [None]
    assert joined.device.busy == 0


def test_what_entries_have_in_common_is_filled_to_powers_of_two():
    class Of:
        def __init__(self, widest, length, stages):
            self.widest, self.length, self.stages = widest, length, stages

    assert common_contexts([Of(77, 0, 0), Of(77, 0, 0)]) == (0, 0)
    assert common_contexts([Of(77, 0, 0), Of(231, 231, 3)]) == (308, 4)
    assert [power(n) for n in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]


def random_adapter(pipe, rank, seed):
    """An adapter of this rank for every other layer of the attention blocks."""
    rng = np.random.default_rng(seed)
    layers = list(attention_layers(pipe.params["unet"]).items())[::2]
    return {
        f"unet/{path}/kernel": LowRank(rng.normal(size=(*shape[:-1], rank)).astype(np.float32) * 0.2,
                                       rng.normal(size=(rank, shape[-1])).astype(np.float32) * 0.2)
        for path, shape in layers
    }  # fmt: skip


@pytest.mark.slow
def test_pictures_with_different_low_rank_adapters_and_none_join(joined):
    pipe = models.pipeline()
    uses = [(AdapterUse(random_adapter(pipe, rank, rank), Strength(0.8)),) for rank in (3, 20)]
    requests = [Request("a cat", seed=i, num_steps=5, adapters=use) for i, use in enumerate([*uses, (), uses[0]])]
    made = together(joined, [lambda one=one: sdjax.generate(joined, [one], **ONE)[0] for one in requests])
    assert max(joined.device.measured.chunks) > 1
    for request, picture in zip(requests, made, strict=True):
        assert near(sdjax.generate(pipe, [request], **ONE)[0], picture)


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[16:48, 16:48] = 255
WORKS = [
    Work("txt2img", {"prompt": "a cat", "seed": 1, "num_steps": 9, "sampler": "heun", "guidance_scale": 5}),
    Work("txt2img", {"prompt": "a dog", "num_steps": 12, "sampler": "euler_ancestral", "num_images": 3}),
    Work("txt2img", {"prompt": "a dog " * 50, "num_steps": 7, "sampler": "dpmpp_2m", "schedule": "karras"}),
    Work("txt2img", {"prompt": "a [cat:dog:0.5]", "num_steps": 8, "clip_skip": 1, "guidance": "apg"}),
    Work("txt2img", {"prompt": "a fox", "num_steps": 6, "hires": {"enlarge": 2, "upscale": "bilinear"}}),
    Work("txt2img", {"prompt": "a fox", "num_steps": 6, "height": 128, "width": 64}),
    Work("img2img", {"prompt": "a hen", "strength": 0.6, "num_steps": 10}, {"image": NOISE}),
    Work("inpaint", {"prompt": "a hen", "num_steps": 6, "method": "blend"}, {"image": NOISE, "mask": MASK}, "builtin"),
    Work("inpaint", {"prompt": "a hen", "num_steps": 6}, {"image": NOISE, "mask": MASK}),
    Work("inpaint", {"expand": [32, 0, 0, 0], "num_steps": 4, "method": "blend"}, {"image": NOISE}, "builtin"),
    Work("detail", {"boxes": [[8, 8, 32, 32]], "num_steps": 5, "strength": 0.5}, {"image": NOISE}),
    Work("txt2img", {"prompt": "a hat", "num_steps": 5,
                     "controls": [{"network": "builtin-edges", "hint": "edges", "preprocess": "canny"}]},
         {"edges": NOISE}),
    Work("upscale", {"upscaler": "lanczos", "times": 2}, {"image": NOISE}),
    Work("hint", {"preprocessor": "canny"}, {"image": NOISE}),
]  # fmt: skip


def alone(work):
    """Makes the pictures of a work by the library's function of its task."""
    pipe = sdjax.load("builtin-inpainting" if work.task == "inpaint" and work.model is None else "builtin")
    given = {**work.settings, **ONE}
    prompt, hires = given.pop("prompt", ""), given.pop("hires", None)
    image = work.inputs.get("image")
    if "controls" in given:
        given["controls"] = [sdjax.ControlUse("builtin-edges", work.inputs["edges"], preprocess="canny")]
    if hires is not None:
        return sdjax.two_pass(pipe, prompt, **hires, **given)
    if work.task == "txt2img":
        return sdjax.text_to_image(pipe, prompt, **given)
    if "expand" in given:
        return sdjax.outpaint(pipe, image, prompt, **given)
    if work.task == "inpaint":
        return sdjax.inpaint(pipe, image, work.inputs["mask"], prompt, **given)
    return {"img2img": sdjax.image_to_image, "detail": sdjax.detail}[work.task](pipe, image, prompt, **given)


@pytest.mark.slow
def test_every_task_gives_the_pictures_of_its_function_whatever_it_is_batched_with(tmp_path):
    engine = Engine(Shelf(), outputs=tmp_path / "o", state=tmp_path / "s", **ONE)
    jobs = [engine.submit(work) for work in WORKS]
    for job in jobs:
        assert job.wait(3600)
        assert (job.state, job.error) == ("done", None)
    for work, job in zip(WORKS, jobs, strict=True):
        if work.task in ("upscale", "hint"):
            assert len(job.pictures) == 1
            continue
        for picture, other in zip(job.pictures, alone(work), strict=True):
            assert near(picture.pixels, other)
    engine.close()


@pytest.mark.slow
def test_nothing_is_compiled_after_the_warm_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sdjax, "load", lambda *_, **__: models.pipeline())
    engine = Engine(Shelf(), outputs=tmp_path / "o", state=tmp_path / "s", slots=4, **ONE)
    engine.warm_up()
    engine.warmed.wait(600)
    samplers = ["ddim", "heun", "plms", "euler_ancestral", "dpmpp_2m", "dpmpp_sde", "unipc", "lms"]
    works = [
        Work("txt2img", {"prompt": "a cat " * (1 + 40 * (i % 2)), "seed": i, "sampler": name, "num_steps": 3 + 2 * i,
                         "guidance_scale": 2.0 + i})
        for i, name in enumerate(samplers)
    ]  # fmt: skip

    def run():
        jobs = [engine.submit(work) for work in works]
        assert all(job.wait(600) and job.state == "done" for job in jobs)

    assert count_compilations(run) == 0
    engine.close()


SERVER = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from shelf import Shelf
from sdjax.serve.engine import TASKS, Engine, Work

def slowly(work, context):
    for step in range(5):
        time.sleep(0.02)
        context.progress(step, 5)
    return [context.finish(np.full((8, 8, 3), 7, np.uint8), {"seed": 1}, {"parameters": "x"})]

TASKS["txt2img"] = slowly
folder = Path(sys.argv[2])
engine = Engine(Shelf(), outputs=folder / "o", state=folder / "s", slots=2, waiting=1000)
while True:
    print(engine.submit(Work("txt2img", {"prompt": "x"})).id, flush=True)
    time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_nothing_acknowledged_is_lost_or_made_twice_by_kill_9(tmp_path, monkeypatch):
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), str(tmp_path)]
    acknowledged = []
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(12):
            acknowledged.append(process.stdout.readline().strip())
        process.kill()
        acknowledged += process.stdout.read().split("\n")[:-1]
        process.stdout.close()
        process.wait()
    from sdjax.serve.engine import TASKS

    def paint(work, context):
        return [context.finish(np.full((8, 8, 3), 7, np.uint8), {"seed": 1}, {"parameters": "x"})]

    monkeypatch.setitem(TASKS, "txt2img", paint)
    engine = Engine(Shelf(), outputs=tmp_path / "o", state=tmp_path / "s", **ONE)
    while engine.jobs():
        time.sleep(0.01)
    records = engine.history(limit=10000)
    assert len({one.id for one in records}) == len(records)
    assert {one for one in acknowledged if one} <= {one.id for one in records}
    assert all(engine.picture(one.name).startswith(b"\x89PNG") for one in records)
    assert {path.stem for path in (tmp_path / "o").glob("*.png")} == {one.name for one in records}
    engine.close()


SAME = [
    (
        {"prompt": "a cat {x|y}", "seed": 3, "num_steps": 4, "sampler": "euler_ancestral", "negative_prompt": "bad"},
        ["--prompt", "a cat {x|y}", "--seed", "3", "--sampler", "euler_ancestral", "--negative-prompt", "bad"],
    ),
    (
        {"prompt": "a cat", "seed": 3, "num_steps": 4, "hires": {"enlarge": 2}, "variation_strength": 0.3,
         "variation_seed": 8},
        ["--prompt", "a cat", "--seed", "3", "--hires", "2", "--variation-strength", "0.3", "--variation-seed", "8"],
    ),
]  # fmt: skip


@pytest.mark.slow
def test_pictures_and_texts_are_those_of_the_command_line(tmp_path):
    engine = Engine(Shelf(), outputs=tmp_path / "o", state=tmp_path / "s")
    for number, (settings, flags) in enumerate(SAME):
        job = engine.submit(Work("txt2img", {**settings, "num_images": 2}))
        assert job.wait(900)
        out = tmp_path / str(number)
        main(["txt2img", *flags, "--steps", "4", "--n_samples", "2", "--n_iter", "1", "--ckpt", "builtin",
              "--skip_grid", "--outdir", str(out)])  # fmt: skip
        for path, made in zip(sorted((out / "samples").glob("*.png")), job.pictures, strict=True):
            with Image.open(path) as png:
                assert near(np.asarray(png), made.pixels)
                assert png.text["parameters"] == made.texts["parameters"]
                assert json.loads(png.text["sdjax"]) == json.loads(made.texts["sdjax"])
    engine.close()


@pytest.mark.slow
def test_all_devices_sample_the_pictures_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sdjax, "load", lambda *_, **__: models.pipeline())
    engine = Engine(Shelf(), outputs=tmp_path / "o", state=tmp_path / "s", devices=jax.devices()[:2], slots=4)
    works = [Work("txt2img", {"prompt": "a cat", "seed": i, "num_steps": 4 + i, "num_images": 1 + i}) for i in range(3)]
    works.append(Work("img2img", {"prompt": "a cat", "num_steps": 6}, {"image": NOISE}))
    works.append(Work("txt2img", {"prompt": "a [cat:dog:0.5]", "num_steps": 6, "hires": {"enlarge": 2}}))
    jobs = [engine.submit(work) for work in works]
    for work, job in zip(works, jobs, strict=True):
        assert job.wait(600)
        assert job.error is None
        for picture, other in zip(job.pictures, alone(work), strict=True):
            assert near(picture.pixels, other)
    engine.close()


@pytest.mark.slow  # compiles the network again
def test_style_aligned_pictures_are_made_together(joined):
    options = {"seed": [1, 2], "num_steps": 2, "height": 64, "width": 64, "style_aligned": 1.0, **ONE}
    alone = sdjax.text_to_image(models.pipeline(), "a cat", **options)
    assert near(np.asarray(sdjax.text_to_image(joined, "a cat", **options)), np.asarray(alone))
