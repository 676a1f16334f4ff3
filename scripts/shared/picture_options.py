"""The options of each picture: the fields of `sdjax.Request` that flags set, and those that a picture has of its own.

A picture's own settings are from a JSON line of --from-file, or from --sweep (`sdjax.tasks.settings`).
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax import names
from sdjax.scripts.shared import large_flags, named_files, noise_flags, prompt_flags, runtime
from sdjax.scripts.shared.prompts import PromptBatch
from sdjax.tasks import describing
from sdjax.tasks.describing import OF_SAMPLER


class PictureOptions:
    """What the flags say about every picture, and what single pictures have instead.

    `name` and `spacing` are the sampler's by the flags, `guidance` the fields of `Request` about guidance. `schedule`
    is the model's noise schedule, once it is known: it chooses the sampler's default spacing.
    """

    def __init__(self, args: argparse.Namespace, name: str, spacing: Any, guidance: Mapping[str, Any]) -> None:
        self.args, self.name, self.spacing = args, name, spacing
        self.schedule: Any = None
        self.flags: dict[str, Any] = {
            "negative_prompt": args.negative_prompt,
            "num_steps": args.steps,
            "guidance_scale": args.scale,
            "guidance_rescale": args.guidance_rescale,
            "zero_terminal_snr": args.zero_terminal_snr,
            **guidance,
            **large_flags.large_options(args),
            **noise_flags.recorded(args),
            **prompt_flags.prompting(args),
        }
        of_task = {"height": "H", "width": "W", "strength": "strength"}
        self.flags |= {name: getattr(args, flag) for name, flag in of_task.items() if name in args.own}

    def sampler(self, own: Mapping[str, Any]) -> tuple[str, Any]:
        """Returns the name and the sampler of a picture with these own settings.

        --sampler-option belongs to the sampler of the flags: a picture with another one has its own options.
        """
        from sdjax.samplers import SAMPLERS
        from sdjax.tasks.settings import schedule_of

        name, spacing = self.name, self.spacing
        if own.get("sampler") is not None:
            name, said = names.find_sampler(own["sampler"], more=SAMPLERS)
            spacing = self.spacing if said is None and "schedule" in self.args.given else said
        options = dict(own.get("sampler_options", {}))
        if own.get("spacing") is not None:
            options["spacing"], spacing = own["spacing"], None
        if own.get("schedule") is not None:
            spacing = schedule_of(own)
        eta = own.get("eta")
        texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
        if name == self.name:
            texts += [text for text in self.args.sampler_option if text.partition("=")[0] not in options]
        if eta is None and "eta" not in options:
            eta = self.args.ddim_eta
        tool = own.get("compat", getattr(self.args, "compat", None))
        return name, runtime.make_sampler(
            name, texts, eta=eta, schedule=self.noise_schedule(own), spacing=spacing, tool=tool
        )

    def noise_schedule(self, own: Mapping[str, Any]) -> Any:
        """Returns the noise schedule of a picture; None while it is not known."""
        from sdjax.tasks.request import Request
        from sdjax.tasks.resolve import rescaled

        if self.schedule is None:
            return None
        tool = own.get("zero_terminal_snr", self.args.zero_terminal_snr)
        return rescaled(self.schedule, Request(zero_terminal_snr=tool).zero_terminal_snr)

    def check(self, own: Mapping[str, Any], config: Any = None) -> None:
        """Raises ValueError for own settings that cannot be used, as far as that is known without the model.

        With the model's `config`, it raises for those that do not fit the model.
        """
        import sdjax
        from sdjax.adapters.table import make_settings
        from sdjax.checks.arguments import number
        from sdjax.tasks.resolve import check_size, counted

        _, sampler = self.sampler(own)
        if config is None:  # later names are files already
            named_files.placed(own, self.args)
        if "strength" in own:
            number("strength", own["strength"], 0, 1)
        windowed = self._merged(own).get("window") is not None
        check_size(config or sdjax.ModelConfig("any"), own.get("height"), own.get("width"), windowed=windowed)
        if config is not None:
            sampler.grid(self.noise_schedule(own), counted(sampler, own.get("num_steps", self.args.steps)))
            for setting in make_settings(self._merged(own).get("patches")):
                setting.check(config.unet)

    def for_task(self, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the arguments of a task for pictures with these own settings: one for all, or one for each."""
        from sdjax.tasks.request import Request

        defaults = {field.name: field.default for field in dataclasses.fields(Request)}
        merged = []
        for own in settings:
            one = {**self._merged(own), "sampler": self.sampler(own)[1]}
            merged.append({name: value for name, value in one.items() if name == "sampler" or name not in OF_SAMPLER})
        own_names = {"sampler" if name in OF_SAMPLER else name for own in settings for name in own}
        out = {}
        for name in dict.fromkeys(name for one in merged for name in one):
            values = [one.get(name, defaults.get(name)) for one in merged]
            out[name] = values if name in own_names else values[0]
        return out

    def _merged(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of a picture. Options of guidance belong to the guidance that they are given with."""
        without = {"guidance_options"} if "guidance" in own else set()
        return {**{name: value for name, value in self.flags.items() if name not in without}, **own}

    def final_texts(self, batch: PromptBatch) -> list[dict[str, str]]:
        """Returns for each picture its prompts with styles and random choices, where they differ from the typed ones.

        The names are those of settings: expanded_prompt and expanded_negative_prompt.
        """
        from sdjax.tasks.compat import profile_of

        out = []
        for prompt, seed, own in zip(batch.prompts, batch.seeds, batch.settings, strict=True):
            settings = self._merged(own)
            if settings.get("prompt_syntax") is None:
                settings["prompt_syntax"] = profile_of(settings.get("compat")).prompt_syntax
            out.append(describing.expanded(prompt, seed, settings))
        return out

    def style_of(self, batch: PromptBatch, index: int, description: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of the picture that this one follows, if it is style aligned; {} for the first one.

        They are those that may differ in a batch.
        """
        if index == 0 or description.get("style_aligned") is None:
            return {}
        final = {name.removeprefix("expanded_"): text for name, text in self.final_texts(batch.part([0]))[0].items()}
        return {"style_of": {"prompt": batch.prompts[0], "seed": batch.seeds[0], **batch.settings[0], **final}}

    def hashes(
        self, pipe: Any, merged: Sequence[Any], own: Mapping[str, Any], description: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the hashes of a picture's adapters and embeddings (`describing.hashes_of`)."""
        prompt, negative = (
            description.get(f"expanded_{name}", description.get(name, "")) for name in ("prompt", "negative_prompt")
        )
        return describing.hashes_of(pipe, merged, self._merged(own), prompt, negative)

    def describe(self, own: Mapping[str, Any], config: Any) -> dict[str, Any]:
        """Returns the recorded settings of a picture: those of every picture, and others unless at their defaults."""
        return {
            **describing.describe(self._merged(own), config, *self.sampler(own)),
            **({"strength": own["strength"]} if "strength" in own else {}),
        }
