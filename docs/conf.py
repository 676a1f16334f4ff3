"""How Sphinx builds the manual: `make docs`. Needs no network."""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for a Sphinx in another environment; an installed sdjax is the same code

from docutils import nodes  # noqa: E402
from sphinx.util.docutils import SphinxDirective  # noqa: E402
from sphinx.util.typing import stringify_annotation  # noqa: E402

import sdjax  # noqa: E402
from sdjax import typing  # noqa: E402
from sdjax.scripts.main import COMMANDS  # noqa: E402

project = "sdjax"
author = "the sdjax authors"
project_copyright = "the sdjax authors"
version = release = sdjax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"sdjax {version}"
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# The notebooks run while the manual is built, and an error in a cell stops it
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"

default_role = "code"  # docstrings write code between single backticks
autodoc_member_order = "bysource"
autodoc_preserve_defaults = False
autodoc_inherit_docstrings = False  # Flax's own methods are in Flax's manual
maximum_signature_line_length = 100
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
suppress_warnings = ["mystnb.unknown_mime_type"]

# Array types as autodoc writes them, by the names they have in the source
ALIASES = {
    stringify_annotation(getattr(typing, name), "smart"): name
    for name in ("Image", "Pixels", "Latent", "Moments", "Context", "TokenIds", "Timestep", "Key")
}

# Modules whose whole public surface is in the manual
PUBLIC = ("sdjax", "sdjax.convert", "sdjax.nn", "sdjax.samplers")


def translate(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns a docstring's plain text into reStructuredText: indented paragraphs are code, and a star is a star."""
    marked: list[str] = []
    code = listed = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not code and (not marked or not marked[-1].strip()):
            marked += ["::", ""]
            code = True
        elif line.strip() and not indented:
            listed = line.startswith("- ") or (listed and line.startswith("  "))
            line, code = line if listed else line.lstrip(), False  # a formula's second line
        marked.append(line if code else "".join(map(_escape, re.split(r"(`[^`]*`)", line))))
    lines[:] = marked


def _escape(text: str) -> str:
    return text if text.startswith("`") else re.sub(r"[*|]|_(?=\W|$)", r"\\\g<0>", text)


def tidy_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Shortens a signature: `sdjax.typing`'s names for array types, and defaults and fields nobody writes left out."""
    return _tidy(signature), _tidy(returns)


def _tidy(text: str | None) -> str | None:
    if text is None:
        return None
    text = re.sub(r", parent: [^<]*<flax[^<>]*>, name: .*(?=\))", "", text)  # of every Flax module
    text = re.sub(r", _\w+: .*(?=\))", "", text)  # fields that are not for users, which come last
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text.replace("<factory>", "..."))
    text = re.sub(r"= (\w+Config)\((?:[^()]|\([^()]*\))+\)", r"= \1()", text)
    for alias, name in ALIASES.items():
        text = text.replace(alias, name)
    return text


def leave_out(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, whose docstrings Python itself wrote."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def check_public_names(app: Any, env: Any) -> None:
    """Warns of each public function and class that the manual leaves out."""
    from sphinx.util import logging

    described = env.get_domain("py").objects
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            if callable(getattr(importlib.import_module(module), name)) and f"{module}.{name}" not in described:
                logging.getLogger(__name__).warning("the manual does not describe %s.%s", module, name)


class CommandHelp(SphinxDirective):
    """Shows what `sdjax COMMAND --help` prints, from the parser of the command named in the argument."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the help text as one literal block, 100 characters wide."""
        parser = importlib.import_module(f"sdjax.scripts.{COMMANDS[self.arguments[0]][0]}").make_parser()
        os.environ["COLUMNS"] = "100"  # argparse takes the width from here
        text = parser.format_help()
        block = nodes.literal_block(text, text)
        block["language"] = "none"
        return [block]


def setup(app: Any) -> None:
    """Connects the functions above."""
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", translate, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("env-check-consistency", check_public_names)
