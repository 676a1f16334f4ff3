"""Merging whole models, and running a recipe again."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters.delta import Adapter, AdapterError, Strength, changed
from sdjax.config import ModelConfig
from sdjax.convert.adapters.load import load_adapter
from sdjax.convert.bundle import Bundle
from sdjax.convert.containers.lazy import LazyTensor, float_type, same_bytes
from sdjax.convert.errors import CheckpointError, listed
from sdjax.convert.merge.recipe import (
    LETTERS,
    MERGED,
    RECIPE_KEY,
    Recipe,
    Settings,
    Source,
    find,
    fingerprint,
    read_recipe,
)
from sdjax.convert.merge.table import METHODS
from sdjax.convert.merge.tensors import drawn, merged
from sdjax.convert.model import load_model
from sdjax.convert.names import naming, tables
from sdjax.convert.write.outputs import FILES, WRITING, check_not_input, check_output, layout_of
from sdjax.convert.write.safetensors_writer import tensors_of
from sdjax.convert.write.writing import write_bundle, written_without

Path = str | os.PathLike[str]
Use = tuple[Path, float | Strength]  # an adapter's file and its weight
_POSITIONS = "position_ids"
_OF_THE_FIRST = re.compile(r"(modelspec\.(hash_sha256|title|date|thumbnail|description|merged_from)|sshs_.*)")


def merge_models(
    sources: Sequence[Path],
    target: Path,
    settings: Settings,
    *,
    loras: Sequence[Use] = (),
    vae: Path | None = None,
    dtype: str | None = None,
    to: str = "auto",
    ema: str = "auto",
    prediction: str | None = None,
    overwrite: bool = False,
    lossy: bool = False,
) -> tuple[str, ...]:
    """Writes the mixture of models, tensor by tensor, and returns notes for its user.

    `settings` say how they are merged. `loras` are added to the mixture. `vae` is a file to take the autoencoder from.
    Each tensor is computed in float32 and rounded once, to the first model's type or to `dtype`. The other arguments
    are those of `sdjax.convert.convert`. The recipe is written into the metadata.

    Raises CheckpointError for files that cannot be read, models of different kinds, and numbers that are not finite;
    ValueError for settings that do not fit; FileExistsError where something may not be replaced.
    """
    settings.check_models(len(sources))
    if settings.method is None and not loras:
        raise ValueError("there is nothing to merge: give several models and a method, or an adapter")
    layout = layout_of(target, to)
    check_not_input(target, *sources, *(path for path, _ in loras), vae)
    check_output(target, overwrite, WRITING, folder=layout not in FILES)
    if dtype is not None:
        dtype = str(float_type(dtype))
    bundles = [load_model(source, prediction=prediction, ema=ema) for source in sources]
    check_alike(bundles, settings)
    recipe = Recipe(
        settings, tuple(map(fingerprint, sources)), tuple(_used(*use) for use in loras),
        None if vae is None else fingerprint(vae), ema, prediction, dtype,
    )  # fmt: skip
    model, notices = run(recipe, bundles, [path for path, _ in loras], vae, sources)
    write_bundle(model, target, layout, overwrite=overwrite, lossy=lossy)
    return (*notices, *written_without(model, layout, dtype))


def _used(path: Path, weight: float | Strength) -> Source:
    strength = weight if isinstance(weight, Strength) else Strength(float(weight))
    return dataclasses.replace(
        fingerprint(path), weight=strength.unet, text_weight=strength.text, blocks=strength.blocks
    )


def run(
    recipe: Recipe, bundles: Sequence[Bundle], loras: Sequence[Path], vae: Path | None, sources: Sequence[Path]
) -> tuple[Bundle, list[str]]:
    """Returns the mixture as a recipe says, its parameters not computed yet, and notes for its user."""
    first = bundles[0]
    notices = [f"{letter}: {notice}" for letter, one in zip(LETTERS, bundles) for notice in one.report.notices]
    if vae is not None:  # a lone autoencoder takes the place of A's
        read = load_model(sources[0], prediction=recipe.prediction, ema=recipe.ema, vae=vae)
        first = dataclasses.replace(first, leaves=dict(read.leaves))
    model = merge_bundles([first, *bundles[1:]], recipe.settings)
    pairs = []
    for path, use in zip(loras, recipe.loras, strict=True):
        loaded = load_adapter(path, model.config)
        notices += [f"{use.name}: {notice}" for notice in loaded.notices]
        pairs.append((loaded.adapter, Strength(use.weight or 0.0, use.text_weight, use.blocks)))
    model = _with_adapters(model, pairs)
    metadata = {key: text for key, text in model.metadata.items() if not _OF_THE_FIRST.fullmatch(key)}
    names = ", ".join(one.name for one in (*recipe.models, *recipe.loras))
    metadata |= {RECIPE_KEY: recipe.to_json(), "modelspec.merged_from": names}
    leaves = {path: leaf.cast(first.leaves[path].dtype) for path, leaf in model.leaves.items()}
    model = dataclasses.replace(model, leaves=leaves, metadata=metadata, licences=_licences(bundles), cards={})
    return model.cast(recipe.dtype), notices


def merge_bundles(bundles: Sequence[Bundle], settings: Settings) -> Bundle:
    """Returns the mixture of models, each merged tensor in float32 and computed when it is read.

    UNet and text encoder are merged, the latter if `settings` do not name another. The autoencoder is A's unless they
    do. What is no parameter (position ids, noise tables, tokenizer) and other networks are A's; unknown tensors that
    only the other models have are appended. The other set of the
    UNet's weights, averaged or not, was left out when the models were read. Raises CheckpointError for models of
    different kinds.
    """
    settings.check_models(len(bundles))
    check_alike(bundles, settings)
    first = bundles[0]
    if settings.method is None:
        return first
    leaves = dict(first.leaves)
    whose = {"text": settings.text_from, "vae": settings.vae_from}
    for part, letter in whose.items():
        if letter != MERGED:
            own = bundles[LETTERS.index(letter)].leaves
            leaves |= {path: leaf for path, leaf in own.items() if path.startswith(f"{part}/") and path in leaves}
    parts = {"unet", *(part for part, letter in whose.items() if letter == MERGED)}
    entries = [entry for entry in tables.entries(first.config, "ldm") if entry.part in parts]
    stored = [tensors_of(bundle, "ldm") for bundle in bundles]
    chosen = [{entry.name: tensors[entry.name] for entry in entries} for tensors in stored]
    method, density = METHODS[settings.method], 1.0 if settings.density is None else settings.density
    made = merged(
        method, chosen, settings.ratios_of(len(bundles)), density=density, sign=settings.sign or "total",
        mask=drawn(settings.seed or 0, density) if "seed" in method.options else None,
    )  # fmt: skip
    for entry in entries:
        leaves |= entry.split(made[entry.name])
    return dataclasses.replace(first, leaves=leaves, extras=_appended(bundles), in_memory=None)


def _appended(bundles: Sequence[Bundle]) -> dict[str, LazyTensor]:
    """Returns what the models have beside their parameters: A's, then tensors of B, C, ... that A lacks.

    As in AUTOMATIC1111's merger, only names with "model" in them are appended, and no position ids.
    """
    first, *others = bundles
    out = dict(first.extras)
    for bundle in others:
        for name, tensor in bundle.extras.items():
            if "model" in name and not name.endswith(_POSITIONS) and not name.startswith(naming.EMA_PREFIX):
                out.setdefault(name, tensor)
    return out


def check_alike(bundles: Sequence[Bundle], settings: Settings) -> None:
    """Raises CheckpointError for models of different kinds."""
    first = bundles[0].config
    for letter, bundle in zip(LETTERS[1:], bundles[1:]):
        other = bundle.config
        ours, theirs = first.unet.in_channels, other.unet.in_channels
        if theirs > ours:
            raise CheckpointError(
                f"model {letter} takes {theirs} channels and model A {ours}: a model for inpainting can only be A, "
                "so name it first"
            )
        if theirs < ours and theirs != other.unet.out_channels:
            raise CheckpointError(f"model {letter} takes {theirs} channels, model A {ours}: they cannot be merged")
        for name, a, b in _differences(first, other, settings):
            raise CheckpointError(
                f"models A ({first.name}) and {letter} ({other.name}) are of different kinds and cannot be merged: "
                f"{name} is {a} and {b}"
            )


def _differences(first: ModelConfig, other: ModelConfig, settings: Settings) -> list[tuple[str, Any, Any]]:
    pairs: list[tuple[str, Any, Any]] = [
        ("unet", dataclasses.replace(first.unet, in_channels=1, linear_projection=False),
         dataclasses.replace(other.unet, in_channels=1, linear_projection=False)),
        ("text", first.text, other.text),
        ("schedule", first.schedule.prediction, other.schedule.prediction),
    ]  # fmt: skip
    if settings.vae_from != "A":
        pairs.append(("vae", first.vae, other.vae))
    out = []
    for part, a, b in pairs:
        if isinstance(a, str):
            out += [("the prediction", a, b)] if a != b else []
        else:
            names = [field.name for field in dataclasses.fields(a)]
            out += [(f"{part}.{n}", getattr(a, n), getattr(b, n)) for n in names if getattr(a, n) != getattr(b, n)]
    return out


def _with_adapters(model: Bundle, pairs: Sequence[tuple[Adapter, Strength]]) -> Bundle:
    """Returns the model with adapters added to its parameters, each computed when it is read."""
    leaves = dict(model.leaves)
    for path in dict.fromkeys(path for adapter, _ in pairs for path in adapter):
        base = leaves[path]
        changes = [(adapter[path], strength.of(path)) for adapter, strength in pairs if path in adapter]

        def read(base: LazyTensor = base, path: str = path, changes: list[Any] = changes) -> np.ndarray:
            try:
                with jax.default_device(jax.local_devices(backend="cpu")[0]):
                    made = np.asarray(changed(jnp.asarray(base.read(), jnp.float32), changes))
            except AdapterError as error:
                raise CheckpointError(f"the adapter does not fit {path}: {error}") from None
            if not np.isfinite(made).all():
                raise CheckpointError(f"with the adapter {path} has numbers that are not finite; nothing was written")
            return made

        leaves[path] = LazyTensor(base.shape, np.dtype(np.float32), read, base.release, base.name)
    return dataclasses.replace(model, leaves=leaves)


def _licences(bundles: Sequence[Bundle]) -> Mapping[str, str]:
    """Returns the licences of all models, each text once."""
    out = dict(bundles[0].licences)
    for letter, bundle in zip(LETTERS[1:], bundles[1:]):
        for i, text in enumerate(bundle.licences.values()):
            if text not in out.values():
                out[f"LICENSE-{letter}{i or ''}"] = text
    return out


def reproduce_merge(
    path: Path, places: Sequence[Path], target: Path | None = None, *, to: str = "auto", overwrite: bool = False
) -> Recipe:
    """Runs a merged model's recipe again, compares every parameter bit for bit, and returns the recipe.

    `places` are where its models and adapters are (`recipe.find`). With `target` the result is written too. Raises
    CheckpointError if there is no recipe, a file is not found, or the result is another one.
    """
    old = load_model(path)
    recipe = read_recipe(old.metadata)
    if recipe is None:
        raise CheckpointError("it holds no recipe of a merge (sdjax merge writes one)", path)
    layout = None if target is None else layout_of(target, to)
    if target is not None:
        check_not_input(target, path)
        check_output(target, overwrite, WRITING, folder=layout not in FILES)
    wanted = [*recipe.models, *recipe.loras, *([recipe.vae] if recipe.vae else [])]
    found = find(wanted, places)
    sources, rest = found[: len(recipe.models)], found[len(recipe.models) :]
    bundles = [load_model(source, prediction=recipe.prediction, ema=recipe.ema) for source in sources]
    check_alike(bundles, recipe.settings)
    vae = rest[-1] if recipe.vae else None
    model, _ = run(recipe, bundles, rest[: len(recipe.loras)], vae, sources)
    differ = [name for name, leaf in model.leaves.items() if not _same(leaf, old.leaves.get(name))]
    if differ:
        raise CheckpointError(
            f"its recipe gives other numbers in {len(differ)} of {len(model.leaves)} parameters: {listed(differ)}; it "
            "was changed after merging, or merged by another kind of computer", path,
        )  # fmt: skip
    if target is not None and layout is not None:
        write_bundle(model, target, layout, overwrite=overwrite)
    return recipe


def _same(one: LazyTensor, other: LazyTensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    equal = same_bytes(one.read(), other.read())
    one.release()
    other.release()
    return equal


__all__ = ["Settings", "merge_bundles", "merge_models", "reproduce_merge"]
