"""What a picture's file records of how it was made: its settings, its model, its prompts as drawn, hashes of files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.tasks.recording import recorded_options

OF_SAMPLER = (
    "sampler",
    "sampler_options",
    "eta",
    "spacing",
    "schedule",
    "schedule_options",
)  # settings that together make the sampler
OF_TASK = ("height", "width", "strength")  # settings that tasks get and record besides
RECORDED_AS = {"num_steps": "steps"}  # names in a picture's file, where they differ from the fields'


def describe(settings: Mapping[str, Any], config: Any, name: str, sampler: Any) -> dict[str, Any]:
    """Returns the recorded settings of a picture: those of every picture, and others unless at their defaults.

    `settings` are fields of `Request`, `config` is the model's, and `name` is that of the `sampler`.
    """
    from sdjax.tasks.compat import profile_of
    from sdjax.tasks.distilled import outer_scale
    from sdjax.tasks.request import Request
    from sdjax.tasks.resolve import USUAL_STEPS, counted

    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    settings = dict(settings)
    scale, steps = settings.pop("guidance_scale", None), settings.pop("num_steps", None)
    scale = config.guidance_scale if scale is None else scale
    negative = settings.pop("negative_prompt", None)
    others = {
        RECORDED_AS.get(key, key): value
        for key, value in settings.items()
        if key not in (*OF_SAMPLER, *OF_TASK, "merge_with") and value != defaults.get(key)
    }
    unused = outer_scale(config, scale) == 1 and settings.get("guidance") is None and not sampler.uses_unconditional
    return {
        **({} if unused else {"negative_prompt": negative or ""}),
        "sampler": name,
        "sampler_options": recorded_options(sampler),
        "steps": counted(sampler, USUAL_STEPS if steps is None else steps),
        "guidance_scale": scale,
        "prompt_syntax": profile_of(settings.get("compat")).prompt_syntax,
        **others,
    }


def describe_computing(
    task: str, pipe: Any, devices: Sequence[Any] | None, *, exact: bool = False, parallel: str = "jit",
    split_picture: int = 1, variant: str | None = None, ema: str = "auto", quantise: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Returns what all pictures of a run share: the task, how the model was read, and what computed them.

    `devices` None are all of this process.
    """
    import jax

    from sdjax._version import __version__
    from sdjax.nn.jax_settings import recorded
    from sdjax.pipeline.low_memory import LowMemoryPipeline

    jax_settings = recorded()
    devices = jax.local_devices() if devices is None else devices
    return {
        "task": task,
        "variant": variant,
        "ema": ema,
        "config": pipe.config.name,
        "prediction": pipe.config.schedule.prediction,
        "dtype": pipe.dtype,
        **({} if quantise == "auto" else {"quantise": quantise}),
        "exact": exact,
        "parallel": parallel,
        **({} if split_picture == 1 else {"split_picture": split_picture}),
        **({"low_memory": True} if isinstance(pipe, LowMemoryPipeline) else {}),
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "versions": {"sdjax": __version__, "jax": jax.__version__},
        **({"jax_settings": jax_settings} if jax_settings else {}),
    }


def expanded(prompt: str, seed: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns a picture's prompts with styles and random choices, where they differ from the typed ones.

    `settings` are fields of `Request`.
    """
    from sdjax.tasks.prompting import Typed, final_texts

    fields = {name: value for name, value in settings.items() if name in Typed._fields}
    one = Typed(**{**fields, "prompt": prompt, "seed": seed})
    names = "expanded_prompt", "expanded_negative_prompt"
    pairs = zip(names, final_texts([one])[0], (one.prompt, one.negative_prompt or ""), strict=True)
    return {name: text for name, text, own in pairs if text != own}


def hashes_of(
    pipe: Any, merged: Sequence[Any], settings: Mapping[str, Any], prompt: str, negative: str
) -> dict[str, Any]:
    """Returns the short hashes of the adapters and embeddings of a picture, {"hashes": {"lora": {name: hash}, ...}}.

    `merged` are adapters besides those that `settings` name, which are the picture's fields of `Request`. Nothing is
    returned without any.
    """
    from sdjax.tasks.adapters import files_named
    from sdjax.tasks.compat import profile_of
    from sdjax.tasks.embeddings import embeddings_in

    files = files_named(prompt, settings.get("loras"), settings.get("lora_dir"), pipe.config)
    syntax = settings.get("prompt_syntax") or profile_of(settings.get("compat")).prompt_syntax
    words = embeddings_in(
        (prompt, negative),
        settings.get("word_embeddings") or (),
        settings.get("embedding_dir"),
        (),
        pipe.config,
        syntax,
    )
    found = {
        "lora": {one.name: one.short_hash for one in (*merged, *files) if one.short_hash},
        "embedding": {one.word: one.short_hash for one in words if one.short_hash},
    }
    kept = {name: hashes for name, hashes in found.items() if hashes}
    return {"hashes": kept} if kept else {}
