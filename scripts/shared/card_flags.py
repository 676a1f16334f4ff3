"""The flags of model cards, which `sdjax card` and `sdjax push` share."""

import argparse
import dataclasses
from pathlib import Path


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, which `local_model` takes."""
    parser.add_argument(
        "path", metavar="MODEL", help="a file, a diffusers or sdjax folder, or a training's folder, of this computer"
    )


def add_card_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is in a card."""
    parser.add_argument(
        "--license",
        metavar="WORD",
        help="the hub's word for the licence, such as openrail++ or apache-2.0; default: what the model's files say",
    )
    parser.add_argument("--evaluation", metavar="FILE", help="a result of `sdjax evaluate` (JSON), for a table")


def local_model(text: str) -> Path:
    """Returns the path of a model on this computer. Raises as `sdjax.loading.hub.resolve`; ValueError for others."""
    from sdjax.loading import hub
    from sdjax.scripts.shared import options

    if text not in options.BUILTIN and not hub.is_local(text) or "://" in text:
        raise ValueError(f"the model is one of this computer; got {text!r}, which is at the hub or in a bucket")
    return Path(hub.resolve(text))


def card_of(args: argparse.Namespace, path: Path, repository: str | None, *, alone: bool = False) -> str:
    """Returns a new card for a model. One that stands `alone` links no licence text that is only in a file's header.

    Raises ValueError for a file that is no evaluation.
    """
    from sdjax.evaluate import result
    from sdjax.loading.model_card import make_card, read_facts

    table = None if args.evaluation is None else result.read(args.evaluation).table()
    facts = read_facts(path, args.variant)
    folder = path if path.is_dir() else path.parent
    if alone and facts.licence_file is not None and not (folder / facts.licence_file).is_file():
        facts = dataclasses.replace(facts, licence_file=None)
    return make_card(facts, repository=repository, licence=args.license, evaluation=table)


def own_card(args: argparse.Namespace, path: Path) -> str | None:
    """Returns the card in a model's folder, None without one. Raises ValueError if flags ask for another."""
    from sdjax.convert.checkpoint import card_files
    from sdjax.loading.uploading import CARD

    text = card_files(path).get(CARD) if path.is_dir() else None
    for flag in "license", "evaluation":
        if text is not None and getattr(args, flag) is not None:
            raise ValueError(
                f"--{flag} has no effect, because {path / CARD} is uploaded: leave it out, or write that file again "
                f"with `sdjax card --overwrite`"
            )
    return text
