"""The text encoders of pictures: the model's own, or one with a picture's adapters and words. Each is made once."""

import collections
import dataclasses
import operator
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sdjax.pipeline.model import Pipeline
from sdjax.tasks.adapters import AdapterUse, changes_text, text_params
from sdjax.tasks.resolve import Resolved

MOST = 8  # encoders that are kept for a model


class _Made(NamedTuple):
    """An encoder, and what it was made of: adapters, and the leaves of the model's own text encoder."""

    encoder: Pipeline
    uses: tuple[AdapterUse, ...]
    leaves: list[Any]


_made: weakref.WeakKeyDictionary[Pipeline, collections.OrderedDict[Any, _Made]] = weakref.WeakKeyDictionary()


def encoder_of(pipe: Pipeline, request: Resolved, mesh: Mesh) -> Pipeline:
    """Returns the pipeline that encodes a picture's prompts, on the devices of a mesh.

    It is the model's, or one whose text encoder has the adapters merged into it and knows the words of embeddings. The
    last MOST of a model are kept, so that batches and calls with the same adapters merge once.
    """
    uses = tuple(use for use in request.adapters if changes_text([use]))
    words = {one.word: one.vectors for one in request.word_embeddings}
    if not uses and not words:
        return pipe
    key = tuple((id(use.adapter), use.strength) for use in uses), _key(words)
    base = pipe.on(mesh)["text"]
    leaves = jax.tree.leaves(base)
    made = _made.setdefault(pipe, collections.OrderedDict())
    if key not in made or not all(map(operator.is_, made[key].leaves, leaves)):
        own = dataclasses.replace(pipe, params={"text": text_params(uses, base) if uses else base})
        made[key] = _Made(own.with_embeddings(words), uses, leaves)
    made.move_to_end(key)
    while len(made) > MOST:
        made.popitem(last=False)
    return made[key].encoder


def _key(words: Mapping[str, np.ndarray]) -> tuple[tuple[str, bytes], ...]:
    return tuple((word, vectors.tobytes()) for word, vectors in words.items())
