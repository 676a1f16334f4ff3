"""What the devices of a compiled program send each other, read from the program's text (HLO)."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")
_LINE = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_COPY = re.compile(r"channel_id=(\d+).*chain_id=\"(\d+)\"")
_NAMED = re.compile(r"replica_groups=\w+\[([^]]*)\] *\{([^}]*)\}")  # mesh['a'=2,'b'=4] {'b'}


class Collective(NamedTuple):
    """One exchange: its kind, the number of devices that take part together, and the bytes that each device gets."""

    kind: str
    devices: int
    received: int


def collectives(text: str, devices: int) -> list[Collective]:
    """Returns the exchanges in a program's text, `compiled.as_text()`, as often as they are written there.

    What is inside a loop counts once. `devices` is the number of devices of an exchange that names no groups. The bytes
    are those that a device gets from others at least: an all-reduce is counted as a ring, 2 (n - 1) / n of the array.
    """
    found, seen = [], set()
    for line in text.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        kind, n = match["kind"], _group(match["rest"], devices)
        if copy := _COPY.search(match["rest"]):
            if (kind, *copy.groups()) in seen:  # a TPU's program repeats an exchange where it starts and where it ends
                continue
            seen.add((kind, *copy.groups()))
        size = sum(_bytes(match["type"]))
        if match["start"] and kind == "all-gather":  # the type also holds the parts that are gathered
            size = size * n // (n + 1)
        elif match["start"] and kind == "collective-permute":  # the type holds input, output and two numbers
            size = sum(sorted(_bytes(match["type"]))[2:]) // 2
        share = {"collective-permute": 1.0, "collective-broadcast": 1.0, "reduce-scatter": float(n - 1)}
        received = share.get(kind, (n - 1) / n * (2 if kind == "all-reduce" else 1)) * size
        found.append(Collective(kind, n, round(received)))
    return found


def totals(found: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """Returns (how many, bytes that a device gets) of each kind that was found."""
    out: dict[str, tuple[int, int]] = {}
    for one in found:
        count, received = out.get(one.kind, (0, 0))
        out[one.kind] = count + 1, received + one.received
    return out


def _group(rest: str, devices: int) -> int:
    if match := _LISTED.search(rest):
        return match[1].count(",") + 1
    if match := _COUNTED.search(rest):
        return int(match[1])
    if match := _NAMED.search(rest):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sides[name]) for name in re.findall(r"'(\w+)'", match[2]))
    return devices


def _bytes(text: str) -> list[int]:
    """Returns the bytes of the arrays in a type."""
    return [
        math.prod(int(side) for side in sides.split(",") if side) * (1 if kind == "pred" else -(-int(bits) // 8))
        for kind, bits, sides in _ARRAY.findall(text)
    ]
