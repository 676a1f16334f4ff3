"""Guidance: combines the network's outputs for several conditionings into one x0.

`ClassifierFree` is the frame: it goes from the unconditional answer towards the conditional one, `scale` times as far.
Rules (`Rule`) change it: what it goes towards or away from, how far, in which steps, and the result. They compose:
`ClassifierFree(7.5, rules=(APG(eta=0.5), Interval(stop=0.8)))`. `sdjax.diffusion.rules` has the known ones.

A rule is a frozen dataclass of numbers (`flax.struct.dataclass`). The numbers are arguments of the compiled program,
one for the batch or one for each picture, so other numbers need no new compilation. Its class, its branches and its
fields that are not numbers are static.

    @flax.struct.dataclass
    class Halfway(Rule):
        share: jax.Array | float = 0.5

        def after(self, answers, call, memory):
            guided = answers.conditional + per_image(self.share, call.x) * (answers.guided - answers.conditional)
            return answers._replace(guided=guided), memory

    GUIDANCE["halfway"] = Halfway  # sdjax.diffusion.rules.GUIDANCE: now it has a name, in Python and for commands
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from sdjax.adapters.patch import Patch
from sdjax.checks.arguments import number
from sdjax.checks.notes import note
from sdjax.config import UNetConfig
from sdjax.diffusion.conditioning import Conditioning
from sdjax.samplers.rows import Numbers, Rows, per_image
from sdjax.samplers.rule import Denoised, Memory, Noisy, choose_images
from sdjax.schedule import PREDICTIONS

Tree = TypeVar("Tree", bound=PyTree)
WEAK = "weak"  # the name by which a rule calls the second network (`Call.again`)


class Call(NamedTuple):
    """One call of the network as guidance sees it."""

    x: Noisy  # x0 + sigma noise
    row: Rows
    of_x: Numbers | float  # weights of x and of the network's output in x0; they depend on the prediction type
    of_output: Numbers | float
    prediction: str = ""  # what the network predicts: a name of PREDICTIONS
    on: Bool[Array, "b"] | bool = True  # whether this step is guided
    again: Callable[[str, Noisy], Noisy] | None = None  # (branch, x) -> x0 there, by another call of the network
    reports: Mapping[str, Array] = {}  # arrays that patches of rules reported during the call

    def x0(self, output: Noisy) -> Noisy:
        """Returns the x0 for an output of the network."""
        return jnp.asarray(self.of_x * self.x + self.of_output * output)

    def seen(self, output: Noisy, space: str) -> Noisy:
        """Returns an output of the network as "output" (unchanged), "x0", "epsilon" or "v"."""
        if space in ("output", self.prediction):
            return output
        return from_x0(self.x0(output), self.x, self.row.sigma, space)

    def output(self, value: Noisy, space: str) -> Noisy:
        """Returns the output of the network for a value as `seen` returns it."""
        if space in ("output", self.prediction):
            return value
        of_x, of_value = PREDICTIONS[space].x0(per_image(self.row.sigma, self.x))
        return jnp.asarray((of_x * self.x + of_value * value - self.of_x * self.x) / self.of_output)


def from_x0(x0: Noisy, x: Noisy, sigma: Numbers, space: str) -> Noisy:
    """Returns x0, the answer for x = x0 + sigma noise, as "x0", "epsilon" or "v"."""
    of_x, of_value = PREDICTIONS[space].x0(per_image(sigma, x))
    return jnp.asarray((x0 - of_x * x) / of_value)


class Answers(NamedTuple):
    """What rules change. Everything but `scale` is in the space of the network's outputs.

    Guidance makes `guided` = `origin` + `scale` (`target` - `origin`). Without other rules, `target` is the conditional
    output and `origin` the unconditional one.
    """

    conditional: Noisy  # the network's own
    unconditional: Noisy  # the network's own; the conditional one if there is no unconditional branch in this call
    target: Noisy
    origin: Noisy
    guided: Noisy
    scale: Float[Array, "b"]
    outputs: Mapping[str, Noisy]  # of all branches, by name


class Rule:
    """A change of classifier-free guidance. Subclasses are dataclasses of flax and override what they need.

    `branches` are further branches of the network. `aside` are conditionings that only the rule's patches use.
    `applies`: to which pictures; "guided": guided in this step, with a scale other than 1; "on": guided in this step;
    "always". `needs_unconditional`: whether the unconditional branch is computed at scale 1 too. `needs_weak`: whether
    the rule calls the second network. `rests`: whether `on` may be false.

    Branches are known by name: "unconditional" (the negative prompt), "conditional" (the prompt), "conditional 2", ...
    (further prompts), "perturbed" and "smoothed" (the prompt), "empty" (the empty prompt), "nothing" (the negative
    prompt, and zeros in place of the picture that the network is given).
    """

    applies: ClassVar[Literal["guided", "on", "always"]] = "guided"
    needs_unconditional: ClassVar[bool] = False
    needs_weak: ClassVar[bool] = False
    rests: ClassVar[bool] = False

    @property
    def branches(self) -> tuple[str, ...]:
        """No further branches."""
        return ()

    @property
    def aside(self) -> tuple[str, ...]:
        """No conditionings beside the branches."""
        return ()

    @property
    def counts_steps(self) -> bool:
        """Whether the rule needs the number of the step. Samplers whose steps are not known beforehand have none."""
        return False

    def check(self, config: UNetConfig) -> None:
        """Raises ValueError if the rule does not work with this UNet."""

    def init(self, x: Noisy) -> Memory:
        """Returns the rule's memory before the first call: (), or arrays with x's batch as their first axis."""
        return ()

    def on(self, call: Call) -> Bool[Array, "b"]:
        """Returns which pictures are guided in this step. The others get the conditional answer."""
        return jnp.ones(call.x.shape[0], bool)

    def scale_of(self, scale: Float[Array, "b"], call: Call) -> Float[Array, "b"]:
        """Returns the guidance scale of this step."""
        return scale

    def joined(self, outputs: Mapping[str, Noisy], call: Call) -> Mapping[str, Noisy]:
        """Returns the network's outputs, with those of further branches put into the first ones."""
        return outputs

    def before(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with other target, origin or scale, and the memory."""
        return answers, memory

    def after(self, answers: Answers, call: Call, memory: Memory) -> tuple[Answers, Memory]:
        """Returns the answers with another guided output, and the memory."""
        return answers, memory

    def patches(
        self, branches: Sequence[str], aside: Mapping[str, Conditioning], on: Bool[Array, "b"]
    ) -> Sequence[tuple[Patch, PyTree]]:
        """Returns patches for a call of the network with these interleaved branches, with their per-image arrays.

        `aside` are the conditionings by name. `on` says which pictures are guided in this step.
        """
        return ()

    def __add__(self, other: "Rule | Rules") -> "Rules":
        return Rules((self,)) + other


@struct.dataclass
class Rules:
    """Several rules in order. `APG() + Interval()` makes it."""

    rules: tuple[Rule, ...] = ()

    def __add__(self, other: "Rule | Rules") -> "Rules":
        if not isinstance(other, Rule | Rules):
            return NotImplemented
        return Rules((*self.rules, *(other.rules if isinstance(other, Rules) else (other,))))


class Guidance(Protocol):
    """A whole guidance: a pytree whose leaves are numbers, one for the batch or one per image [b]."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of the conditionings, in the order of the batch."""
        ...

    def init(self, x: Noisy) -> Memory:
        """Returns the memory before the first call: (), or arrays with x's batch as their first axis."""
        ...

    def combine(self, outputs: Mapping[str, Noisy], call: Call, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the x0 of a call and the memory for the next one. `outputs` are the network's own, float32."""
        ...


@struct.dataclass
class Unguided:
    """No guidance: the network is called with one conditioning."""

    @property
    def branches(self) -> tuple[str, ...]:
        """One branch."""
        return ("conditional",)

    def init(self, x: Noisy) -> Memory:
        """Returns no memory."""
        return ()

    def combine(self, outputs: Mapping[str, Noisy], call: Call, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the x0 of the only output."""
        x0 = call.x0(outputs["conditional"])
        return Denoised(x0, x0, x0), memory


@struct.dataclass
class ClassifierFree:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional), changed by rules.

    `rescale` (0 to 1) is the share of the result that is rescaled to the conditional output's standard deviation. It
    avoids overexposed pictures at large scales; 0 costs nothing. With scale 1 and rescale 0 the result is exactly the
    conditional output. If not `both`, there is no unconditional branch; this is right at scale 1 only.

    Source: Ho & Salimans 2022 (arXiv 2207.12598); for `rescale` Lin et al. 2023 (arXiv 2305.08891), eq. 15 and 16.
    """

    scale: Numbers | float
    rescale: Numbers | float = 0.0
    rules: tuple[Rule, ...] = ()
    both: bool = struct.field(pytree_node=False, default=True)

    @property
    def branches(self) -> tuple[str, ...]:
        """The unconditional and the conditional branch, and those of the rules."""
        first = ("unconditional", "conditional") if self.both else ("conditional",)
        return tuple(dict.fromkeys((*first, *(name for rule in self.rules for name in rule.branches))))

    @property
    def aside(self) -> tuple[str, ...]:
        """Conditionings that only patches of rules use."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.aside))

    @property
    def resting(self) -> tuple[str, ...] | None:
        """The branches of a call in which no picture is guided; None if there is always one."""
        if not any(rule.rests for rule in self.rules):
            return None
        return tuple(name for name in self.branches if name.startswith("conditional"))

    def init(self, x: Noisy) -> Memory:
        """Returns the memory of each rule."""
        return tuple(rule.init(x) for rule in self.rules)

    def on(self, call: Call) -> Bool[Array, "b"]:
        """Returns which pictures are guided in this step."""
        on = jnp.ones(call.x.shape[0], bool)
        for rule in _of_images(self.rules, call.x.shape[0]):
            on = on & rule.on(call)
        return on

    def patches(
        self, branches: Sequence[str], aside: Mapping[str, Conditioning], on: Bool[Array, "b"]
    ) -> list[tuple[Patch, PyTree]]:
        """Returns the rules' patches for a call with these interleaved branches."""
        return [pair for rule in _of_images(self.rules, len(on)) for pair in rule.patches(branches, aside, on)]

    @property
    def works_unguided(self) -> bool:
        """Whether a rule has an effect at scale 1."""
        return any(rule.applies != "guided" or rule.needs_unconditional for rule in self.rules)

    @property
    def ignores_negative(self) -> bool:
        """Whether the negative prompt has no effect. For the guidance of one picture."""
        used = "unconditional" in self.aside or any(rule.needs_unconditional for rule in self.rules)
        return bool(np.all(np.asarray(self.scale) == 1)) and not used

    def combine(self, outputs: Mapping[str, Noisy], call: Call, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns the guided x0. Without rules it combines outputs of any prediction type: x0 is linear in them."""
        b = outputs["conditional"].shape[0]
        scale, rescale = (jnp.asarray(a) for a in _of_images((self.scale, self.rescale), b))
        rules = _of_images(self.rules, b)
        for rule in rules:
            outputs = rule.joined(outputs, call)
        conditional = outputs["conditional"]
        on = jnp.broadcast_to(jnp.asarray(call.on), (b,))
        unconditional = outputs.get("unconditional", conditional)
        if self.resting is not None:
            unconditional = choose_images(on, unconditional, conditional)
        for rule in rules:
            scale = rule.scale_of(scale, call)
        which = {"guided": on & (scale != 1), "on": on, "always": jnp.ones(b, bool)}
        answers = Answers(conditional, unconditional, conditional, unconditional, conditional, scale, outputs)
        kept = []
        for rule, own in zip(rules, memory, strict=True):
            changed, new = rule.before(answers, call, own)
            answers = _chosen(which[rule.applies], changed, answers)
            kept.append(choose_images(which[rule.applies], new, own))
        answers = answers._replace(guided=extrapolated(answers))
        for i, rule in enumerate(rules):
            changed, new = rule.after(answers, call, kept[i])
            answers = _chosen(which[rule.applies], changed, answers)
            kept[i] = choose_images(which[rule.applies], new, kept[i])
        guided = jax.lax.cond(
            jnp.any(rescale != 0),
            lambda guided: choose_images((rescale != 0) & on, rescaled(guided, conditional, rescale), guided),
            lambda guided: guided,
            answers.guided,
        )
        return Denoised(*(call.x0(output) for output in (guided, conditional, unconditional))), tuple(kept)


def extrapolated(answers: Answers) -> Noisy:
    """Returns origin + scale (target - origin). With scale 1 it is exactly the target."""
    far = answers.origin + per_image(answers.scale, answers.target) * (answers.target - answers.origin)
    return choose_images(answers.scale != 1, far, answers.target)


def rescaled(guided: Noisy, conditional: Noisy, share: Numbers | float) -> Noisy:
    """Returns a share of each picture rescaled to the conditional answer's standard deviation."""
    axes = tuple(range(1, guided.ndim))
    # ddof 1: torch's std, as in the published code
    spread = jnp.std(guided, axes, ddof=1, keepdims=True)
    ratio = jnp.std(conditional, axes, ddof=1, keepdims=True) / jnp.where(spread > 0, spread, 1)
    return guided * (1 + per_image(share, guided) * (ratio - 1))


def _of_images(tree: Tree, b: int) -> Tree:
    """Returns the tree with every number as float32, one for each of b images."""

    def of_images(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf, jnp.float32)
        return jnp.broadcast_to(leaf, (b, *leaf.shape[1:]))

    return jax.tree.map(of_images, tree)


def _chosen(which: Bool[Array, "b"], changed: Answers, answers: Answers) -> Answers:
    """Returns the answers with the changes for some pictures only."""
    names = "target", "origin", "guided", "scale"
    pairs = {name: (getattr(changed, name), getattr(answers, name)) for name in names}
    return answers._replace(
        **{name: new if new is old else choose_images(which, new, old) for name, (new, old) in pairs.items()}
    )


def make_guidance(
    scale: Numbers | float | Sequence[float],
    rescale: Numbers | float | Sequence[float] = 0.0,
    rules: Sequence[Rule] = (),
    *,
    needs_unconditional: bool = False,
) -> Guidance:
    """Returns classifier-free guidance with rules. It has no more branches than needed: `Unguided` if only one is used.

    Numbers are one for all images or one for each. If all scales are 1, the unconditional branch is left out unless a
    rule or the sampler needs it.
    """
    scales = np.asarray(scale, np.float32)
    both = needs_unconditional or not (scales == 1).all() or any(rule.needs_unconditional for rule in rules)
    if not both and not rules:
        return Unguided()
    return ClassifierFree(scales, np.asarray(rescale, np.float32), tuple(rules), both=both)


def check_guidance_scale(scale: float) -> float:
    """Returns the scale as Python's float. Raises ValueError unless it is a finite number."""
    return number("guidance_scale", scale)


WITHOUT_GUIDANCE = "at guidance_scale 1 (no guidance)"
SCALE_AS_INPUT = "on a model that takes the guidance scale as an input (LCM)"


def note_unguided(*, why: str = WITHOUT_GUIDANCE, **given: bool) -> None:
    """Gives a note for each argument that is given for a picture without guidance. `why` says what it lacks."""
    for name in (name for name, is_given in given.items() if is_given):
        note(f"{name} has no effect {why}: leave it out")
