"""The page in a browser: making, cancelling and keeping pictures, restoring settings, grids, files, languages."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import acts
import pytest
from fake_server import HOSTILE, picture

if TYPE_CHECKING:
    from fake_server import FakeServer
    from playwright.sync_api import Page

    Open = Callable[..., Page]

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_a_picture_is_made_shown_and_still_there_after_a_reload(
    open_page: "Open", server: "FakeServer", size: str
) -> None:
    page = open_page(size)
    acts.generate(page, "a lighthouse")
    (work,) = server.works
    assert work["task"] == "txt2img"
    assert work["settings"]["prompt"] == "a lighthouse"
    assert 0 <= work["settings"]["seed"] < 2**32
    assert work["settings"]["num_steps"] == 20
    assert not {"width", "height", "sampler", "guidance_scale"} & work["settings"].keys()  # left to the model
    page.wait_for_selector("#shown img.large:not(.preview)")
    assert page.locator("#history li").count() == 1
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#history li").count() == 1
    assert page.input_value("#prompt") == "a lighthouse"
    assert page.evaluate("document.querySelector('#shown img').naturalWidth") == 256


def test_progress_preview_and_time_left_are_shown_and_escape_cancels(open_page: "Open", server: "FakeServer") -> None:
    server.seconds = 20
    page = open_page()
    page.fill("#prompt", "a slow one")
    page.keyboard.press("Control+Enter")
    acts.until(page, "document.querySelector('#run-text').textContent.includes('s left')")
    server.seconds = 1
    page.wait_for_selector("#shown img.preview")
    assert page.get_attribute("#progress", "aria-label") == "Progress"
    page.keyboard.press("Escape")
    page.wait_for_selector("#run", state="hidden")
    assert [job["state"] for job in server.jobs.values()] == ["cancelled"]
    assert page.inner_text("#status") == "Cancelled"
    assert page.locator("#history li").count() == 0
    page.wait_for_selector("#shown .empty")  # the preview of what will not be is gone


def test_each_picture_of_a_job_is_kept_as_soon_as_it_is_made(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    page.fill("#field-num_images", "3")
    acts.generate(page)
    assert page.locator("#history li").count() == 3
    seed = server.works[0]["settings"]["seed"]
    assert f"Seed {seed + 2} " in page.inner_text("#caption")


def test_several_jobs_wait_in_a_queue_and_each_can_be_cancelled(open_page: "Open", server: "FakeServer") -> None:
    server.seconds = 20
    page = open_page()
    for name in "first", "second":
        page.fill("#prompt", name)
        page.keyboard.press("Control+Enter")
        acts.until(page, "document.querySelector('#generate').disabled === false")
    page.wait_for_selector("#queue-list li:nth-child(2)")
    assert "second" in page.inner_text("#queue-list")
    page.click("#queue-list li:nth-child(2) button")
    acts.until(
        page, "document.querySelectorAll('#queue-list li').length <= 1 || document.querySelector('#queue').hidden"
    )
    assert server.jobs["job0"]["state"] == "running"
    assert server.jobs["job1"]["state"] == "cancelled"


def test_a_job_is_followed_again_after_a_reload(open_page: "Open", server: "FakeServer") -> None:
    server.seconds = 2
    page = open_page()
    page.fill("#prompt", "goes on")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#run", state="visible")
    page.reload()
    page.wait_for_selector("#run", state="visible")


def test_all_settings_of_a_dropped_picture_come_back(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    page.fill("#field-num_steps", "50")
    page.fill("#field-guidance_scale", "3")
    acts.drop(page, "#history-title", picture(1, text="a small boat\nSteps: 31, Seed: 77"))
    acts.until(page, "document.querySelector('#prompt').value === 'a small boat'")
    assert page.input_value("#field-num_steps") == "31"
    assert page.input_value("#field-seed") == "77"
    assert page.input_value("#field-guidance_scale") == ""  # the picture does not say
    acts.until(page, "document.querySelector('#model-name').textContent === 'photo/film-v2'")  # by its hash
    assert '"ensd": 31337' in page.input_value("#field-extra")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    acts.until(page, "document.querySelectorAll('#history li').length === 1")
    assert {"seed": 77, "num_steps": 31, "ensd": 31337}.items() <= server.works[0]["settings"].items()


def test_the_info_of_a_picture_is_shown_and_used(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    page.click("#mode-info")
    file = {"name": "boat.png", "mimeType": "image/png", "buffer": picture(1, text="a boat\nSteps: 9, Seed: 3")}
    page.set_input_files("#info-drop input", file)
    page.wait_for_selector("#info-found .primary")
    assert "boat.png, written by A1111 or Forge" in page.inner_text("#info-found")
    page.click("#info-found .primary")
    assert page.get_attribute("#mode-text", "aria-selected") == "true"
    assert page.input_value("#field-num_steps") == "9"


def test_a_grid_has_a_picture_for_every_combination(open_page: "Open", server: "FakeServer") -> None:
    server.seconds = 0.05
    page = open_page()
    page.fill("#prompt", "a cat")
    page.click("summary:has-text('X/Y/Z')")
    axes, values = page.locator(".axis select"), page.locator(".axis input")
    axes.nth(0).select_option("num_steps")
    values.nth(0).fill("10-30(+10)")
    axes.nth(1).select_option("sampler")
    values.nth(1).fill("ddim, euler")
    axes.nth(2).select_option("prompt")
    values.nth(2).fill("cat, dog")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    acts.until(page, "document.querySelectorAll('.grids td img').length === 12")
    made = {(w["settings"]["num_steps"], w["settings"]["sampler"], w["settings"]["prompt"]) for w in server.works}
    samplers, prompts = ("ddim", "euler"), ("a cat", "a dog")
    assert made == {(n, sampler, prompt) for n in (10, 20, 30) for sampler in samplers for prompt in prompts}
    assert len({work["settings"]["seed"] for work in server.works}) == 1
    assert page.locator(".grids table").nth(1).locator("caption").inner_text() == "Prompt: dog"
    assert page.locator(".grids th[scope=col]").nth(0).inner_text() == "Steps: 10"
    with page.expect_download() as download:
        page.click(".grids button")
    assert download.value.suggested_filename == "sdjax-grid.png"
    values.nth(0).fill("ten")
    page.click("#generate")
    page.wait_for_selector(".message.error:has-text('ten is no number')")


def test_values_of_axes_and_weights_are_read_as_a1111_writes_them(open_page: "Open") -> None:
    page = open_page()
    numbers = "async (text) => (await import('/page/grid.js')).numbersOf(text)"
    split = "async (text) => (await import('/page/grid.js')).split(text)"
    for text, values in {
        "1, 2.5,3": [1, 2.5, 3],
        "1-5": [1, 2, 3, 4, 5],
        "10-30(+10)": [10, 20, 30],
        "5-1 (-2)": [5, 3, 1],
        "0-1[5]": [0, 0.25, 0.5, 0.75, 1],
        "0.1-0.3(+0.1)": [0.1, 0.2, 0.3],
        "-3": [-3],
        "7-7": [7],
    }.items():
        assert page.evaluate(numbers, text) == values, text
    for text, texts in {
        "a, b ,c": ["a", "b", "c"],
        '"a, b", c': ["a, b", "c"],
        '"say ""hi""",x': ['say "hi"', "x"],
    }.items():
        assert page.evaluate(split, text) == texts, text
    for wrong in "a", "1-x", "1-9(+0)", "1-1000000", "1e999":
        with pytest.raises(Exception, match="RangeError"):
            page.evaluate(numbers, wrong)
    weighted = """async ([text, start, end, step]) =>
        (({ weighted }) => weighted(text, start, end, step)?.text)(await import('/page/prompts.js'))"""
    for given, made in (
        (["a cat", 2, 5, 0.1], "a (cat:1.1)"),
        (["a (cat:1.1)", 4, 4, -0.1], "a cat"),
        (["a big cat", 2, 9, 0.1], "a (big cat:1.1)"),
        (["a (big cat:1.5), dog", 5, 5, 0.1], "a (big cat:1.6), dog"),
        (["(cat:0.1)", 2, 2, -0.1], "(cat:0)"),
        (["cat, dog", 5, 8, 0.1], "cat, (dog:1.1)"),
        (["", 0, 0, 0.1], None),
    ):
        assert page.evaluate(weighted, given) == made, given


def test_ctrl_up_and_down_change_the_weight_of_a_word(open_page: "Open") -> None:
    page = open_page()
    page.fill("#prompt", "a red boat")
    page.evaluate("document.querySelector('#prompt').setSelectionRange(4, 4)")
    page.press("#prompt", "Control+ArrowUp")
    assert page.input_value("#prompt") == "a (red:1.1) boat"
    page.press("#prompt", "Control+ArrowUp")
    assert page.input_value("#prompt") == "a (red:1.2) boat"
    assert page.inner_text("#status") == "red: weight 1.2"
    for _ in range(3):
        page.press("#prompt", "Control+ArrowDown")
    assert page.input_value("#prompt") == "a (red:0.9) boat"
    page.press("#prompt", "Control+ArrowUp")
    assert page.input_value("#prompt") == "a red boat"
    acts.until(page, "document.querySelector('#prompt-tokens').textContent === '3 / 75'")


def test_the_library_chooses_models_and_puts_files_into_the_prompt(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    page.click("#open-library")
    page.focus("#kind-checkpoint")
    page.keyboard.press("ArrowRight")  # one stop of the Tab key: arrows choose the kind
    assert page.get_attribute("#kind-lora", "aria-selected") == "true"
    page.click("button.card:has-text('ink')")
    page.click("#kind-embedding")
    page.click("button.card:has-text('moody')")
    assert page.input_value("#prompt") == "<lora:ink:1>, moody"
    page.click("#kind-checkpoint")
    page.click("button.card:has-text('film')")
    page.wait_for_selector("#library", state="hidden")
    assert page.inner_text("#model-name") == "photo/film-v2"
    page.fill(".chip input", "0.5")
    assert page.input_value("#prompt") == "<lora:ink:0.5>, moody"
    page.click("#generate")
    acts.until(page, "document.querySelectorAll('#history li').length === 1")
    assert server.works[0]["model"] == "photo/film-v2.safetensors"


def test_control_pictures_have_a_preview_and_go_with_the_job(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    page.click("summary:has-text('Control pictures')")
    page.click("button:has-text('Add a control picture')")
    file = {"name": "edges.png", "mimeType": "image/png", "buffer": picture(3)}
    page.set_input_files(".guide input[type=file]", file)
    page.select_option(".guide label:has-text('Preprocessor') select", "canny")
    page.wait_for_selector(".hint-preview")
    page.fill(".guide .thirds input >> nth=0", "0.7")
    acts.generate(page)
    (control,) = server.works[0]["settings"]["controls"]
    expected = {"network": "canny.safetensors", "preprocess": "canny", "weight": 0.7, "start": 0, "end": 1}
    assert expected.items() <= control.items()
    assert acts.sent(server, control["hint"]).shape == (256, 256, 3)


def test_styles_of_the_server_go_by_name_and_own_ones_into_the_prompt(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    page.click("summary:has-text('Styles')")
    page.fill("#prompt", "oil painting of {prompt}, thick paint")
    page.fill("#section-styles input", "oil")
    page.press("#section-styles input", "Enter")
    page.click(".chip-button:has-text('oil')")
    page.click(".chip-button:text-is('film')")
    acts.generate(page, "a boat")
    assert server.works[0]["settings"]["styles"] == ["film"]
    assert server.works[0]["settings"]["prompt"] == "oil painting of a boat, thick paint"


def test_hostile_texts_stay_texts(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    acts.generate(page, HOSTILE)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert HOSTILE in page.inner_text("#caption")
    page.click("#open-library")
    page.wait_for_selector("button.card")
    page.keyboard.press("Escape")
    page.click("#mode-info")
    file = {"name": HOSTILE, "mimeType": "image/png", "buffer": picture(1, text=f"{HOSTILE}\nSteps: 9, Seed: 3")}
    page.set_input_files("#info-drop input", file)
    page.wait_for_selector("#info-found .facts")
    assert HOSTILE in page.inner_text("#info-found")
    page.click("#mode-text")
    page.fill("#prompt", "refuse")
    page.click("#generate")
    page.wait_for_selector(".message.error")
    assert HOSTILE in page.inner_text(".message.error")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1
    assert page.locator("img[src='x']").count() == 0


def test_both_languages_fill_every_text(open_page: "Open") -> None:
    page = open_page()
    acts.generate(page)
    page.click("#language")
    acts.until(page, "document.documentElement.lang === 'zh-Hans'")
    keys = page.evaluate(
        "[...document.querySelectorAll('[data-text]')].map((one) => [one.dataset.text, one.textContent])"
    )
    assert len(keys) > 100
    assert [key for key, text in keys if text in (key, "")] == []
    assert page.inner_text("#generate-text") == "生成"
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#mode-text") == "文生图"


def test_the_chosen_appearance_is_kept(open_page: "Open") -> None:
    page = open_page(theme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    assert page.evaluate(colour) != dark
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.evaluate(colour) != dark


def test_a_seed_of_64_bits_keeps_its_digits(open_page: "Open", server: "FakeServer") -> None:
    page, seed = open_page(), str(2**64 - 1)
    page.fill("#field-seed", seed)
    acts.generate(page)
    assert server.works[0]["settings"]["seed"] == seed
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.input_value("#field-seed") == seed
    assert f"Seed {seed} " in page.inner_text("#caption")


MODES = {
    "depth": ("depth2img", {"strength": 0.75}, {"width", "image_scale", "detector"}),
    "edit": ("edit", {"image_scale": 1.5}, {"strength", "noise_level"}),
    "variations": ("variations", {"noise_level": 0}, {"strength", "image_scale"}),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_that_begin_with_a_picture_send_what_their_tasks_take(
    open_page: "Open", server: "FakeServer", mode: str
) -> None:
    page = open_page()
    acts.open_picture(page, mode)
    acts.generate(page, "in winter")
    (work,) = server.works
    task, settings, without = MODES[mode]
    assert (work["task"], work["inputs"]) == (task, {"image": "upload:up0"})
    assert settings.items() <= work["settings"].items()
    assert not without & work["settings"].keys()


def test_details_need_a_mask_or_a_detector(open_page: "Open", server: "FakeServer") -> None:
    page = open_page()
    acts.open_picture(page, "detail")
    page.press("#prompt", "Control+Enter")
    acts.until(page, "document.querySelector('#messages').textContent.includes('detector')")
    acts.draw(page, (0.4, 0.4), (0.5, 0.5))
    acts.generate(page, "a face")
    (work,) = server.works
    assert work["task"] == "detail"
    assert work["inputs"].keys() == {"image", "mask"}
    assert {"grow": 4, "feather": 4, "padding": 32}.items() <= work["settings"].items()
    assert "detector" not in work["settings"]
