"""The defaults of pictures that a distilled model or adapter makes, and the guidance scale that a model takes as input.

`sdjax.few_step` has the table.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from sdjax.checks.notes import note
from sdjax.config import ModelConfig
from sdjax.few_step import Recipe, recipe_of
from sdjax.tasks.adapters import AdapterUse
from sdjax.tasks.request import Request

Asked = TypeVar("Asked", bound=Request)


def recipe_for(config: ModelConfig, uses: Sequence[AdapterUse] = ()) -> tuple[Recipe, str] | None:
    """Returns the recipe of pictures of this model with these adapters, and what asks for it; None without one.

    The first adapter with a recipe and a weight counts, then the model.
    """
    for use in uses:
        if use.few_step and use.strength.unet:
            return recipe_of(use.few_step), use.name
    return None if config.recipe is None else (config.recipe, "the model")


def with_defaults(request: Asked, config: ModelConfig, uses: Sequence[AdapterUse]) -> Asked:
    """Returns the request with the recipe's values for fields that are None, and notes what was chosen.

    Spacing and eta go with the recipe's sampler. A whole guidance has its own scale.
    """
    found = recipe_for(config, uses)
    if found is None:
        return request
    recipe, asker = found
    chosen: dict[str, Any] = {}
    if request.sampler is None:
        chosen["sampler"] = recipe.sampler
        if request.eta is None:
            chosen["eta"] = recipe.eta
        if request.spacing is None and request.schedule is None and request.compat is None:
            chosen["spacing"] = recipe.spacing
    if request.num_steps is None:
        chosen["num_steps"] = recipe.num_steps
    if request.guidance_scale is None and (request.guidance is None or isinstance(request.guidance, str)):
        chosen["guidance_scale"] = recipe.guidance_scale
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen:
        note(said(recipe, asker, chosen))
    return dataclasses.replace(request, **chosen)


def said(recipe: Recipe, asker: str, chosen: dict[str, Any]) -> str:
    """Returns the note on what was chosen."""
    texts = (f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in chosen.items())
    return f"{asker} is distilled ({recipe.title}), so these were chosen: {', '.join(texts)}"


def outer_scale(config: ModelConfig, scale: float) -> float:
    """Returns the scale of classifier-free guidance: none for a model that takes the scale as an input."""
    return scale if config.unet.guidance_dim is None else 1.0
