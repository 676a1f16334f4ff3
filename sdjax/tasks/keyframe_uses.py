"""Adapters and hypernetworks of keyframes, and those of the frames between them."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.batch import Batch
from sdjax.tasks.hypernetworks import HypernetworkUse
from sdjax.tasks.keyframes import between, straight
from sdjax.tasks.resolve import Resolved

Use = TypeVar("Use", AdapterUse, HypernetworkUse)
Shares = Float[np.ndarray, "b keyframes"]


def shares_at(count: int, positions: np.ndarray) -> Shares:
    """Returns the share of each of `count` keyframes in frames at these positions (`frame_positions`)."""
    return between(np.eye(count), positions, straight)


def with_uses(batch: Batch, keyframes: Sequence[Resolved], shares: Shares) -> Batch:
    """Returns the batch with the keyframes' adapters and hypernetworks in its pictures.

    `shares` are those of the keyframes in each picture, which multiply the weights in the UNet. So a keyframe has its
    own, and all pictures have equally many. Pictures are as they are if all keyframes have none.
    """
    adapters = _mixed([one.adapters for one in keyframes], shares, _adapter, _weight, _at_weight)
    nets = _mixed([one.hypernetworks for one in keyframes], shares, _net, _strength, _at_strength)
    requests = [
        dataclasses.replace(request, adapters=own, hypernetworks=own_nets)
        for request, own, own_nets in zip(batch.requests, adapters, nets, strict=True)
    ]
    out = dataclasses.replace(batch, requests=requests)
    out.streams.update(batch.streams)  # the noise goes on where it is
    return out


def _mixed(
    keyframes: Sequence[Sequence[Use]],
    shares: Shares,
    name: Callable[[Use], Hashable],
    weight: Callable[[Use], float],
    at: Callable[[Use, float], Use],
) -> list[tuple[Use, ...]]:
    """Returns what the pictures use: all that a keyframe uses, weighted by the keyframes' shares."""
    known = {name(use): use for uses in keyframes for use in uses}
    weights = [{name(use): weight(use) for use in uses} for uses in keyframes]
    table = np.array([[own.get(one, 0.0) for one in known] for own in weights])  # [keyframes, uses]
    of_pictures = shares @ table
    return [tuple(at(use, float(own)) for use, own in zip(known.values(), row, strict=True)) for row in of_pictures]


def _adapter(use: AdapterUse) -> Hashable:
    return id(use.adapter), use.span, use.strength.blocks


def _weight(use: AdapterUse) -> float:
    return use.strength.unet


def _at_weight(use: AdapterUse, weight: float) -> AdapterUse:
    return dataclasses.replace(use, strength=dataclasses.replace(use.strength, unet=weight))


def _net(use: HypernetworkUse) -> Hashable:
    return id(use.network), use.span


def _strength(use: HypernetworkUse) -> float:
    return use.strength


def _at_strength(use: HypernetworkUse, strength: float) -> HypernetworkUse:
    return dataclasses.replace(use, strength=strength)
