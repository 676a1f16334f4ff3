"""What the devices of a compiled program send each other, read from the program's text (HLO)."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")
_OPERATION = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_NAMED = re.compile(r"replica_groups=\w+\[([^]]*)\] *\{([^}]*)\}")  # mesh['a'=2,'b'=4] {'b'}
_COPY = re.compile(r"channel_id=(\d+).*chain_id=\"(\d+)\"")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALL = re.compile(r"(?:body|to_apply|calls|condition|branch_computations)=(%?[\w.\-]+|\{[^}]*\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """An exchange: its kind, how many devices take part together, the bytes of its result on one device, how often."""

    kind: str
    devices: int
    size: int
    times: int = 1

    @property
    def total(self) -> int:
        """Bytes of the results of all its runs."""
        return self.size * self.times

    @property
    def received(self) -> int:
        """Bytes that a device gets from others at least. An all-reduce is counted as a ring: 2 (n - 1) / n of it."""
        n = self.devices
        share = {"collective-permute": 1.0, "collective-broadcast": 1.0, "reduce-scatter": n - 1.0}
        both_ways = 2 if self.kind == "all-reduce" else 1
        return round(share.get(self.kind, both_ways * (n - 1) / n) * self.size) * self.times


class Total(NamedTuple):
    """Of all exchanges of a kind: how many are run, the bytes of their results, and those that a device gets."""

    runs: int
    size: int
    received: int


def collectives(program: str, devices: int) -> list[Collective]:
    """Returns the exchanges in the text of a compiled program, `compiled.as_text()`, in its order.

    `devices` is the number of devices of an exchange that names no groups. What is in the body of a loop counts for
    each of its rounds; a loop of unknown length counts as one round. Raises ValueError for another text.
    """
    bodies = dict(_computations(program))
    entry = next((name for name, lines in bodies.items() if lines[0].startswith("ENTRY")), None)
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return list(_within(entry, bodies, devices, 1, set()))


def totals(found: Iterable[Collective]) -> dict[str, Total]:
    """Returns the sums for each kind that was found."""
    out: dict[str, Total] = {}
    for one in found:
        runs, size, received = out.get(one.kind, Total(0, 0, 0))
        out[one.kind] = Total(runs + one.times, size + one.total, received + one.received)
    return out


def _computations(program: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            name, lines = match[1], [line]
        elif line == "}" and lines:
            yield name, lines
        else:
            lines.append(line)


def _within(
    name: str, bodies: dict[str, list[str]], devices: int, times: int, seen: set[tuple[str, ...]]
) -> Iterator[Collective]:
    for line in bodies.get(name, [""])[1:]:
        if match := _OPERATION.search(line):
            kind, rest = match["kind"], match["rest"]
            if copy := _COPY.search(rest):
                if (kind, *copy.groups()) in seen:  # a TPU's program repeats an exchange where it starts and ends
                    continue
                seen.add((kind, *copy.groups()))
            n = _group(rest, devices)
            yield Collective(kind, n, _size(match["type"], kind if match["start"] else "", n), times)
            continue
        rounds = int(match[1]) if " while(" in line and (match := _TRIPS.search(line)) else 1
        for match in _CALL.finditer(line):
            for called in re.findall(r"[\w.\-]+", match[1]):
                yield from _within(called, bodies, devices, times * rounds, seen)


def _group(rest: str, devices: int) -> int:
    if match := _LISTED.search(rest):
        return match[1].count(",") + 1
    if match := _COUNTED.search(rest):
        return int(match[1])
    if match := _NAMED.search(rest):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sides[name]) for name in re.findall(r"'(\w+)'", match[2]))
    return devices


def _size(text: str, started: str, n: int) -> int:
    """Returns the bytes of a result's arrays. `started` is the kind of an exchange whose end is another operation."""
    arrays = [
        math.prod(int(side) for side in sides.split(",") if side) * (1 if kind == "pred" else -(-int(bits) // 8))
        for kind, bits, sides in _ARRAY.findall(text)
    ]
    if started == "all-gather":  # the type also holds the parts that are gathered
        return sum(arrays) * n // (n + 1)
    if started == "collective-permute":  # it holds input, output and two numbers
        return sum(sorted(arrays)[2:] if len(arrays) > 3 else arrays) // 2
    return sum(arrays)
