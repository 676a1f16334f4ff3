"""Accelerators that a run can be planned for: their kind, their memory, and how fast others have trained on them."""

import dataclasses
import re
from typing import Literal

from sdjax.spelling import meant
from sdjax.train.planning.peaks import peak_flops


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device. `kind` is JAX's name of it, `memory` the bytes that programs can use.

    `mfu` is the share of its peak that training of Stable Diffusion 2's UNet at 512 pixels has been published to reach,
    in bfloat16, with latents and texts made before: pictures a second (137 on an H100, 150 on an H200, 86.6 on a TPU
    v5p, from MLPerf's results) times the operations that `flops` counts for a picture. None if we know no figure.
    """

    kind: str
    platform: Literal["cuda", "tpu"]
    memory: int
    mfu: float | None = None
    cores: int = 1  # of a device, by which the names of TPU slices count

    @property
    def peak(self) -> float:
        """Operations a second of products of bfloat16."""
        peak = peak_flops(self.kind)
        assert peak is not None  # the tests go through the table
        return peak


ACCELERATORS = {
    "a100": Accelerator("A100-SXM4-80GB", "cuda", 79 * 2**30),
    "h100": Accelerator("H100 80GB HBM3", "cuda", 79 * 2**30, 0.325),
    "h200": Accelerator("H200", "cuda", 139 * 2**30, 0.355),
    "v4": Accelerator("TPU v4", "tpu", 32 * 2**30, cores=2),
    "v5e": Accelerator("TPU v5e", "tpu", 16 * 2**30),
    "v5p": Accelerator("TPU v5p", "tpu", 95 * 2**30, 0.442, cores=2),
    "v6e": Accelerator("TPU v6e", "tpu", 32 * 2**30),
}


def accelerator_named(name: str) -> tuple[Accelerator, int | None]:
    """Returns an accelerator, and the number of devices if the name is that of a slice of TPUs, such as "v5p-16".

    Names of v4 and v5p slices count cores, two for each device. Raises ValueError for an unknown name.
    """
    kind, dash, number = name.lower().partition("-")
    found = ACCELERATORS.get(kind)
    if found is None or (dash and found.platform != "tpu"):
        raise ValueError(
            f"an accelerator is one of {', '.join(ACCELERATORS)}, or a slice such as v5p-16; "
            f"got {name!r}{meant(kind, ACCELERATORS)}"
        )
    if not dash:
        return found, None
    if not re.fullmatch("[1-9][0-9]{0,5}", number) or int(number) % found.cores:
        raise ValueError(f"a slice is {kind}-N, with N a multiple of {found.cores}; got {name!r}")
    return found, int(number) // found.cores
