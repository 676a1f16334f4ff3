"""The manual names what there is."""

import inspect
import re
from pathlib import Path

import pytest

import sdjax
from sdjax import samplers
from sdjax.scripts import animate, depth2img, img2img, inpaint, main, txt2img, upscale
from sdjax.scripts.shared import options

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "text-to-image.md").read_text(encoding="utf-8")


def test_every_flag_is_described() -> None:
    flags = {flag for action in txt2img.make_parser()._actions for flag in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", TEXT))
    assert flags - {"-h"} == named


def flags_of(command) -> set[str]:
    return {flag for action in command.make_parser()._actions for flag in action.option_strings} - {"-h", "--help"}


@pytest.mark.parametrize(
    ("page", "command"),
    [("image-to-image.md", img2img), ("inpainting.md", inpaint), ("depth-to-image.md", depth2img),
     ("upscaling.md", upscale), ("animation.md", animate)],
)  # fmt: skip
def test_every_flag_of_other_commands_is_described(page: str, command) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", text))
    assert flags_of(command) - named == set()
    assert named - flags_of(command) - {"--hires", "--hires-upscale", "--hires-strength"} == set()


@pytest.mark.parametrize(
    ("page", "tasks"),
    [("image-to-image.md", [sdjax.image_to_image, sdjax.two_pass]),
     ("inpainting.md", [sdjax.inpaint, sdjax.outpaint]),
     ("depth-to-image.md", [sdjax.depth_to_image]), ("upscaling.md", [sdjax.upscale]),
     ("animation.md", [sdjax.animate])],
)  # fmt: skip
def test_every_argument_of_other_tasks_is_described(page: str, tasks: list) -> None:
    text = (DOCS / page).read_text(encoding="utf-8") + TEXT
    for task in tasks:
        assert [name for name in list(inspect.signature(task).parameters)[1:] if f"`{name}" not in text] == []


def test_every_sampler_and_spacing_is_described() -> None:
    for names in samplers.SAMPLERS, samplers.SPACINGS, options.DTYPES:
        assert [name for name in names if f"`{name}`" not in TEXT] == []


def test_every_argument_is_described() -> None:
    arguments = inspect.signature(sdjax.text_to_image).parameters
    assert [name for name in list(arguments)[1:] if f"`{name}" not in TEXT] == []


def test_every_exit_status_is_described() -> None:
    described = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    assert described == re.findall(r"^  (\d+) ", main.EXIT_STATUS, re.MULTILINE)


@pytest.mark.parametrize(("name", "calls"), [(n.strip("` "), c.strip()) for ns, c in re.findall(
    r"^\| ((?:`\w+`(?:, )?)+) \| (N|N \+ 1|2N - 1) \|", TEXT, re.MULTILINE) for n in ns.split(",")])  # fmt: skip
def test_calls_of_the_network_are_as_many_as_stated(name: str, calls: str) -> None:
    from sdjax.config import ScheduleConfig
    from sdjax.schedule import NoiseSchedule

    rows = samplers.SAMPLERS[name]().steps(NoiseSchedule(ScheduleConfig()), 20)
    assert int(rows.active.sum()) == {"N": 20, "N + 1": 21, "2N - 1": 39}[calls]
