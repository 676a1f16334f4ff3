"""Flags that know what makes them matter: given twice, or without effect, they are refused. Imports nothing heavy.

A flag that is not always obeyed declares `needs`: add("--padding", needs=together("--only-masked")). Its value
does not count, only whether it was given: a flag at its default is refused too.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sdjax.storage import addresses

PATHS = ("PATH", "FILE", "DIR", "FOLDER", "IN", "OUT", "FILE.py", "FILE.json")  # what help calls a path
ADDRESSES = {  # flags and arguments whose path may be gs://... too; what reads them refuses every other address
    "ckpt", "data", "depth_model", "folder", "noise_stats", "path", "prior", "records", "safety_checker", "source",
    "target", "tars", "vae", "vision", "workdir",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Needs:
    """When a flag has an effect; `otherwise` continues "FLAG has no effect" and says what to do."""

    met: Callable[[argparse.Namespace], bool]
    otherwise: str


def together(*others: str) -> Needs:
    """Returns the condition of a flag that needs another one, any of `others`."""
    names = " or ".join(others)
    return Needs(
        lambda args: any(is_set(args, other) for other in others), f"without {names}: add it, or leave this flag out"
    )


def alone(*others: str, why: str = "") -> Needs:
    """Returns the condition of a flag that cannot be used with any of `others`."""
    names = " or ".join(others)
    return Needs(
        lambda args: not any(is_set(args, other) for other in others), f"with {names}{why}: leave one of them out"
    )


def is_set(args: argparse.Namespace, flag: str) -> bool:
    """Returns whether a flag is given, or a switch is on."""
    return getattr(args, flag.lstrip("-").replace("-", "_")) not in (None, False)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError, saying what to do, for a given flag that has no effect with the others."""
    for flag, conditions in args.given.values():
        for needs in conditions:
            if not needs.met(args):
                raise ValueError(f"{flag} has no effect {needs.otherwise}")


def prepare(parser: argparse.ArgumentParser) -> None:
    """Makes a parser note which flags are given, and know `needs`. To be called before flags are added."""
    for name, action in (None, Store), ("store", Store), ("store_true", Switch), ("append", Append):
        parser.register("action", name, action)
    parser.set_defaults(given={})


class Store(argparse.Action):
    """Keeps one value. Refuses a second one, which would drop the first."""

    def __init__(self, *args: Any, needs: Needs | Sequence[Needs] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = (needs,) if isinstance(needs, Needs) else tuple(needs)

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        self.check_place(values)
        if self.dest in namespace.given:
            raise argparse.ArgumentError(self, "it is given twice but takes one value: give it once")
        self.keep(namespace, values, option_string)

    def check_place(self, values: Any) -> None:
        """Refuses an address where a path of this computer is needed, before anything is read or made."""
        if self.metavar not in PATHS or self.dest in ADDRESSES:
            return
        for value in values if isinstance(values, list) else [values]:
            try:
                addresses.local(value)
            except addresses.AddressError as error:
                raise argparse.ArgumentError(self, str(error)) from None

    def keep(self, namespace: argparse.Namespace, value: Any, flag: str | None) -> None:
        """Sets the value, and notes that it was given."""
        setattr(namespace, self.dest, value)
        if flag is not None:
            namespace.given = {**namespace.given, self.dest: (flag, self.needs)}


class Switch(Store):
    """Is on if it is given, once or several times."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, const=True, default=False, **kwargs)

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        self.keep(namespace, True, option_string)


class Append(Store):
    """Keeps every value."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        self.check_place(values)
        self.keep(namespace, [*(getattr(namespace, self.dest) or []), values], option_string)
