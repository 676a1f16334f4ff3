"""The files that prompts use: adapters merged into the model, and the hashes that a picture's file names."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any


def merged_uses(args: argparse.Namespace, config: Any) -> Sequence[Any]:
    """Returns the adapters of --lora (`sdjax.tasks.adapters.AdapterUse`), for a model of this description."""
    from sdjax.tasks.adapter_files import Conventions
    from sdjax.tasks.adapters import check_uses, read_use
    from sdjax.tasks.compat import profile_of

    profile = profile_of(getattr(args, "compat", None))
    read_as = Conventions(
        getattr(args, "alpha_0", None) or profile.alpha_0,  # type: ignore[arg-type]
        getattr(args, "dora", None) or profile.dora,  # type: ignore[arg-type]
    )
    uses = [read_use(one, config, read_as) for one in args.lora or ()]
    check_uses(uses)
    return uses


def with_adapters(pipe: Any, args: argparse.Namespace) -> tuple[Any, Sequence[Any]]:
    """Returns a model with the adapters of --lora merged into it and the words that came with them, and the adapters.

    Raises ValueError if one is given twice or does not fit.
    """
    from sdjax.adapters import AdapterError

    uses = merged_uses(args, pipe.config)
    if not uses:
        return pipe, ()
    try:
        pipe = pipe.with_adapters(*((use.adapter, use.strength) for use in uses))
        for use in uses:
            pipe = pipe.with_embeddings(use.embeddings)
    except (AdapterError, ValueError) as error:
        raise ValueError(f"--lora {' '.join(args.lora)}: {error}") from None
    return pipe, uses


def hashes_of(
    pipe: Any, merged: Sequence[Any], settings: Mapping[str, Any], prompt: str, negative: str
) -> dict[str, Any]:
    """Returns the short hashes of the adapters and embeddings of a picture, {"hashes": {"lora": {name: hash}, ...}}.

    `merged` are the adapters of --lora, `settings` the picture's fields of `Request`. Nothing is returned without any.
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
