"""Options of a picture that cannot be combined."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdjax.adapters.hidiffusion import WindowAttention
from sdjax.adapters.hypertile import HyperTile
from sdjax.adapters.memory import Remembering
from sdjax.adapters.patch import Timed
from sdjax.adapters.t_gate import TGate
from sdjax.adapters.table import PATCHES, Setting
from sdjax.adapters.token_downsampling import TokenDownsampling
from sdjax.adapters.token_merging import TokenMerging
from sdjax.diffusion.guidance import ClassifierFree, Rule
from sdjax.diffusion.rules.attention import SAG, SEG, Perturbing
from sdjax.samplers import Linear

# Patches of which each changes the places that a self-attention sees, so that another one does not find them again
OF_PLACES = (WindowAttention, HyperTile, TokenMerging, TokenDownsampling)

if TYPE_CHECKING:
    from sdjax.tasks.resolve import Resolved


def check_combinations(request: "Resolved") -> None:
    """Raises ValueError for options of a resolved request that cannot be combined."""
    check_attention(request)
    check_shared(request)
    check_places(request.patches, _rules(request))
    check_memory(request)


def _rules(request: "Resolved") -> tuple[Rule, ...]:
    return request.guidance.rules if isinstance(request.guidance, ClassifierFree) else ()


def _name(setting: object) -> str:
    return next(name for name, made in PATCHES.items() if isinstance(setting, made))


def check_places(patches: Sequence[Setting], rules: Sequence[Rule]) -> None:
    """Raises ValueError for several patches, or a patch and guidance, that change the places of an attention."""
    found = [one for one in patches if isinstance(one, OF_PLACES)]
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(map(_name, found))} change which places the same self-attention sees: choose one of them"
        )
    if any(isinstance(one, TokenMerging) for one in found) and any(isinstance(rule, SEG) for rule in rules):
        raise ValueError("token_merging leaves no map of queries that seg could blur: leave one out")


def check_memory(request: "Resolved") -> None:
    """Raises ValueError for patches that keep features, with what they cannot be kept for."""
    kept = [one for one in request.patches if isinstance(one.patch, Remembering)]
    if not kept:
        return
    names = " and ".join(map(_name, kept))
    if not isinstance(request.sampler.rule, Linear):
        raise ValueError(
            f"{names} counts the calls of the network, and the steps of the sampler {type(request.sampler).__name__} "
            "are not known beforehand: choose another sampler"
        )
    if request.references:
        raise ValueError(f"{names} keeps features of one picture, and references call the network for others too")
    if any(isinstance(one.patch, Timed) for one in request.patches):
        raise ValueError(
            f"{names} keeps features of one size, which deep_shrink and rau_net change while sampling: leave one out"
        )
    if any(isinstance(rule, SAG) for rule in _rules(request)):
        raise ValueError(
            f"self-attention guidance (sag) needs the attention of every call, and {names} skips some: leave one out"
        )
    if any(isinstance(one, TGate) for one in kept) and not isinstance(request.guidance, ClassifierFree):
        raise ValueError(
            f"t_gate ends guidance, which {type(request.guidance).__name__} does not allow: give guidance_scale and "
            "rules instead of a whole guidance"
        )


def check_attention(request: "Resolved") -> None:
    """Raises ValueError for guidance that looks at the whole attention, with changes that leave no such attention."""
    rules = _rules(request)
    if any(isinstance(rule, SAG) for rule in rules) and (
        request.window is not None or any(isinstance(one.patch, Timed) for one in request.patches)
    ):
        raise ValueError(
            "self-attention guidance (sag) needs the attention of the whole network: use it without windows, and "
            "without patches that are active only for a part of the steps (deep_shrink, rau_net)"
        )


def check_shared(request: "Resolved") -> None:
    """Raises ValueError for changes of attention that cannot be combined with other pictures' keys and values."""
    rules = _rules(request)
    windowed = [_name(one) for one in request.patches if isinstance(one, WindowAttention | HyperTile)]
    if windowed and (request.style_aligned is not None or request.references):
        what = "references let" if request.references else "style_aligned lets"
        raise ValueError(f"{what} pictures see all of another one, and {windowed[0]} only a part: leave one out")
    if request.references and any(isinstance(rule, Perturbing) for rule in rules):
        raise ValueError(
            "references and guidance that perturbs self-attention (pag, seg) change the same attention: leave one out"
        )
