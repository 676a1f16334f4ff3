"""The defaults of --sampler, --steps and --scale for distilled models and adapters (`sdjax.few_step`)."""

import argparse
from typing import Any

from sdjax.scripts.shared.picture_options import PictureOptions
from sdjax.scripts.shared.prompts import PromptBatch


def choose_defaults(args: argparse.Namespace, options: PictureOptions, config: Any) -> list[str]:
    """Sets what the model, or an adapter of --lora, decides for the run where no flag does, and returns notes on it.

    A flag that is given wins. Changes `args` and `options`.
    """
    from sdjax.tasks.adapters import read_use
    from sdjax.tasks.distilled import recipe_for, said

    found = recipe_for(config, [read_use(text, config) for text in args.lora or ()])
    if found is None:
        return []
    recipe, asker = found
    chosen = _unset(args, recipe)
    if "sampler" in chosen:
        options.name = recipe.sampler
        if "eta" in chosen:
            args.ddim_eta = recipe.eta
        if "schedule" in chosen:
            options.spacing = recipe.spacing
    if "num_steps" in chosen:
        args.steps = options.flags["num_steps"] = recipe.num_steps
    if "guidance_scale" in chosen:
        args.scale = options.flags["guidance_scale"] = recipe.guidance_scale
    return [said(recipe, asker, chosen)] if chosen else []


def choose_for_tags(args: argparse.Namespace, batches: list[PromptBatch], config: Any) -> list[str]:
    """Sets the same for single pictures, whose prompts name adapters by tags, and returns notes on it.

    Settings of the picture and flags win. Changes the pictures' own settings.
    """
    from sdjax.tasks.adapters import named_uses, uses_in_prompt
    from sdjax.tasks.distilled import recipe_for, said

    notes = []
    for batch in batches if args.lora_dir is not None else ():
        for prompt, own in zip(batch.prompts, batch.settings, strict=True):
            steps = own.get("num_steps") or args.steps
            _, tagged = uses_in_prompt(prompt, args.lora_dir, config, steps)
            uses = named_uses(own.get("loras"), args.lora_dir, config) + tagged
            found = recipe_for(config, uses) if any(use.few_step for use in uses) else None
            if found is None:
                continue
            recipe, asker = found
            chosen = {name: value for name, value in _unset(args, recipe, own).items() if name not in own}
            own.update(chosen)
            notes += [said(recipe, asker, chosen)] if chosen else []
    return notes


def _unset(args: argparse.Namespace, recipe: Any, own: Any = ()) -> dict[str, Any]:
    """Returns the recipe's settings that no flag decides. Eta and schedule go with the recipe's sampler."""
    chosen: dict[str, Any] = {}
    if args.sampler is None and not args.plms and not args.dpm and "sampler" not in own:
        chosen["sampler"] = recipe.sampler
        named = {text.partition("=")[0] for text in args.sampler_option}
        if recipe.eta is not None and args.ddim_eta is None and "eta" not in named:
            chosen["eta"] = recipe.eta
        if recipe.spacing is not None and args.schedule is None and "spacing" not in named and args.compat is None:
            chosen["schedule"] = recipe.spacing
    if "steps" not in args.given and not _listed(args):
        chosen["num_steps"] = recipe.num_steps
    if args.scale is None:
        chosen["guidance_scale"] = recipe.guidance_scale
    return chosen


def _listed(args: argparse.Namespace) -> bool:
    """Returns whether --schedule is a list, which decides the number of steps."""
    from sdjax import names

    return args.schedule is not None and args.schedule.partition("=")[0] in names.LISTS
