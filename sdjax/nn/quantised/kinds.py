"""The types of quantised weights: one row of a table for each.

A block type cuts the inputs of a layer into blocks, each with a scale of its own. A scaled type has one scale for each
output. Source of the block types: ggml's ggml-common.h and ggml-quants.c, where a weight is

    scale * code + offset                                  (legacy types)
    scale * small scale * code + offset * small offset     (k types: 8 or 16 small blocks in a block of 256)
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type of quantised weights.

    Attributes:
        number: the type's number in GGUF files, None for a scaled type.
        bits: of a code.
        zero: the code that stands for the weight 0 if there is no offset.
        block: weights that share a scale, along the inputs; 0 for all weights of an output.
        group: weights of a block that share a small scale; `block` without small scales.
        offset: whether a block has an offset.
        size: bytes of a block in a file.
        written: whether sdjax quantises to it.
        instead: the type for layers whose inputs do not divide into blocks, "" for none.
    """

    name: str
    number: int | None
    bits: int
    zero: int = 0
    block: int = 32
    group: int = 32
    offset: bool = False
    size: int = 0
    written: bool = True
    instead: str = ""

    @property
    def bits_a_weight(self) -> float:
        """Bits that a weight takes with its share of the scales."""
        return 8 * self.size / self.block if self.block else float(self.bits)

    @property
    def fits_files(self) -> str:
        """The ending of the files that hold this type."""
        return ".safetensors" if self.number is None else ".gguf"


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("int8", None, 8, block=0, group=0),
        Kind("fp8", None, 8, block=0, group=0),
        Kind("q8_0", 8, 8, size=34),
        Kind("q5_0", 6, 5, zero=16, size=22),
        Kind("q5_1", 7, 5, offset=True, size=24),
        Kind("q4_0", 2, 4, zero=8, size=18),
        Kind("q4_1", 3, 4, offset=True, size=20),
        Kind("q4_k", 12, 4, block=256, offset=True, size=144, instead="q5_0"),
        Kind("q2_k", 10, 2, block=256, group=16, offset=True, size=84, written=False),
        Kind("q3_k", 11, 3, zero=4, block=256, group=16, size=110, written=False),
        Kind("q5_k", 13, 5, block=256, offset=True, size=176, written=False),
        Kind("q6_k", 14, 6, zero=32, block=256, group=16, size=210, written=False),
    )
}
OF_NUMBER = {kind.number: kind for kind in KINDS.values() if kind.number is not None}
WRITTEN = tuple(name for name, kind in KINDS.items() if kind.written)
AS_STORED, NOT = "auto", "no"  # what may be asked for besides a type when a model is loaded


def kind_named(name: object) -> Kind:
    """Returns the type that sdjax can quantise to, by name. Raises ValueError for any other."""
    if not isinstance(name, str) or name.lower() not in WRITTEN:
        raise ValueError(f"a type to quantise to is one of {', '.join(WRITTEN)}; got {name!r}")
    return KINDS[name.lower()]


def kind_for(kind: Kind, inputs: int) -> Kind | None:
    """Returns the type for a layer of this many inputs: `kind`, the one in its place, or None if neither fits."""
    while kind.block and inputs % kind.block:
        if not kind.instead:
            return None
        kind = KINDS[kind.instead]
    return kind
