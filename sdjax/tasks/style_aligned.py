"""StyleAligned in a batch: which pictures are computed together with the reference, the first one."""

from collections.abc import Sequence

import numpy as np

from sdjax.adapters.style_aligned import Shares
from sdjax.pipeline import placement
from sdjax.tasks.resolve import Resolved

OTHERS = "the pictures of one batch that are style_aligned follow its first one, so they have"
ALONE = (
    "style_aligned makes the pictures of a batch follow its first one, and this batch has one picture: make several at "
    "once, or leave it out"
)


def groups_with_reference(
    groups: Sequence[list[int]], exact: bool, at_once: int | None, devices: int
) -> list[list[int]]:
    """Returns groups in which the reference, the first picture, is on every device.

    `groups` are those of the pictures that are style aligned, by what must be equal in one program. A group has at most
    `at_once` pictures and a multiple of `devices`. The last picture is repeated as often as needed.

    Raises ValueError if the pictures cannot be computed together with the reference.
    """
    if len(groups) > 1:
        raise ValueError(f"{OTHERS} one size, and equal kinds of sampler, guidance, patches and additions")
    reference, *rest = groups[0]
    if not rest:
        raise ValueError(ALONE)
    if exact:
        raise ValueError("exact computes pictures one by one, and style_aligned together: leave one of them out")
    most = len(rest) if at_once is None else at_once // devices - 1  # beside the reference on a device
    if most < 1:
        raise ValueError(
            f"style_aligned computes at least two pictures at once on each device: at_once is {2 * devices} or more; "
            f"got {at_once}"
        )
    parts = -(-len(rest) // (most * devices))
    beside = -(-len(rest) // (parts * devices))
    filled = placement.fill(rest, parts * devices * beside)
    blocks = [[reference, *filled[i : i + beside]] for i in range(0, len(filled), beside)]
    return [sum(blocks[i : i + devices], []) for i in range(0, len(blocks), devices)]


def shares(requests: Sequence[Resolved], devices: int) -> Shares:
    """Returns the strengths of a group's pictures. The first one on each device is the reference."""
    strengths = np.array([one.style_aligned or 0 for one in requests], np.float32)
    reference = np.arange(len(requests)) % (len(requests) // devices) == 0
    return Shares(strengths, reference)  # type: ignore[arg-type]
