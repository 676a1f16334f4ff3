"""A parser with short errors of two lines: the problem, with the nearest flag or choice, and where to read more.

Imports nothing heavy: every --help reads it.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from sdjax.spelling import nearest

WANTED = {  # the values that a type accepts, by its name
    **dict.fromkeys(("int", "seed", "small_seed", "noise_level", "at_least_four"), "a whole number"),
    **dict.fromkeys(("float", "finite"), "a number"),
    "positive": "a whole number from 1 up",
    "natural": "a whole number from 0 up",
    **dict.fromkeys(("strength", "share"), "a number from 0 to 1"),
    "colour": "three levels from 0 to 255, such as 255,255,255",
    "sides": "left,top,right,bottom in pixels, such as 64,0,64,0",
}


class Parser(argparse.ArgumentParser):
    """Reads flags. A value may begin with a dash, such as --negative-prompt -blurry, unless it is itself a flag."""

    _given: Sequence[str] = ()
    other_tools: Mapping[str, str] = {}  # of flags that other tools have, the end of the sentence about each

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Returns the parsed arguments; exits with status 2 if they are wrong."""
        self._given = self._joined(sys.argv[1:] if args is None else list(args))
        known, rest = self.parse_known_args(self._given, namespace)
        if rest:
            self.error(self._about_unknown(rest))
        return known

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        if "arguments are required" in message:  # the cause may be a misspelled flag
            flags = (text.partition("=")[0] for text in self._given if re.match("--?[A-Za-z]", text))
            unknown = [flag for flag in flags if flag not in self._flags]
            message = self._about_unknown(unknown) if unknown else message
        self.exit(2, f"{self.prog}: {message}\n(`{self.prog} --help` shows what it takes)\n")

    def _joined(self, args: list[str]) -> list[str]:
        """Returns the arguments. A value that begins with a dash is joined to its flag: argparse would misread it."""
        out: list[str] = []
        i = 0
        while i < len(args):
            if args[i] == "--":
                return out + args[i:]
            action = self._option_string_actions.get(args[i])
            takes_one = action is not None and action.nargs is None
            if takes_one and i + 1 < len(args) and self._is_dashed_value(args[i + 1]):
                out.append(f"{args[i]}={args[i + 1]}" if args[i].startswith("--") else args[i] + args[i + 1])
                i += 2
            else:
                out.append(args[i])
                i += 1
        return out

    def _is_dashed_value(self, text: str) -> bool:
        flag = text.partition("=")[0]
        return text.startswith("-") and not text.startswith("--") and text != "-" and flag not in self._flags

    @property
    def _flags(self) -> dict[str, argparse.Action]:
        return self._option_string_actions

    def _about_unknown(self, rest: list[str]) -> str:
        """Returns the sentence about unknown arguments."""
        first = rest[0]
        flag = first.partition("=")[0]
        if not first.startswith("-"):
            quoted = " (put a text of several words in quotation marks)" if len(rest) > 1 else ""
            return f"unrecognized arguments: {' '.join(rest[:5])}{quoted}"
        if flag in self.other_tools:
            return f"unrecognized arguments: {flag}; {self.other_tools[flag]}"
        near = nearest_flag(flag, self._flags)
        meant = f"; did you mean {near}?" if near else ""
        return f"unrecognized arguments: {flag}{meant}"

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if arg_strings == ["--"] and action.option_strings and action.nargs is None:
            value = self._get_value(action, "--")  # of --prompt=--; before 3.13 argparse takes it for the flags' end
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        kind = action.type
        if kind is None or not callable(kind):
            return super()._get_value(action, arg_string)
        try:
            return kind(arg_string)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(action, str(error)) from None
        except (TypeError, ValueError, OverflowError):
            name = getattr(kind, "__name__", "")
            wanted = WANTED.get(name, f"a {name.replace('_', ' ')}")
            comma = "number" in wanted and "whole" not in wanted and "," in arg_string
            hint = f" (with a point: {arg_string.replace(',', '.')})" if comma else ""
            raise argparse.ArgumentError(
                action, f"invalid value: expected {wanted}; got {arg_string!r}{hint}"
            ) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = nearest(str(value), choices)
        meant = f"; did you mean {near}?" if near else ""
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{meant} (choose from {', '.join(choices)})")

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError as error:
            flag = (action.option_strings or [""])[-1]
            if action.nargs is None and flag.startswith("--"):
                error.message = f"{error.message}; write a value that looks like a flag as {flag}=VALUE"
            raise


def nearest_flag(flag: str, known: Iterable[str]) -> str | None:
    """Returns the flag that is most similar to this one, or our name for another tool's flag."""
    known = list(known)
    ours = next((ours for ours in ELSEWHERE.get(_plain(flag), ()) if ours in known), None)
    return ours or nearest(flag, [one for one in known if one.startswith("--")])


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").strip("-")


# Our flags, by their names in diffusers, AUTOMATIC1111 and this package's Python
ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("num-inference-steps", "num-steps", "sampling-steps"), ("--steps",)),
    **dict.fromkeys(("cfg", "cfg-scale", "guidance-scale"), ("--scale",)),
    **dict.fromkeys(("height",), ("--H",)),
    **dict.fromkeys(("width",), ("--W",)),
    **dict.fromkeys(("num-images", "num-images-per-prompt", "batch-size", "batch"), ("--n_samples", "--batch-size")),
    **dict.fromkeys(("model", "checkpoint", "model-path", "path"), ("--ckpt",)),
    **dict.fromkeys(("image", "init-image", "input"), ("--init-img",)),
    **dict.fromkeys(("mask-image",), ("--mask",)),
    **dict.fromkeys(("denoising-strength", "denoise"), ("--strength",)),
    **dict.fromkeys(("scheduler", "sampler-name"), ("--sampler",)),
    **dict.fromkeys(("eta",), ("--ddim_eta",)),
    **dict.fromkeys(("output", "out", "output-dir"), ("--outdir", "--out")),
    **dict.fromkeys(("learning-rate",), ("--lr",)),
}
