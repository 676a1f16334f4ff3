"""Writes the tables of names in docs/samplers.md from the table in the code (`sdjax.names`).

    python docs/make_sampler_table.py

Run it again when a sampler or a schedule gets a name. A test compares.
"""

import argparse
from pathlib import Path

from sdjax import names

PAGE = Path(__file__).parent / "samplers.md"
START, END = "<!-- names of {} -->\n", "<!-- end -->\n"


def cell(known: names.Names, tool: str) -> str:
    """Returns one cell: the names in a tool."""
    return ", ".join(f"`{name}`" for name in known.of(tool))


def tables() -> dict[str, str]:
    """Returns the two tables as Markdown."""
    titles = [names.TITLES[tool] for tool in names.TOOLS]
    samplers = [["name", "calls for N steps", "order", *titles], ["---"] * (len(titles) + 3)]
    for name, method in names.SAMPLERS.items():
        order = "adds noise" if method.order == "noise" else method.order
        samplers.append([f"`{name}`", method.calls, order, *(cell(method.names, tool) for tool in names.TOOLS)])
    schedules = [["name", *titles], ["---"] * (len(titles) + 1)]
    for name, known in names.SCHEDULES.items():
        schedules.append([f"`{name}`", *(cell(known, tool) for tool in names.TOOLS)])
    return {"samplers": joined(samplers), "schedules": joined(schedules)}


def joined(rows: list[list[str]]) -> str:
    """Returns the rows as lines of a Markdown table."""
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def replaced(text: str) -> str:
    """Returns the page with the tables between their marks replaced."""
    for kind, table in tables().items():
        before, mark, rest = text.partition(START.format(kind))
        _, end, after = rest.partition(END)
        text = before + mark + table + end + after
    return text


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
