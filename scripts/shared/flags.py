"""Flags that are refused if they are given twice or have no effect. Imports nothing heavy.

A flag that only sometimes has an effect declares `needs`: add("--padding", needs=together("--only-masked")). Only
whether the flag is given counts, not its value: a flag set to its default is refused too.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sdjax.storage import addresses

PATHS = ("PATH", "FILE", "DIR", "FOLDER", "IN", "OUT", "FILE.py", "FILE.json")  # metavars of paths
ADDRESSES = {  # flags and arguments that also take gs://...; their readers refuse other addresses
    "ckpt", "data", "depth_model", "folder", "noise_stats", "path", "prior", "records", "safety_checker", "source",
    "target", "tars", "vae", "vision", "weak_ckpt", "workdir",
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
    """Makes a parser record which flags are given and accept `needs`. Call it before flags are added."""
    for name, action in (None, Store), ("store", Store), ("store_true", Switch), ("append", Append):
        parser.register("action", name, action)
    parser.set_defaults(given={})


class Store(argparse.Action):
    """Stores one value. Refuses a second one, which would replace the first."""

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
    """A switch: on if it is given, once or several times."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, const=True, default=False, **kwargs)

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        self.keep(namespace, True, option_string)


class Append(Store):
    """Stores every value in a list."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        self.check_place(values)
        self.keep(namespace, [*(getattr(namespace, self.dest) or []), values], option_string)
