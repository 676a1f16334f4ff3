"""The manual names what there is."""

import argparse
import importlib
import inspect
import re
from pathlib import Path

import pytest

import sdjax
from sdjax import samplers
from sdjax.scripts import main
from sdjax.scripts.shared import options

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "text-to-image.md").read_text(encoding="utf-8")


def actions(command: str) -> list[argparse.Action]:
    parser = importlib.import_module(f"sdjax.scripts.{main.COMMANDS[command][0]}").make_parser()
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_flag_is_described_by_its_help(command: str) -> None:
    assert [action.dest for action in actions(command) if not (action.help or action.choices)] == []


def test_the_manual_shows_the_help_of_every_command() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^## sdjax ([\w-]+)\n\n```\{command-help\} \1\n```$", page, re.MULTILINE) == list(main.COMMANDS)


@pytest.mark.parametrize(
    ("page", "command"),
    [("text-to-image.md", "txt2img"), ("image-to-image.md", "img2img"), ("inpainting.md", "inpaint"),
     ("detail.md", "detail"), ("relighting.md", "relight"),
     ("depth-to-image.md", "depth2img"), ("variations.md", "variations"), ("upscaling.md", "upscale"),
     ("animation.md", "animate"), ("training.md", "train")],
)  # fmt: skip
def test_every_flag_in_a_table_exists(page: str, command: str) -> None:
    known = {flag for name in (command, "txt2img") for action in actions(name) for flag in action.option_strings}
    cells = re.findall(r"^\| ([^|]*) \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert {flag for cell in cells for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", cell)} - known == set()


@pytest.mark.parametrize(
    ("page", "tasks"),
    [("image-to-image.md", [sdjax.image_to_image, sdjax.edit, sdjax.two_pass]), ("relighting.md", [sdjax.relight]),
     ("inpainting.md", [sdjax.inpaint, sdjax.outpaint]), ("detail.md", [sdjax.detail]),
     ("depth-to-image.md", [sdjax.depth_to_image]), ("upscaling.md", [sdjax.upscale]),
     ("animation.md", [sdjax.animate])],
)  # fmt: skip
def test_every_argument_of_other_tasks_is_described(page: str, tasks: list) -> None:
    pages = page, "image-to-image.md", "text-to-image.md"  # a page says what differs from these two
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in pages)
    for task in tasks:
        assert [name for name in list(inspect.signature(task).parameters)[1:] if f"`{name}" not in text] == []


def test_every_sampler_and_spacing_is_described() -> None:
    text = TEXT + (DOCS / "samplers.md").read_text(encoding="utf-8")
    for names in samplers.SAMPLERS, samplers.SCHEDULES, options.DTYPES:
        assert [name for name in names if f"`{name}`" not in text] == []


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
