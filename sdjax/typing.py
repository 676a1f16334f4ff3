"""Array aliases for public signatures, and the shape letters that the whole project uses.

    b batch   h height   w width   c channels   n tokens of a sequence   m keys of an attention   d width   t steps

A letter with a 2 is the size of a layer's output (h2: height of the output); `_` is any size. Everything is NHWC. An
image is in [-1, 1]. A latent is already multiplied by the autoencoder's scale factor.
"""

from collections.abc import Mapping
from typing import Any

import jaxtyping
import numpy as np
from jaxtyping import Array, Float, Int, Num, UInt8

Image = Float[Array, "b h w 3"]
NewImage = Float[Array, "b h2 w2 3"]
Pixels = UInt8[np.ndarray, "b h w 3"]
Latent = Float[Array, "b h w c"]
Map = Float[Array, "b h w c"]
NewMap = Float[Array, "b h2 w2 c2"]
Maps = list[Float[Array, "b _ _ _"]]
Tokens = Float[Array, "b n c"]
NewTokens = Float[Array, "b n c2"]
Embedding = Float[Array, "b d"]
Moments = Float[Array, "b h2 w2 c2"]
Context = Float[Array, "b m d"]
Length = Int[Array, "b"]
TokenIds = Int[Array | np.ndarray, "b n"]
Timestep = Num[Array, "b"]
Key = jaxtyping.Key[Array, ""]
Keys = jaxtyping.Key[Array, "b"]
Params = Mapping[str, Any]
