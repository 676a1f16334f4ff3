"""Options of a picture that cannot be combined, because they need the whole attention."""

from typing import TYPE_CHECKING

from sdjax.adapters.hidiffusion import WindowAttention
from sdjax.adapters.patch import Timed
from sdjax.diffusion.guidance import ClassifierFree
from sdjax.diffusion.rules.attention import SAG, Perturbing

if TYPE_CHECKING:
    from sdjax.tasks.resolve import Resolved


def check_combinations(request: "Resolved") -> None:
    """Raises ValueError for options of a resolved request that cannot be combined."""
    check_attention(request)
    check_shared(request)


def check_attention(request: "Resolved") -> None:
    """Raises ValueError for guidance that looks at the whole attention, with changes that leave no such attention."""
    rules = request.guidance.rules if isinstance(request.guidance, ClassifierFree) else ()
    if any(isinstance(rule, SAG) for rule in rules) and (
        request.window is not None or any(isinstance(one.patch, Timed) for one in request.patches)
    ):
        raise ValueError(
            "self-attention guidance (sag) needs the attention of the whole network: use it without windows, and "
            "without patches that are active only for a part of the steps (deep_shrink, rau_net)"
        )


def check_shared(request: "Resolved") -> None:
    """Raises ValueError for changes of attention that cannot be combined with other pictures' keys and values."""
    rules = request.guidance.rules if isinstance(request.guidance, ClassifierFree) else ()
    windowed = any(isinstance(one, WindowAttention) for one in request.patches)
    if windowed and (request.style_aligned is not None or request.references):
        what = "references let" if request.references else "style_aligned lets"
        raise ValueError(f"{what} pictures see all of another one, and window_attention only a window: leave one out")
    if request.references and any(isinstance(rule, Perturbing) for rule in rules):
        raise ValueError(
            "references and guidance that perturbs self-attention (pag, seg) change the same attention: leave one out"
        )
