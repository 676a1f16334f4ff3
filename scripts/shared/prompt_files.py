"""The files that prompts use: adapters merged into the model."""

import argparse
from collections.abc import Sequence
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
