"""Makes the batch of a task's arguments: how it is computed, one request per picture, and the model's defaults."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.checks.arguments import texts
from sdjax.pipeline import cache
from sdjax.pipeline.model import Pipeline
from sdjax.tasks.batch import Batch
from sdjax.tasks.computing import Computing
from sdjax.tasks.contexts import note_prompts
from sdjax.tasks.expand import expand
from sdjax.tasks.request import Each, Request
from sdjax.tasks.resolve import note_unused, resolve

COMPUTING = frozenset(field.name for field in dataclasses.fields(Computing))


def make_batch(
    pipe: Pipeline,
    prompt: str | Sequence[str] | None,
    options: Mapping[str, Any],
    *,
    num_inputs: int | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    strength: Each[float] | None = None,
) -> Batch:
    """Returns the batch of a task's prompt and `options` (`sdjax.tasks.request.Options`).

    `num_inputs` is the number of input pictures; `sizes` are their (height, width) if they differ. Raises ValueError
    for arguments out of range, and if numbers do not match.
    """
    how, requests, inputs = read_options(prompt, options, num_inputs if sizes is None else len(sizes))
    return batch_of(pipe, requests, how, inputs, None if sizes is None else [sizes[i] for i in inputs], strength)


def read_options(
    prompt: str | Sequence[str] | None, options: Mapping[str, Any], num_inputs: int | None = None
) -> tuple[Computing, list[Request], list[int]]:
    """Returns how pictures are computed, their requests, and the number of the input picture of each.

    There is one input picture for all prompts, one prompt for all pictures, or one prompt per picture.
    """
    how = Computing(**{name: value for name, value in options.items() if name in COMPUTING})
    rest = {name: value for name, value in options.items() if name not in COMPUTING}
    inputs = [0]
    if num_inputs is not None:
        if num_inputs < 1:
            raise ValueError("at least one picture is needed, got none")
        prompts = texts("prompt", prompt)
        if len(prompts) != num_inputs and 1 not in (len(prompts), num_inputs):
            raise ValueError(f"give one prompt, or one for each of the {num_inputs} pictures; got {len(prompts)}")
        inputs = list(range(num_inputs)) if num_inputs > 1 else [0] * len(prompts)
        prompt = prompts * num_inputs if len(prompts) == 1 else prompts
    requests = expand(prompt, **rest)
    return how, requests, [i for i in inputs for _ in range(len(requests) // len(inputs))]


def batch_of(
    pipe: Pipeline,
    requests: Sequence[Request],
    how: Computing,
    inputs: list[int] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    strength: Each[float] | None = None,
) -> Batch:
    """Returns the batch of requests with its starts. Raises ValueError for values that the model does not support."""
    cache.enable()
    whole = resolve(pipe, requests, sizes)
    note_unused(whole, pipe.config)
    note_prompts(pipe, whole)
    return Batch(pipe, whole, inputs or [0] * len(whole), how).starting(strength)
