"""Encoding prompts for a graph: ComfyUI's syntax, adapters on the text encoder, embeddings by name."""

import collections
import dataclasses
import re
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdjax.checks.notes import note
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline import placement
from sdjax.pipeline.contexts import encode_texts, read_text
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.clip_skip import layers_used
from sdjax.prompts.language import Language
from sdjax.serve.comfy.host import Host
from sdjax.serve.comfy.values import Clip
from sdjax.tasks.adapters import AdapterUse, changes_text, text_params
from sdjax.tasks.embeddings import read_file

EMBEDDING = re.compile(r"embedding:([^\s,():\\]+)")
MOST_EMBEDDINGS = 50  # in a prompt
MOST_CHUNKS = 64
MOST_KEPT = 4  # text encoders with adapters, of a model
COMFYUI = Language("comfyui")

_merged: weakref.WeakKeyDictionary[Pipeline, "collections.OrderedDict[Any, Pipeline]"] = weakref.WeakKeyDictionary()


@pinned()
def encode(host: Host, clip: Clip, text: str) -> np.ndarray:
    """Returns the context of a prompt, [1, n, d]. An embedding that is not there is noted and left out of the text."""
    pipe = _encoder(clip.pipe, clip.adapters)
    words: dict[str, np.ndarray] = {}
    for name in list(dict.fromkeys(EMBEDDING.findall(text)))[:MOST_EMBEDDINGS]:
        if not host.has("embedding", name):
            note(f"there is no embedding {name!r}: it is left out of the prompt")
            text = text.replace(f"embedding:{name}", "")
            continue
        loaded = read_file(str(host.file("embedding", name)), clip.pipe.config)
        words[f"embedding:{name}"] = loaded.vectors
    if words:
        pipe = pipe.with_embeddings(words)
    layers = None if clip.layer is None else layers_used(clip.pipe.config.text, f"comfyui:{clip.layer}")
    chunks = read_text(pipe, text, COMFYUI, layers)
    if len(chunks.chunks) > MOST_CHUNKS:
        raise ValueError(f"a prompt has at most {MOST_CHUNKS} chunks of {pipe.config.text.max_length} tokens")
    mesh = placement.make_mesh()
    (context,) = encode_texts(pipe, [chunks], at_a_time=mesh.size, mesh=mesh)
    return np.asarray(context, np.float32)[None]


def _encoder(pipe: Pipeline, uses: Sequence[AdapterUse]) -> Pipeline:
    """Returns the pipeline with adapters merged into its text encoder. The last few are kept."""
    own = tuple(use for use in uses if changes_text([use]))
    if not own:
        return pipe
    key = tuple((id(use.adapter), use.strength) for use in own)
    kept = _merged.setdefault(pipe, collections.OrderedDict())
    if key not in kept:
        params = {"text": text_params(own, pipe.params["text"])}
        kept[key] = dataclasses.replace(pipe, params=params)
        _owners[kept[key]] = own
    kept.move_to_end(key)
    while len(kept) > MOST_KEPT:
        kept.popitem(last=False)
    return kept[key]


_owners: weakref.WeakKeyDictionary[Pipeline, tuple[AdapterUse, ...]] = weakref.WeakKeyDictionary()  # keeps ids valid
