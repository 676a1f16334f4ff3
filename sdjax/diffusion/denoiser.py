"""The denoiser: a network as samplers see it, with input scaling, prediction type, conditioning and guidance.

Samplers use x = x0 + sigma noise; the network was trained on x / sqrt(1 + sigma^2). Only this module knows both, and
only this module knows the prediction type.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax.adapters.memory import Moment
from sdjax.adapters.patch import patched, reporting
from sdjax.diffusion.conditioning import Conditioning, stack
from sdjax.diffusion.guidance import WEAK, Call, ClassifierFree, Guidance
from sdjax.diffusion.network import Network
from sdjax.samplers.rows import Rows, per_image
from sdjax.samplers.rule import Denoised, Memory, Noisy
from sdjax.schedule import PREDICTIONS
from sdjax.typing import Params


class Weak(NamedTuple):
    """A second network, which guides by its faults (`sdjax.diffusion.rules.Autoguidance`)."""

    network: Network
    params: Params
    prediction: str


class Result(NamedTuple):
    """The result of one call of the network."""

    outputs: jax.Array  # [b, branches, ...], float32
    kept: Memory  # the network's memory, [b, branches, ...]
    reports: Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """The denoiser of a network with the prediction type `prediction`. Its memory is (guidance's, network's).

    One call of the network computes all branches of guidance, interleaved as in `conditioning.stack`. Between calls the
    network's memory has the axes [b, branches, ...]. If guidance rests in some steps, a step in which no picture is
    guided calls the network with the conditional branches alone.
    """

    network: Network
    params: Params
    prediction: str
    conditionings: Mapping[str, Conditioning]  # by the names of the branches, and of what rules use aside
    stacked: Mapping[tuple[str, ...], Conditioning]  # of each set of branches that one call computes
    guidance: Guidance
    weak: Weak | None = None

    def init(self, x: Noisy) -> Memory:
        """Returns the memory before the first call."""
        branches = len(self.guidance.branches)
        return self.guidance.init(x), _apart(self.network.init(self.params, _repeated(x, branches)), branches)

    def __call__(self, x: Noisy, row: Rows, memory: Memory) -> tuple[Denoised, Memory]:
        """Returns x0 and the memory. The row's timestep and sigma are [b], or one number for all images."""
        guided, kept = memory
        weights = PREDICTIONS[self.prediction].x0(per_image(row.sigma, x))
        call = Call(x, row, *weights, self.prediction)
        branches, guidance = self.guidance.branches, self.guidance
        run = functools.partial(self._run, branches, x, row)
        some = True if not isinstance(guidance, ClassifierFree) or guidance.resting is None else guidance.on(call)
        if some is True:
            result = run(kept)
        else:
            rest = functools.partial(self._rest, x, row)
            result = jax.lax.cond(jnp.any(some), run, rest, kept)
        again = functools.partial(self._again, row, some)
        call = call._replace(on=some, again=again, reports=result.reports)
        named = {name: result.outputs[:, i] for i, name in enumerate(branches)}
        denoised, guided = guidance.combine(named, call, guided)
        return denoised, (guided, result.kept)

    def _run(self, branches: tuple[str, ...], x: Noisy, row: Rows, kept: Memory) -> Result:
        """Returns the result of the network for these branches."""
        k = len(branches)
        joined = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), kept)
        out, kept, reports = self._call(self.network, self.params, branches, x, row, joined)
        return Result(_apart(out.astype(jnp.float32), k), _apart(kept, k), reports)

    def _call(
        self, network: Network, params: Params, branches: tuple[str, ...], x: Noisy, row: Rows, memory: Memory
    ) -> tuple[jax.Array, Memory, Mapping[str, jax.Array]]:
        """Returns the network's output for all entries of the batch, its memory, and what patches reported."""
        b, k = x.shape[0], len(branches)
        t = _repeated(jnp.broadcast_to(jnp.asarray(row.timestep, jnp.float32), (b,)), k)
        x_in = _repeated(x / jnp.sqrt(1 + per_image(row.sigma, x) ** 2), k)
        stage = jnp.broadcast_to(jnp.asarray(row.stage, jnp.int32), (b,))
        extra = []
        if isinstance(self.guidance, ClassifierFree):
            on = self.guidance.on(Call(x, row, 0.0, 0.0))
            now = {name: conditioning.at(stage) for name, conditioning in self.conditionings.items()}
            extra = self.guidance.patches(branches, now, on)
        with reporting() as reports, patched([patch for patch, _ in extra], None, [own for _, own in extra]):
            told = self.stacked[branches].at(_repeated(stage, k))
            told = dataclasses.replace(told, moment=_moment(row, b, branches))
            out, memory = network(params, x_in, t, told, memory)
        return out, memory, reports

    def _rest(self, x: Noisy, row: Rows, kept: Memory) -> Result:
        """Returns the result of the conditional branches alone. Other branches repeat the first of them."""
        assert isinstance(self.guidance, ClassifierFree)
        assert self.guidance.resting is not None
        branches, few = self.guidance.branches, self.guidance.resting
        at = jnp.asarray([branches.index(name) for name in few])
        result = self._run(few, x, row, jax.tree.map(lambda a: a[:, at], kept))
        source = jnp.asarray([few.index(name) if name in few else 0 for name in branches])
        return Result(
            result.outputs[:, source],
            jax.tree.map(lambda old, new: old.at[:, at].set(new), kept, result.kept),
            jax.tree.map(jnp.zeros_like, result.reports),  # of another branch: nobody uses them
        )

    def _again(self, row: Rows, some: jax.Array | bool, name: str, x: Noisy) -> Noisy:
        """Returns the x0 of one branch for another x, by a further call of the network without memory.

        The name WEAK calls the second network with the conditional branch. The call is left out if no picture is
        guided.
        """
        network, params, prediction = self.network, self.params, self.prediction
        if name == WEAK:
            assert self.weak is not None  # `make_denoiser` checks it
            network, params, prediction = self.weak
            name = "conditional"

        def call(x: Noisy) -> Noisy:
            out, *_ = self._call(network, params, (name,), x, row, network.init(params, x))
            of_x, of_output = PREDICTIONS[prediction].x0(per_image(row.sigma, x))
            return jnp.asarray(of_x * x + of_output * out.astype(jnp.float32))

        return call(x) if some is True else jax.lax.cond(jnp.any(some), call, lambda x: x, x)


def _repeated(x: jax.Array, branches: int) -> jax.Array:
    """Returns one copy of each entry for each branch."""
    return x if branches == 1 else jnp.repeat(x, branches, axis=0)


def _moment(row: Rows, b: int, branches: tuple[str, ...]) -> Moment:
    """Returns where in its run each entry of a call for b pictures is."""
    index, step, num_steps = (
        _repeated(jnp.broadcast_to(jnp.asarray(a, jnp.int32), (b,)), len(branches))
        for a in (row.index, row.step, row.num_steps)
    )
    return Moment(index, step, num_steps, branches)


def _apart(tree: Memory, branches: int) -> Memory:
    """Returns arrays [b * branches, ...] as [b, branches, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, branches, *a.shape[1:]), tree)


def make_denoiser(
    network: Network,
    params: Params,
    prediction: str,
    branches: Sequence[Conditioning],
    guidance: Guidance,
    weak: Weak | None = None,
) -> NetworkDenoiser:
    """Returns the denoiser of a network that predicts "epsilon", "v" or "x0".

    `branches` are the conditionings of `conditionings_of(guidance)`, in that order. `weak` is the second network of
    autoguidance.

    Raises ValueError for an unknown prediction, a wrong number of branches, branches that cannot be stacked
    (`conditioning.stack`), and autoguidance without a second network.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction {prediction!r}; the known ones are {', '.join(PREDICTIONS)}")
    names = conditionings_of(guidance)
    if len(branches) != len(names):
        raise ValueError(f"this guidance needs {len(names)} conditionings, {', '.join(names)}; got {len(branches)}")
    if weak is None and needs_weak(guidance):
        raise ValueError("autoguidance needs a second, weaker model: make the pipeline with pipe.guided_by(weaker)")
    told = dict(zip(names, branches))
    sets = {guidance.branches, *((name,) for name in names)}
    if isinstance(guidance, ClassifierFree) and guidance.resting is not None:
        sets.add(guidance.resting)
    # Stacked here, outside of the scan: inside, every row would do it again
    stacked = {some: stack([told[name] for name in some]) for some in sets}
    return NetworkDenoiser(network, params, prediction, told, stacked, guidance, weak)


def conditionings_of(guidance: Guidance) -> tuple[str, ...]:
    """Returns the names of all conditionings that guidance needs: its branches first, then what its patches use."""
    aside = guidance.aside if isinstance(guidance, ClassifierFree) else ()
    return tuple(dict.fromkeys((*guidance.branches, *aside)))


def needs_weak(guidance: Guidance) -> bool:
    """Returns whether guidance calls a second network."""
    return isinstance(guidance, ClassifierFree) and any(rule.needs_weak for rule in guidance.rules)
