"""Rules of guidance. `GUIDANCE` is the table of their names; another entry has a name in Python and for commands.

Rules compose: "apg+interval" is both, in this order. `docs/guidance.md` shows what they do.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.checks.arguments import shown
from sdjax.diffusion.guidance import Rule, Rules
from sdjax.diffusion.rules.attention import NAG, PAG, SAG, SEG, FreeU
from sdjax.diffusion.rules.branches import And, Autoguidance, Edit
from sdjax.diffusion.rules.contrast import CFGNorm, DynamicThresholding, EpsilonScaling, FreSca, Mahiro, Rescale
from sdjax.diffusion.rules.options import Option, checked, choice, layers, option, options_of, switch, with_options
from sdjax.diffusion.rules.projections import APG, TCFG, CFGZeroStar, PerpNeg
from sdjax.diffusion.rules.steps import Interval, ScaleCurve, ScaleList, SkipUnconditional
from sdjax.spelling import meant

GUIDANCE: dict[str, type[Rule]] = {
    "interval": Interval,
    "skip": SkipUnconditional,
    "curve": ScaleCurve,
    "scales": ScaleList,
    "rescale": Rescale,
    "apg": APG,
    "cfg_zero_star": CFGZeroStar,
    "tcfg": TCFG,
    "perp_neg": PerpNeg,
    "dynamic_thresholding": DynamicThresholding,
    "mahiro": Mahiro,
    "cfg_norm": CFGNorm,
    "fresca": FreSca,
    "epsilon_scaling": EpsilonScaling,
    "edit": Edit,
    "pag": PAG,
    "seg": SEG,
    "sag": SAG,
    "freeu": FreeU,
    "nag": NAG,
    "autoguidance": Autoguidance,
}
PLAIN = "cfg"  # the name of classifier-free guidance without rules
MOST = 8  # rules in one guidance


def make_rules(guidance: str, options: Mapping[str, Any] | None = None) -> tuple[Rule, ...]:
    """Returns the rules with these names, such as "apg+interval". "cfg" is none.

    `options` are {"eta": 0.5}, or {"apg.eta": 0.5}, which is needed if several of the rules have the option. Raises
    ValueError for unknown names, listing the known ones, and for values that do not fit.
    """
    names = [name.strip() for name in guidance.split("+")]
    names = [name for name in names if name != PLAIN]
    if len(names) > MOST:
        raise ValueError(f"guidance has at most {MOST} rules; got {len(names)}")
    for name in names:
        if name not in GUIDANCE:
            listed = [PLAIN, *GUIDANCE]
            raise ValueError(
                f"unknown guidance {shown(name)}{meant(name, listed)}; the known ones are {', '.join(listed)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"guidance has {name} twice: give it once")
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in (options or {}).items():
        owner, dot, option = key.rpartition(".")
        owners = [owner] if dot else [n for n in names if option in {one.name for one in options_of(GUIDANCE[n])}]
        if not owners or owners[0] not in own:
            every = [f"{n}.{one.name}" for n in names for one in options_of(GUIDANCE[n])]
            known = f"it has {', '.join(every)}" if every else "it has none"
            raise ValueError(f"the guidance {guidance} has no option {shown(key)}; {known}")
        if len(owners) > 1:
            raise ValueError(f"{option} is an option of {' and '.join(owners)}: write {owners[0]}.{option}")
        if option in own[owners[0]]:
            raise ValueError(f"the option {option} of the guidance {owners[0]} is given twice: give it once")
        own[owners[0]][option] = value
    return tuple(with_options(name, GUIDANCE[name], own[name]) for name in names)


__all__ = [
    "APG",
    "And",
    "Autoguidance",
    "CFGNorm",
    "CFGZeroStar",
    "DynamicThresholding",
    "Edit",
    "EpsilonScaling",
    "FreSca",
    "FreeU",
    "GUIDANCE",
    "Interval",
    "Mahiro",
    "NAG",
    "Option",
    "PAG",
    "PLAIN",
    "PerpNeg",
    "Rescale",
    "Rule",
    "Rules",
    "SAG",
    "SEG",
    "ScaleCurve",
    "ScaleList",
    "SkipUnconditional",
    "TCFG",
    "checked",
    "choice",
    "layers",
    "make_rules",
    "option",
    "options_of",
    "switch",
    "with_options",
]
