"""A1111's interface: fields become our settings, answers have its form. Tasks are small functions."""

import base64
import json
import threading

import numpy as np
import pytest
from anyio import to_thread
from shelf import PICTURE

from sdjax.pictures.image import encode_png
from sdjax.serve.a1111.filling import filled
from sdjax.serve.a1111.requests import fitted
from sdjax.serve.bodies import open_input

AS_TEXT = base64.b64encode(encode_png(PICTURE)).decode()
WHITE = base64.b64encode(encode_png(np.full((8, 8, 3), 255, np.uint8))).decode()


@pytest.fixture
def asking(serving):
    """Returns a function that posts a request, and the works that the server made of requests."""
    works = []

    def keep(work, context):
        works.append(work)
        count, first = work.settings.get("num_images", 1), work.settings.get("seed", 7)
        return [context.finish(PICTURE, {"seed": first + k}, {"parameters": "text"}) for k in range(count)]

    client = serving(keep)

    def ask(path, **body):
        return client.post(path, json=body)

    return ask, works, client


def test_defaults_are_those_of_its_description(asking):
    ask, works, _ = asking
    answer = ask("/sdapi/v1/txt2img").json()
    own = works[0].settings
    expected = {
        "prompt": "", "sampler": "euler", "num_steps": 50, "guidance_scale": 7.0, "width": 512, "height": 512,
        "num_images": 1, "compat": "a1111", "noise_source": "torch_cuda",
    }  # fmt: skip
    assert {name: own[name] for name in expected} == expected
    assert 0 <= own["seed"] < 2**32
    assert works[0].save is False
    assert set(answer) == {"images", "parameters", "info"}
    assert open_input(base64.b64decode(answer["images"][0]), "image").shape == PICTURE.shape
    assert answer["parameters"]["steps"] == 50


def test_fields_become_settings(asking):
    ask, works, _ = asking
    answer = ask(
        "/sdapi/v1/txt2img", prompt="a cat", negative_prompt="fog", seed=5, subseed=9, subseed_strength=0.25, steps=20,
        sampler_name="DPM++ 2M SDE Karras", cfg_scale=6, width=520, height=64, batch_size=2, n_iter=3, tiling=True,
            eta=0.5,
        seed_resize_from_h=64, seed_resize_from_w=128, send_images=False, save_images=True,
        override_settings={"CLIP_stop_at_last_layers": 2, "randn_source": "CPU", "eta_noise_seed_delta": 31337,
                           "token_merging_ratio": 0.4, "token_merging_ratio_img2img": 0.2},
    ).json()  # fmt: skip
    own = works[0].settings
    assert own.items() >= {
        "prompt": "a cat", "negative_prompt": "fog", "seed": 5, "variation_seed": 9, "variation_strength": 0.25,
        "num_steps": 20, "sampler": "dpmpp_2m_sde", "schedule": "karras", "guidance_scale": 6.0,
        "width": 520, "height": 64,
        "num_images": 6, "seamless": "xy", "eta": 0.5, "seed_resize": [64, 128], "clip_skip": 2, "ensd": 31337,
        "noise_source": "torch_cpu", "patches": [{"name": "token_merging", "ratio": 0.4, "random": False}],
    }.items()  # fmt: skip
    assert answer["images"] == []
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [5, 6, 7, 8, 9, 10]
    assert info["infotexts"] == ["text"] * 6
    assert info["warnings"] == []
    assert works[0].save is True


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/sdapi/v1/txt2img", '{"steps": 1e999}'),
        ("/sdapi/v1/txt2img", '{"seed": -1e999}'),
        ("/sdapi/v1/txt2img", '{"override_settings": {"randn_source": []}}'),
        ("/sdapi/v1/options", '{"sd_model_checkpoint": 1}'),
        ("/controlnet/detect", f'{{"controlnet_input_images": ["{AS_TEXT}"], "controlnet_module": []}}'),
        ("/sdapi/v1/txt2img", '{"enable_hr": true, "hr_upscaler": [[]]}'),
        ("/sdapi/v1/txt2img", '{"enable_hr": true, "hr_cfg": {"a": null}}'),
        ("/sdapi/v1/img2img", f'{{"init_images": ["{AS_TEXT}"], "mask": "{AS_TEXT}", "mask_blur": []}}'),
    ],
)
def test_values_of_another_kind_are_refused_in_a_sentence(asking, path, text):
    answer = asking[2].post(path, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "inside the server" not in answer.json()["error"]


def test_unknown_fields_are_named_and_not_used(asking):
    ask, works, _ = asking
    info = json.loads(
        ask(
            "/sdapi/v1/txt2img",
            glow=3,
            restore_faces=True,
            eta=0.1,
            sampler_name="DPM++ 2M",
            override_settings={"x": 1},
        ).json()["info"]
    )
    assert info["warnings"] == [
        "'glow' is unknown", "restore_faces is not followed", "the option 'x' is unknown",
        "eta has no effect on the sampler dpmpp_2m",
    ]  # fmt: skip
    assert "glow" not in works[0].settings


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"steps": "many"}, "steps is a whole number"),
        ({"steps": 2.5}, "steps is a whole number"),
        ({"steps": 0}, "steps is a whole number from 1"),
        ({"width": 10**9}, "width"),
        ({"prompt": 3}, "prompt is a text"),
        ({"sampler_name": "Eulre"}, "sampler"),
        ({"scheduler": "karas"}, "schedule"),
        ({"batch_size": 1000}, "batch_size"),
        ({"script_name": "x/y/z plot"}, "no scripts"),
        ({"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, "no checkpoint"),
        ({"override_settings": {"randn_source": "dice"}}, "randn_source is one of"),
        ({"override_settings": {"token_merging_ratio": 2}}, "token_merging_ratio is a number from 0 to 0.9; got 2"),
        ({"override_settings": {"hypertile_swap_size_unet": "3"}}, "hypertile_swap_size_unet is a whole number"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "nothing"}]}}}, "no control"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"model": "builtin-edges"}]}}}, "needs an image"),
        ({"alwayson_scripts": {"controlnet": {"args": "x"}}}, "list of args"),
        ({"enable_hr": True, "hr_upscaler": "nothing"}, "no upscaler"),
        ({"enable_hr": True, "hr_resize_x": 1024, "hr_resize_y": 600}, "give one of them"),
    ],
)
def test_wrong_values_are_refused_in_a_sentence(asking, body, said):
    ask, works, _ = asking
    answer = ask("/sdapi/v1/txt2img", **body)
    assert answer.status_code == 422
    assert said in answer.json()["error"]
    assert works == []


def test_a_second_pass(asking):
    ask, works, _ = asking
    ask(
        "/sdapi/v1/txt2img", enable_hr=True, width=64, height=128, hr_resize_x=128, hr_second_pass_steps=7,
        denoising_strength=0.4, hr_prompt="sharp", hr_sampler_name="Euler a", hr_upscaler="Latent (nearest)",
    )  # fmt: skip
    assert works[0].settings["hires"] == {
        "enlarge": 2.0, "strength": 0.4, "upscale": "Latent (nearest)", "hires_steps": 7,
        "hires_sampler": "euler_ancestral", "hires_prompt": "sharp",
    }  # fmt: skip


def merging(ratio):
    return [{"name": "token_merging", "ratio": ratio, "random": False}]


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({"token_merging_ratio": 0.4}, merging(0.4), None),  # the second pass has the first one's
        ({"token_merging_ratio_hr": 0.5}, None, merging(0.5)),
        ({"token_merging_ratio": 0.4, "token_merging_ratio_hr": 0.5}, merging(0.4), merging(0.5)),
    ],
)
def test_each_pass_has_its_ratio_of_token_merging(asking, options, first, second):
    ask, works, _ = asking
    ask("/sdapi/v1/txt2img", enable_hr=True, width=64, height=64, override_settings=options)
    assert works[0].settings.get("patches") == first
    assert works[0].settings["hires"].get("hires_patches") == second


@pytest.mark.parametrize(
    ("options", "override", "ratio"),
    [
        ({"token_merging_ratio": 0.4}, {}, 0.4),
        ({"token_merging_ratio": 0.4, "token_merging_ratio_img2img": 0.2}, {}, 0.2),
        ({"token_merging_ratio_img2img": 0.2}, {"token_merging_ratio": 0.4}, 0.4),
    ],
)
def test_for_img2img_a_requests_own_ratio_comes_first(asking, options, override, ratio):
    ask, works, client = asking
    assert client.post("/sdapi/v1/options", json=options).status_code == 200
    ask("/sdapi/v1/img2img", init_images=[AS_TEXT], width=64, height=64, override_settings=override)
    assert works[0].settings["patches"] == merging(ratio)


def test_calls_without_the_negative_prompt(asking):
    ask, works, _ = asking
    options = {"s_min_uncond": 0.5, "s_min_uncond_all": True, "skip_early_cond": 0.2}
    ask("/sdapi/v1/txt2img", override_settings=options, s_min_uncond=1.5)
    assert works[0].settings["guidance"] == "skip"
    assert works[0].settings["guidance_options"] == {"sigma": 1.5, "all_steps": True, "early": 0.2}
    answer = ask("/sdapi/v1/txt2img", s_min_uncond=1.5, sampler_name="DDIM").json()
    assert "guidance" not in works[1].settings
    assert json.loads(answer["info"])["warnings"] == ["s_min_uncond has no effect on the sampler ddim"]


def test_a_picture_from_a_picture(asking):
    ask, works, _ = asking
    ask(
        "/sdapi/v1/img2img",
        init_images=["data:image/png;base64," + AS_TEXT],
        width=64,
        height=128,
        denoising_strength=0.3,
    )
    assert works[0].task == "img2img"
    assert works[0].settings["strength"] == 0.3
    assert works[0].inputs["image"].shape == (128, 64, 3)
    assert ask("/sdapi/v1/img2img", prompt="a cat").status_code == 422


@pytest.mark.parametrize("inverted", [0, 1])
def test_inpainting(asking, inverted):
    ask, works, _ = asking
    mask = np.zeros((8, 8, 3), np.uint8)
    mask[:, 4:] = 255
    text = base64.b64encode(encode_png(mask)).decode()
    ask(
        "/sdapi/v1/img2img", init_images=[AS_TEXT], mask=text, inpainting_mask_invert=inverted, inpainting_fill=1,
        mask_blur=6, inpaint_full_res_padding=12,
    )  # fmt: skip
    work = works[0]
    assert work.task == "inpaint"
    np.testing.assert_array_equal(work.inputs["mask"], 255 - mask[..., 0] if inverted else mask[..., 0])
    np.testing.assert_array_equal(work.inputs["image"], PICTURE)
    assert work.settings.items() >= {"only_masked": True, "padding": 12, "feather": 6, "strength": 0.75}.items()
    assert "width" not in work.settings


@pytest.mark.parametrize(("number", "fill"), [(1, None), (2, "noise"), (3, "nothing")])
def test_what_is_under_the_mask_at_the_start(asking, number, fill):
    ask, works, _ = asking
    answer = ask("/sdapi/v1/img2img", init_images=[AS_TEXT], mask=WHITE, inpainting_fill=number)
    assert json.loads(answer.json()["info"])["warnings"] == []
    assert works[0].settings.get("fill") == fill


def test_what_fills_the_mask_comes_from_around_it():
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8], picture[:, 8:] = 100, 200
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    hidden = picture.copy()
    hidden[mask] = 7  # what is under the mask does not matter
    made = filled(hidden, mask)
    np.testing.assert_array_equal(made, filled(picture, mask))
    np.testing.assert_array_equal(made[~mask], picture[~mask])
    assert made[mask].min() >= 100
    assert made[8, 4, 0] < made[8, 11, 0]
    np.testing.assert_array_equal(filled(np.full_like(picture, 42), mask), np.full_like(picture, 42))


def test_how_pictures_are_brought_to_a_size():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :4], wide[:, 12:] = 50, 250
    assert fitted(wide, 8, 8, 0)[:, 0].min() > 40  # stretched: both ends are there
    np.testing.assert_array_equal(fitted(wide, 8, 8, 1), np.zeros((8, 8, 3)))  # the middle
    framed = fitted(wide, 16, 16, 2)
    np.testing.assert_array_equal(framed[0], wide[0])  # the first row again and again
    np.testing.assert_array_equal(framed[4:12], wide)


def test_a_controlnet_unit(asking):
    ask, works, _ = asking
    unit = {
        "model": "builtin-edges", "module": "canny", "image": {"image": AS_TEXT, "mask": WHITE}, "weight": 0.7,
        "guidance_end": 0.5, "control_mode": "ControlNet is more important", "resize_mode": 2, "threshold_a": 50,
        "threshold_b": -1, "glow": 1,
    }  # fmt: skip
    off = {"enabled": False, "model": "builtin-edges"}
    info = json.loads(
        ask("/sdapi/v1/txt2img", alwayson_scripts={"ControlNet": {"args": [off, unit]}, "x": {"args": []}}).json()[
            "info"
        ]
    )
    (control,) = works[0].settings["controls"]
    assert control == {
        "network": "builtin-edges", "weight": 0.7, "start": 0.0, "end": 0.5, "mode": "control", "resize": "pad",
        "hint": "hint_1", "mask": "mask_1", "preprocess": "canny", "options": {"low_threshold": 50}, "annotators": [],
    }  # fmt: skip
    np.testing.assert_array_equal(works[0].inputs["hint_1"], PICTURE)
    assert info["warnings"] == ["ControlNet's 'glow' is unknown", "the script 'x' is unknown"]


def test_options_are_set_together_or_not_at_all(asking):
    ask, _, client = asking
    assert ask("/sdapi/v1/options", CLIP_stop_at_last_layers=2, nothing=1).status_code == 422
    assert client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1
    assert ask("/sdapi/v1/options", **client.get("/sdapi/v1/options").json()).status_code == 200  # as clients do
    ask("/sdapi/v1/options", CLIP_stop_at_last_layers=2, sd_model_checkpoint="builtin-inpainting")
    options = client.get("/sdapi/v1/options").json()
    assert (options["CLIP_stop_at_last_layers"], options["sd_model_checkpoint"]) == (2, "builtin-inpainting")


def test_progress_and_interrupt(serving):
    started = threading.Event()

    def forever(work, context):
        context.job.set_progress(3, 12)
        started.set()
        while not context.cancelled():
            pass
        context.check()

    client = serving(forever)
    assert client.get("/sdapi/v1/progress").json()["progress"] == 0
    answers = []
    asked = threading.Thread(target=lambda: answers.append(client.post("/sdapi/v1/txt2img", json={})))
    asked.start()
    assert started.wait(10)
    told = client.get("/sdapi/v1/progress").json()
    assert told["progress"] == 0.25
    assert (told["state"]["sampling_step"], told["state"]["sampling_steps"]) == (3, 12)
    client.post("/sdapi/v1/interrupt")
    asked.join(10)
    assert answers[0].json()["images"] == []


def test_many_that_wait_leave_room_for_others(serving):
    """More requests wait for their pictures than there are threads for requests, and none of them holds one."""
    go = threading.Event()

    def slowly(work, context):
        assert go.wait(20)
        return [context.finish(PICTURE, {"seed": 1}, {})]

    client = serving(slowly, waiting=100)
    with client:  # one event loop for all
        asked = [
            threading.Thread(target=client.post, args=["/sdapi/v1/txt2img"], kwargs={"json": {}}) for _ in range(50)
        ]
        for one in asked:
            one.start()
        while client.get("/api/v1/status").json()["waiting"] < 48:
            pass
        assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 50
        limiter = client.portal.call(current_limiter)
        borrowed = limiter.borrowed_tokens
        go.set()
        for one in asked:
            one.join(20)
    assert borrowed == 0
    assert not any(one.is_alive() for one in asked)


async def current_limiter():
    return to_thread.current_default_thread_limiter()


def test_extras(asking):
    ask, works, client = asking
    answer = ask("/sdapi/v1/extra-single-image", image=AS_TEXT, upscaling_resize=3).json()
    assert open_input(base64.b64decode(answer["image"]), "image").shape == (24, 24, 3)
    assert works == []  # without an upscaler it is only resized
    batch = {"imageList": [{"data": AS_TEXT, "name": "a.png"}] * 2, "upscaler_1": "Lanczos"}
    answer = client.post("/sdapi/v1/extra-batch-images", json=batch).json()
    assert len(answer["images"]) == 2
    assert [work.task for work in works] == ["upscale"] * 2
    assert ask("/sdapi/v1/extra-single-image", image=AS_TEXT, gfpgan_visibility=1).status_code == 422
    assert ask("/sdapi/v1/extra-single-image", image=AS_TEXT, upscaling_resize=10_000).status_code == 422


def test_png_info(asking):
    ask, _, _ = asking
    text = "a boat\nNegative prompt: fog\nSteps: 9, Sampler: Euler a, CFG scale: 5, Seed: 3, Size: 64x64"
    answer = ask(
        "/sdapi/v1/png-info", image=base64.b64encode(encode_png(PICTURE, {"parameters": text})).decode()
    ).json()
    assert answer["info"] == text
    assert answer["parameters"]["Prompt"] == "a boat"
    assert answer["parameters"]["Steps"] == "9"


def test_what_is_not_there_is_said(asking):
    ask, _, _ = asking
    assert ask("/sdapi/v1/interrogate", image=AS_TEXT).status_code == 501


LISTS = (
    "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-models", "sd-vae", "loras", "embeddings",
    "hypernetworks", "prompt-styles", "face-restorers", "scripts", "script-info", "cmd-flags", "memory", "options",
)  # fmt: skip


def test_every_list_answers(asking):
    _, _, client = asking
    for name in LISTS:
        assert client.get(f"/sdapi/v1/{name}").status_code == 200, name
    for name in "model_list", "module_list", "control_types", "settings", "version":
        assert client.get(f"/controlnet/{name}").status_code == 200, name
    assert client.get("/internal/ping").json() == {}
    samplers = {one["name"] for one in client.get("/sdapi/v1/samplers").json()}
    assert {"Euler a", "DPM++ 2M", "DDIM", "UniPC"} <= samplers
    assert {"Automatic", "Karras"} <= {one["label"] for one in client.get("/sdapi/v1/schedulers").json()}
