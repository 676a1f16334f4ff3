"""Token downsampling (ToDo): self-attention to fewer keys and values, every second one along both sides.

Source: Smith et al. 2024, "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images"
(arXiv 2402.13573), section 3.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from sdjax.adapters.patch import Interceptor
from sdjax.adapters.self_attention import Attend, self_attention
from sdjax.adapters.spans import AsItIs, Inside, set_fields
from sdjax.checks.arguments import whole
from sdjax.config import UNetConfig

LARGEST_FACTOR = 16


@dataclass(frozen=True)
class TokenDownsampling(AsItIs):
    """The settings of token downsampling: by which factor the maps of keys and values shrink along each side.

    `factor` is that of the first level, which has the largest maps, and `factor_2` that of the second. 1 changes
    nothing. All queries stay. The paper has 2 for pictures of up to 1536 pixels, 4 and 2 for 2048.

    Raises ValueError for values out of range.
    """

    factor: int = 2
    factor_2: int = 1

    def __post_init__(self) -> None:
        names = "factor", "factor_2"
        set_fields(self, {name: whole(name, getattr(self, name), 1, LARGEST_FACTOR) for name in names})

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError for a second factor if the network has one level."""
        if self.factor_2 > 1 and len(config.channels) < 2:
            raise ValueError(f"factor_2 is 1 for this network, which has one level; got {self.factor_2}")

    def intercept(self, shared: None = None, own: None = None) -> Interceptor:
        """Returns the interceptor of `.../attn1/attend`."""

        def changed(attend: Attend, qkv: tuple[Array, Array, Array], inside: Inside, path: str) -> Array:
            factor = (self.factor, self.factor_2)[inside.level(path)]
            if factor == 1:
                return attend(*qkv)
            (q, k, v), size = qkv, inside.sizes.around(path)
            return attend(q, downsampled(k, size, factor), downsampled(v, size, factor))

        return self_attention(changed, levels=2)


def downsampled(x: Float[Array, "b n h d"], size: tuple[int, int], factor: int) -> Float[Array, "b m h d"]:
    """Returns the keys or values of a map of this size, shrunk by the factor: the nearest to each new place's middle.

    A side keeps at least one place.
    """
    rows, columns = (nearest(side, factor) for side in size)
    return x[:, (rows[:, None] * size[1] + columns).ravel()]


def nearest(side: int, factor: int) -> np.ndarray:
    """Returns which places of a side are kept, as torch's "nearest-exact" has it."""
    count = max(1, side // factor)
    return np.floor((np.arange(count) + 0.5) * side / count).astype(int)
