"""Writes the table of nodes in docs/comfyui.md from the code (`sdjax.serve.comfy.nodes`).

    python docs/make_node_table.py

Run it again when a node was added or changed. A test compares.
"""

import argparse
from pathlib import Path

from sdjax.serve.comfy.nodes import NODES

PAGE = Path(__file__).parent / "comfyui.md"
START, END = "<!-- nodes -->\n", "<!-- end -->\n"


def table() -> str:
    """Returns the table as Markdown, by category."""
    rows = ["| node | what it does |", "|---|---|"]
    for one in sorted(NODES.values(), key=lambda one: (one.category.lower(), one.name.lower())):
        rows.append(f"| `{one.name}` | {one.purpose} |")
    return "".join(row + "\n" for row in rows)


def replaced(text: str) -> str:
    """Returns the page with the table between its marks replaced."""
    before, mark, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return before + mark + table() + end + after


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
