"""Prompts behind the interface of the parity kit."""

import numpy as np

from sdjax.pipeline.contexts import encode_texts, read_text
from sdjax.pipeline.model import Pipeline
from sdjax.prompts import padding
from sdjax.prompts.attention import comfyui_pieces, web_ui_pieces
from sdjax.prompts.chunks import Encoder
from sdjax.prompts.clip_skip import layers_used
from sdjax.prompts.language import Language
from sdjax.prompts.schedule import schedule, split_and, text_at
from sdjax.prompts.tokenizer import Tokenizer

EMPHASES = {"Original": "original", "No norm": "no_norm", "Ignore": "ignore", "None": "none"}
PADS = {"v1": 49407, "v2": 0}


def a1111_attention(text):
    return [list(piece) for piece in web_ui_pieces(text)]


def a1111_schedule(text, steps, hires_steps, use_old):
    if hires_steps is None or use_old:
        return schedule(text, steps, old=use_old)
    return schedule(text, hires_steps, after=steps)


def a1111_prompt_at(text, steps, step):
    return text_at(schedule(text, steps), step)


def a1111_and(text):
    return split_and(text)


def a1111_chunks(text, family, emphasis, comma_padding_backtrack):
    language = Language("weights", EMPHASES[emphasis], comma_padding_backtrack)
    return _chunks(text, language, family)


def comfyui_weights(text):
    return [list(piece) for piece in comfyui_pieces(text)]


def comfyui_chunks(text, family):
    return _chunks(text, Language("comfyui"), family)


def _chunks(text, language, family):
    return [(chunk.ids, chunk.weights) for chunk in language.chunks(text, Encoder(Tokenizer(), pad=PADS[family]))]


def pad_contexts(tool, cond, uncond, empty):
    how = padding.EMPTIES if tool == "a1111" else tool
    pairs = [padding.pad_contexts(how, [c], u, e) for c, u, e in zip(cond, uncond, empty, strict=True)]
    return np.stack([c for (c,), _ in pairs]), np.stack([u for _, u in pairs])


def context_of(model, tool, text, options):
    """Returns the context of a text by the tool's rules, [1, n, d]."""
    pipe = Pipeline(model.config, model.params, Tokenizer(), bundle=model.bundle)
    syntax = {"a1111": "weights", "comfyui": "comfyui", "diffusers": "plain"}[tool]
    emphasis = EMPHASES[options["emphasis"]] if tool == "a1111" else None
    skip = options["clip_skip"]
    layers = layers_used(model.config.text, None if skip is None else f"{tool}:{skip}")
    return np.stack(encode_texts(pipe, [read_text(pipe, text, Language(syntax, emphasis), layers)], at_a_time=1))
