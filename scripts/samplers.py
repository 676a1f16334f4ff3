"""`sdjax samplers`: lists samplers and schedules by their names in every tool."""

import argparse
import shutil
import sys
import textwrap
from typing import Any

from sdjax import names
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options

IF_OUT_OF_MEMORY = "nothing; it needs little"

DESCRIPTION = """\
Lists the samplers and the schedules, with their names in other tools. --sampler
and --schedule take any of these names."""

EPILOG = f"""\
With NAME, in any tool's spelling, it shows one sampler or schedule with its
options, which --sampler-option and --schedule-option set.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax samplers`."""
    parser = options.make_command_parser("samplers", DESCRIPTION, EPILOG)
    parser.add_argument("name", nargs="?", metavar="NAME", help="show only this sampler or schedule, and its options")
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints the tables. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    if args.name is None:
        print("samplers (network calls for N steps; order of convergence)\n")
        for name, method in names.SAMPLERS.items():
            print(entry(name, method.names, counted(method)))
        print("\nschedules\n")
        for name, known in names.SCHEDULES.items():
            print(entry(name, known))
        return
    print("\n".join(one(args.name)))


def counted(method: names.Method) -> str:
    """Returns the words for a sampler's calls and order."""
    calls = f"{method.calls} calls" if method.calls[0] in "N23" else f"calls: {method.calls}"
    return f"{calls}, adds noise" if method.order == "noise" else f"{calls}, order {method.order}"


def entry(name: str, known: names.Names, more: str = "") -> str:
    """Returns the lines about one sampler or schedule."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    tools = [f"{names.TITLES[tool]}: {', '.join(known.of(tool))}" for tool in names.TOOLS if known.of(tool)]
    text = "; ".join([*([more] if more else []), *tools]) or "only here"
    return textwrap.fill(
        f"{name:28}{text}", width, subsequent_indent=" " * 28, break_on_hyphens=False, break_long_words=False
    )


def one(text: str) -> list[str]:
    """Returns the lines about the sampler or the schedule that a name means. Raises ValueError if there is none."""
    from sdjax.samplers import SAMPLERS, SCHEDULES

    lines: list[str] = []
    errors = []
    try:
        found = names.find_sampler(text, more=SAMPLERS)
        known = names.SAMPLERS.get(found.sampler)
        more = counted(known) if known else ""
        lines += [f"sampler {found.sampler}" + (f" with the schedule {found.schedule}" if found.schedule else "")]
        lines += [entry("", known.names if known else names.Names(), more).strip()]
        lines += described(SAMPLERS[found.sampler]())
    except ValueError as error:
        errors.append(str(error))
    try:
        name = names.find_schedule(text, more=SCHEDULES)
        lines += [
            *([""] if lines else []),
            f"schedule {name}",
            entry("", names.SCHEDULES.get(name, names.Names())).strip(),
        ]
        lines += described(SCHEDULES[name]())
    except ValueError as error:
        errors.append(str(error))
    if not lines:
        raise ValueError(next((error for error in errors if "nearest" in error), errors[0]))
    return lines


def described(made: Any) -> list[str]:
    """Returns the docstring of a sampler or schedule, and its options with their defaults."""
    import dataclasses
    import inspect

    doc = inspect.getdoc(type(made)) or ""
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    shown = [f"  {field.name} = {getattr(made, field.name)!r}" for field in fields]
    return ["", doc, "", "options and defaults:", *(shown or ["  none"])]


if __name__ == "__main__":
    sys.exit(main(["samplers", *sys.argv[1:]]))
