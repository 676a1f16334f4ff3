"""Reads the folder of a training (`sdjax train --workdir`): start model, checkpoints, trained model.

Nothing here needs the training code.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sdjax import convert, errors
from sdjax.convert.bundle import Bundle
from sdjax.convert.write.outputs import WRITING
from sdjax.convert.write.writing import write_bundle
from sdjax.description import build
from sdjax.few_step import MOST_STEPS
from sdjax.loading import reference
from sdjax.loading.run_layout import BASE, CHECKPOINTS, SETTINGS, absolute, workdir
from sdjax.loading.start_model import ModelSource, open_start
from sdjax.loading.trainable import Addition, Trainable, trainable_of
from sdjax.nn.jax_settings import pinned
from sdjax.storage import manifest


def trained(folder: str | pathlib.Path, *, ema: str = "auto", step: int | None = None) -> tuple[int, Bundle]:
    """Returns the number of steps and the trained model: the start model with the trained parameters.

    Vectors of new words are no part of it (`trained_words`).

    `ema`: "yes" takes the moving average, "no" the parameters themselves, "auto" the average if there is one. `step`
    chooses a checkpoint; the default is the newest intact one. Raises ValueError if there is none.
    """
    number, trainable, learned = _learned(folder, ema, step)
    start = read_start(workdir(folder))
    whole = trainable.assemble(learned, start.params)
    params = {name: _like(whole[name], start.params[name]) for name in start.params}
    model, word = start.with_params(params), few_step_of_run(read_settings(workdir(folder)))
    return number, model if word is None else dataclasses.replace(
        model, config=dataclasses.replace(model.config, few_step=word)
    )


def few_step_of_run(settings: Mapping[str, Any]) -> str | None:
    """Returns how models that a run distilled are sampled (`sdjax.few_step`); None for other runs."""
    objective = settings.get("objective") or {}
    if objective.get("kind") != "consistency":
        return None
    phases = objective.get("phases")
    return "lcm" if phases is None else f"pcm:{min(phases, MOST_STEPS)}"


def trained_words(folder: str | pathlib.Path, *, ema: str = "auto", step: int | None = None) -> dict[str, Any]:
    """Returns the vectors [n, d] of each word that a run added. The arguments and errors are `trained`'s."""
    what = trainable_of(read_settings(workdir(folder)).get("trainable", {}))
    if not isinstance(what, Addition) or not what.added:
        return {}
    return what.embeddings(_learned(folder, ema, step)[2])


def _learned(folder: str | pathlib.Path, ema: str, step: int | None) -> tuple[int, Trainable, Any]:
    """Returns the number of steps, what learned, and its parameters."""
    place = workdir(folder)
    settings = read_settings(place)
    has_average = settings["ema"]["decay"] is not None
    if ema == "yes" and not has_average:
        raise ValueError(f'{folder} was trained without a moving average: choose ema "no"')
    part = "ema_params" if has_average and ema != "no" else "params"
    found = read_parts(place / CHECKPOINTS, part, step=step)
    if found is None:
        raise ValueError(f"{folder} holds no checkpoint yet")
    number, parts = found
    return number, trainable_of(settings.get("trainable", {})), jax.tree.map(np.asarray, parts[part])


def _like(tree: Any, model: Any) -> Any:
    """Returns the entries of a tree that a model's tree has: a discriminator is no part of it, nor are new words."""
    if not isinstance(model, Mapping):
        return tree
    return {name: _like(tree[name], below) for name, below in model.items()}


@pinned()
def read_start(folder: pathlib.Path) -> Bundle:
    """Returns the start model of a run: its copy, or the files that `base.json` names.

    Raises ConfigError if these are gone or have changed.
    """
    if (folder / BASE / "config.json").exists():
        kept = convert.load_model(folder / BASE)
        return kept.with_params(kept.params, notices=())
    settings = read_settings(folder)
    source = reference.find(folder, build(ModelSource, settings["model"], "model"))
    return open_start(source, settings["seed"])


def keep_start(start: Bundle, folder: pathlib.Path, what: str = WRITING, advice: str = "") -> None:
    """Writes a start model as a native folder, replacing an old one. `what` and `advice` are for errors (`doing`)."""
    try:
        write_bundle(start, folder, "native", overwrite=True)
    except OSError as error:
        needs = sum(leaf.nbytes for leaf in jax.tree.leaves(start.params))
        raise errors.as_sentence(error, what, folder, needs, advice) if error.errno else error from error


def read_settings(folder: pathlib.Path) -> Mapping[str, Any]:
    """Returns the settings of a run."""
    with errors.doing("reading the settings", folder / SETTINGS):
        return json.loads((folder / SETTINGS).read_text())


def read_parts(
    folder: str | pathlib.Path, *names: str, step: int | None = None, say: Callable[[str], None] = print
) -> tuple[int, dict[str, Any]] | None:
    """Returns the step of the newest intact checkpoint and the named parts of its state. None if there is none.

    A part, such as "ema_params", is a tree of dicts and lists of NumPy arrays. Other parts of the state are not read.
    `step` and `say` are as in `Checkpoints`.

    Raises ValueError if all checkpoints are damaged, or a part is missing.
    """
    place = absolute(folder)
    chosen, _ = manifest.intact(place, step, say)
    if chosen is None:
        return None
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = reader.metadata(manifest.path(place, chosen)).item_metadata.tree
        missing = [name for name in names if name not in stored]
        if missing:
            raise ValueError(
                f"checkpoint {chosen} in {folder} holds no {' and no '.join(missing)}; it holds {', '.join(stored)}"
            )
        parts = {name: stored[name] for name in names}
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), parts)
        item = ocp.args.PyTreeRestore(parts, restore_args=args, partial_restore=True)
        return chosen, reader.restore(manifest.path(place, chosen), args=item)
