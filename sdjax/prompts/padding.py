"""Contexts of unequal length: how each tool makes them equal, so that they fit into one call of the network.

The default makes nothing equal: a context has a length, and the attention does not see behind it.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

Context: TypeAlias = Float[np.ndarray, "_ d"]

EMPTIES = "a1111_empty"  # the one that needs the empty prompt
MOST_REPEATS = 4  # ComfyUI makes two calls instead of more repetitions
PADDINGS = {
    "lengths": "every context keeps its length (default)",
    "a1111": "prompts joined by AND: the last vector is repeated; else as lengths (A1111's default)",
    "a1111_empty": 'as a1111, and the shorter side gets empty prompts behind it (A1111\'s "pad conds")',
    "a1111_v0": "as a1111, and the negative side is cut, or its last vector is repeated (A1111 before 1.6)",
    "comfyui": "all sides are repeated to a common multiple, up to four times (ComfyUI)",
}


def pad_contexts(
    how: str, conditional: Sequence[Context], unconditional: Context | None, empty: Context
) -> tuple[list[Context], Context | None]:
    """Returns a picture's contexts as the tool `how` makes them equal in length.

    `conditional`: one for each prompt that AND joins. `unconditional`: the negative prompt's, None without guidance.
    `empty`: the empty prompt's, used by a1111_empty alone. Contexts that stay unequal go to the network with their
    lengths.
    """
    conds = list(conditional)
    if how.startswith("a1111"):
        conds = [_last_repeated(one, max(map(len, conds))) for one in conds]
    if unconditional is None:
        return conds, None
    uncond = unconditional
    if how == EMPTIES:
        missing = (len(conds[0]) - len(uncond)) // len(empty)
        uncond = np.concatenate([uncond, *[empty] * missing])
        conds = [np.concatenate([one, *[empty] * -missing]) for one in conds]
    elif how == "a1111_v0":
        uncond = _last_repeated(uncond, len(conds[0]))[: len(conds[0])]
    elif how == "comfyui":
        lengths = [len(one) for one in (*conds, uncond)]
        common = math.lcm(*lengths)
        if common <= MOST_REPEATS * min(lengths):
            *conds, uncond = (np.tile(one, (common // len(one), 1)) for one in (*conds, uncond))
    return conds, uncond


def _last_repeated(context: Context, length: int) -> Context:
    return np.concatenate([context, np.repeat(context[-1:], max(length - len(context), 0), axis=0)])
