"""One request per picture: `expand` turns a task's arguments into requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.adapters.delta import Strength
from sdjax.checks import arguments
from sdjax.checks.arguments import texts, whole
from sdjax.tasks.compat import PAIRS
from sdjax.tasks.request import ARRAYS, LISTS, Request, is_numbers


def expand(prompt: str | Sequence[str] | None, *, num_images: int = 1, **options: Any) -> list[Request]:
    """Returns one request per picture, `num_images` of each prompt, prompt by prompt.

    `options` are fields of `Request`, each one for all pictures or one for each (`Options`). Raises ValueError if their
    numbers do not match, and whatever `Request` raises.
    """
    lists = {name: several for name, value in options.items() if (several := _several(name, value)) is not None}
    prompts = _prompts(prompt, lists.pop("prompt_embeds", None), options.pop("prompt_embeds", None))
    num_images = whole("num_images", num_images, 1)
    negatives = [lists.pop("negative_prompt", None), lists.pop("negative_prompt_embeds", None)]
    if len(prompts) == 1 and num_images == 1:
        num_images = max([1, *map(len, lists.values())])
    count = len(prompts) * num_images
    fields: list[dict[str, Any]] = [dict(prompt) for prompt in prompts for _ in range(num_images)]
    for name, several in zip(("negative_prompt", "negative_prompt_embeds"), negatives):
        if several is None:
            continue
        if len(several) not in (len(prompts), count):
            label = name.replace("_", " ")
            raise ValueError(f"give one {label}, or one for each of the {len(prompts)} prompts; got {len(several)}")
        lists[name] = several if len(several) == count else [n for n in several for _ in range(num_images)]
    lists["seed"], varied = _seeds(options.pop("seed", 0), options, lists, count)
    if varied is not None:
        lists["variation_seed"] = varied
    for name, several in lists.items():
        if len(several) != count:
            raise ValueError(f"give one {name}, or one for each of the {count} pictures; got {len(several)}")
        options.pop(name, None)
    for i, field in enumerate(fields):
        field.update(options, **{name: several[i] for name, several in lists.items()})
    return [Request(**field) for field in fields]


def _seeds(
    seed: Any, options: Mapping[str, Any], lists: Mapping[str, list], count: int
) -> tuple[list[int], list[int] | None]:
    """Returns the pictures' seeds and variation seeds, None for those of the arguments.

    One seed s gives s, s + 1, ... But if all pictures are variations, they are variations of one picture: all have the
    seed s, and one variation seed v gives v, v + 1, ...
    """
    strength = options.get("variation_strength", 0.0)
    if "variation_strength" in lists or not (isinstance(strength, float | int) and strength > 0):
        return arguments.seeds(seed, count), None
    of_all = arguments.seeds(seed, count) if arguments.is_sequence(seed) else arguments.seeds(seed, 1) * count
    if "variation_seed" in lists:
        return of_all, None
    return of_all, arguments.seeds(options.get("variation_seed"), count)


def _prompts(prompt: Any, several: list | None, embeds: Any) -> list[dict[str, Any]]:
    """Returns the fields `prompt` and `prompt_embeds` of each prompt, from texts or encoded ones."""
    if several is None and embeds is None:
        prompts = texts("prompt", prompt)
        if not prompts:
            raise ValueError("at least one prompt is needed, got none")
        return [{"prompt": text} for text in prompts]
    embeddings = [embeds] if several is None else several
    words = [] if prompt is None else texts("prompt", prompt)
    if any(words):
        raise ValueError("give either prompt or prompt_embeds, not both")
    if len(embeddings) == 1:
        embeddings = embeddings * max(1, len(words))
    if not embeddings:
        raise ValueError("at least one prompt is needed, got none")
    if len(words) > 1 and len(words) != len(embeddings):
        raise ValueError(f"give one prompt_embeds, or one for each of the {len(words)} pictures; got {len(embeddings)}")
    return [{"prompt_embeds": one} for one in embeddings]


def _is_list(value: Any) -> bool:
    """Returns whether a value is a list of additions, not a pair of an addition and its weight or vectors."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | float | Strength | np.ndarray)
    return isinstance(value, list | tuple) and not pair


def _several(name: str, value: Any) -> list | None:
    """Returns the entries if the argument has one per picture, or None if it is one value for all."""
    if name == "styles" and (isinstance(value, str) or all(isinstance(one, str) for one in value or ())):
        return None  # one list of names for all pictures
    if name == "negative_prompt":
        return None if value is None or isinstance(value, str) else texts(name, value, default="")
    if name == "schedule" and is_numbers(value):
        return None  # one schedule
    if name in LISTS:  # a pair of an adapter and its weight is one adapter
        several = arguments.is_sequence(value) and len(value) > 0 and all(map(_is_list, value))
        return list(value) if several else None
    if name == "patches":  # a sequence of patches is for all pictures; one of sequences has one for each
        several = arguments.is_sequence(value) and len(value) > 0 and all(map(arguments.is_sequence, value))
        return list(value) if several else None
    axes = len(ARRAYS.get(name, ""))
    if name in PAIRS and arguments.is_sequence(value) and not any(map(arguments.is_sequence, value)):
        return list(value) if None in value else None
    return list(value) if arguments.is_sequence(value) and getattr(value, "ndim", axes + 1) > axes else None
