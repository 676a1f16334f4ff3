"""A whole model read from a checkpoint of any layout: description, parameters, and all that came with them."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdjax import configs
from sdjax.config import PREDICTIONS, ConfigError, ModelConfig
from sdjax.convert.bundle import Bundle, Report
from sdjax.convert.containers import carried, own_settings
from sdjax.convert.containers.file_kinds import UNET_ALONE, kind_of_folder, kind_of_tensors
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe import detection, diffusers_config, ldm_config, prediction
from sdjax.convert.describe.prediction import Decision
from sdjax.convert.describe.tokens import check_tokens
from sdjax.convert.errors import CheckpointError, printable
from sdjax.convert.leaves import matched_leaves, refuse
from sdjax.convert.names import keys, tables
from sdjax.convert.names.matching import Match, match
from sdjax.convert.parts.components import depth_network, vae_leaves
from sdjax.convert.parts.towers import no_statistics, statistics, vision_tower
from sdjax.convert.sources import Source, open_source
from sdjax.nn.jax_settings import pinned
from sdjax.prompts.tokenizer import CLIP_TOKENS

FEW = 3  # names of tensors that a note repeats


@pinned()
def load_model(
    source: Any,
    config: ModelConfig | str | os.PathLike[str] | None = None,
    prediction: str | None = None,
    ema: str = "auto",
    vae: Any = None,
    dtype: str | None = None,
    variant: str | None = None,
    *,
    depth: Any = None,
    vision: Any = None,
    noise_stats: Any = None,
    keep_both: bool = False,
) -> Bundle:
    """Returns the model of a checkpoint, its parameters not read yet but checked to be all there.

    Arguments and errors are those of `sdjax.convert.load`. `keep_both` keeps the UNet's weights that `ema` did not
    choose among the extras.
    """
    kind = float_type(dtype)
    if prediction is not None and prediction not in PREDICTIONS:
        raise ValueError(f"prediction is one of {', '.join(PREDICTIONS)}; got {prediction!r}")
    if ema not in ("auto", "yes", "no"):
        raise ValueError(f"ema is 'auto', 'yes' or 'no'; got {ema!r}")
    given_config, stand_in = config, ldm_config.stand_in(config)
    config = read_config(stand_in or config)
    opened = open_source(source, variant)
    try:
        said = stated(opened, prediction)
        description, config_origin, decision = describe(opened, config, said)
    except (ConfigError, CheckpointError) as error:
        if opened.path is None or str(opened.path) in str(error):
            raise
        raise opened.error(str(error)) from error
    averaged, notices = choose_ema(opened, ema), [*opened.notices]
    if opened.tokenizer is not None:
        check_tokens(opened.tokenizer, description.text, opened.error)
    elif description.text.kind == "clip" and (more := description.text.vocab_size - CLIP_TOKENS) > 0:
        notices.append(
            f"its text encoder has {more} more token{'s'[: more > 1]} than CLIP's tokenizer, and it brings no "
            "tokenizer that says for which words: they are not used"
        )
    if stand_in is not None:
        notices.append(
            f"there is no file {given_config} here; sdjax's own description of that name was taken, {stand_in}"
        )
    given = {"vae": vae, "depth": depth, "vision": vision, "noise_stats": noise_stats}
    elsewhere = {part for part, source in given.items() if source is not None}
    parts = [part for part in tables.PARTS if part not in elsewhere]
    found = match(opened.tensors.shapes, description, opened.layout, ema=averaged, parts=parts,
                  spelled=opened.spelled, equal=opened.equal)  # fmt: skip
    absent = [part for part in found.missing_parts if part in tables.OPTIONAL]
    unit = opened.layout == "ldm" and "noise_stats" in absent  # which single files do not hold: they stand for 0 and 1
    if unit:
        absent.remove("noise_stats")
        if description.vision is None or description.vision.activation != "gelu":  # OpenCLIP's has none
            notices.append(f"it has no {tables.PARTS['noise_stats']}: {tables.OPTIONAL['noise_stats']}")
    for part in absent:
        notices.append(f"it has no {tables.PARTS[part]}: {tables.OPTIONAL[part]}")
    description = dataclasses.replace(description, **dict.fromkeys(absent))
    absent += ["noise_stats"] * unit
    found = dataclasses.replace(found, missing_parts=tuple(p for p in found.missing_parts if p not in absent))
    if other_kind := kind_of_tensors(opened.tensors.shapes):  # though there may be a description of it
        raise opened.error(str(other_kind))
    if {"vae", "text"}.issubset(found.missing_parts) and "unet" not in found.missing_parts:
        raise opened.error(str(UNET_ALONE))
    refuse(opened, found, config_origin)
    if (
        description.depth is None
        and depth is None
        and any(tables.is_depth_network(name, opened.layout) for name in found.extras)
    ):
        notices.append(f"its depth network is none that is known here, and not used: {tables.OPTIONAL['depth']}")
    if found.other_set and not keep_both:
        other = "not averaged" if averaged else "averaged (EMA)"
        notices.append(f"the file also holds weights of the UNet that are {other}; those were left out")
    if found.unknown:
        few = ", ".join(printable(opened.spelled(name)) for name in found.unknown[:FEW])
        more = ", ..." if len(found.unknown) > FEW else ""
        many = "s are" if len(found.unknown) > 1 else " is"
        notices.append(
            f"{len(found.unknown)} tensor{many} no part of the model, kept beside it and not used: {few}{more}"
        )
    leaves = matched_leaves(opened, found, kind)
    if depth is not None:
        own, estimator = depth_network(depth, kind)
        description, leaves = dataclasses.replace(description, depth=own.depth), leaves | estimator
    if unit:
        leaves |= no_statistics(description.noise_stats)
    if vision is not None:
        tower, own = vision_tower(vision, kind, description.vision)
        description, leaves = dataclasses.replace(description, vision=tower), leaves | own
    if noise_stats is not None:
        size = (description.unet.label_dim or 0) // 2
        leaves |= statistics(noise_stats, size, kind)
        description = dataclasses.replace(description, noise_stats=size)
    if vae is not None:
        leaves |= vae_leaves(vae, description, kind)
    extras = _extras(opened, description, found, kind, keep_both)
    if said is not None and decision is not None and prediction is None and said.prediction != decision.prediction:
        notices.append(
            f"{decision.origin} says that it predicts {decision.prediction}, {said.origin} {said.prediction}"
        )
    decision = _decide(opened, description, decision, prediction, leaves, notices)
    description = _with_prediction(opened, description, decision)
    metadata = {key: value for key, value in opened.metadata.items() if key != carried.CONFIG_KEY}
    report = Report(opened.layout, config_origin, decision.origin, averaged, tuple(notices))
    files = (opened.native or {}).get("files", {}) if opened.layout == "native" else opened.configs
    files = {name: content for name, content in files.items() if name != own_settings.FILE}
    return Bundle(description, leaves, extras, report, metadata, files, opened.licences, opened.tokenizer, opened.cards)


def stated(source: Source, asked: str | None = None) -> Decision | None:
    """Returns what a single file itself says of the prediction; nothing if it contradicts itself and was overruled."""
    if source.layout != "ldm":
        return None
    try:
        return prediction.stated(source.metadata, source.tensors)
    except CheckpointError:
        if asked is None:
            raise
        return None


def read_config(config: ModelConfig | str | os.PathLike[str] | None) -> tuple[ModelConfig, str] | None:
    """Returns the description that is given, and where it came from; None if none is. Raises CheckpointError."""
    if config is None:
        return None
    if isinstance(config, ModelConfig):
        return config, "config="
    if isinstance(config, str) and config in configs.NAMES:
        return configs.get(config), f"config={config}"
    return ldm_config.read_ldm_yaml(config), str(config)


def describe(
    source: Source, config: tuple[ModelConfig, str] | None, said: Decision | None
) -> tuple[ModelConfig, str, Decision | None]:
    """Returns the description, where it came from, and the prediction with its own origin, if that is known.

    `config` is what `read_config` returns.
    """
    if kind := kind_of_folder(source.configs):
        raise CheckpointError(str(kind))
    if config is not None:
        read, origin = config
        return read, origin, Decision(read.schedule.prediction, origin)
    if source.layout == "native":
        read = ModelConfig.from_dict((source.native or {}).get("model"))
        return read, "config.json", Decision(read.schedule.prediction, "config.json", read.schedule.zero_terminal_snr)
    if source.layout == "diffusers" and (source.configs or any(name.startswith("prior/") for name in source.tensors)):
        read, says = diffusers_config.config_from_diffusers(source.configs)
        read = own_settings.applied(read, source.configs.get(own_settings.FILE))
        zero = read.schedule.zero_terminal_snr
        where = "scheduler/scheduler_config.json"
        return read, "the folder's JSON files", Decision(read.schedule.prediction, where, zero) if says else None
    if carried.CONFIG_KEY in source.metadata:
        read = ModelConfig.from_dict(carried.described(source.metadata[carried.CONFIG_KEY]))
        where = f"the metadata's {carried.CONFIG_KEY}"
        return read, where, said or Decision(read.schedule.prediction, where, read.schedule.zero_terminal_snr)
    if beside := _yaml_beside(source.path):
        read = ldm_config.read_ldm_yaml(beside)
        return read, str(beside), Decision(read.schedule.prediction, str(beside))
    return detection.detect(source.tensors.shapes), "the tensors' shapes", said


def _yaml_beside(path: pathlib.Path | None) -> pathlib.Path | None:
    if path is None:
        return None
    return next((p for suffix in (".yaml", ".yml") if (p := path.with_suffix(suffix)).is_file()), None)


def choose_ema(source: Source, ema: str) -> bool:
    """Returns whether to take the UNet's averaged weights. Raises CheckpointError for a wish that cannot be met."""
    if source.layout != "ldm":
        if ema != "auto":
            raise source.error(
                f"ema={ema!r} was asked for, but a folder holds one set of weights; diffusers folders that hold both "
                "have variants, as variant='non_ema'"
            )
        return False
    unet = keys.LDM_PREFIXES["unet"]
    averages = sum(name.startswith(keys.ema_name(unet)) for name in source.tensors)
    plain = sum(name.startswith(unet) for name in source.tensors)
    there = averages > 0 and (ema == "yes" or 2 * averages >= plain)  # fewer are what another tool has left over
    if ema == "yes" and not there:
        raise source.error("ema='yes' was asked for, but it holds no averaged weights (model_ema. ...)")
    return there and ema != "no"


def _extras(
    source: Source, config: ModelConfig, found: Match, kind: np.dtype | None, keep_both: bool
) -> dict[str, LazyTensor]:
    files = [(source.tensors, [*found.extras, *(found.other_set if keep_both else ())])]
    if source.extra is not None:
        unet = {entry.name for entry in tables.entries(config, "ldm") if entry.part == "unet"}
        own = [name for name in source.extra if keep_both or not (name in unet or name.startswith(keys.EMA_PREFIX))]
        files.append((source.extra, own))
    extras = {}
    for tensors, names in files:
        shapes, dtypes = tensors.shapes, tensors.dtypes
        for name in names:
            leaf = LazyTensor(
                shapes[name],
                dtypes[name],
                functools.partial(tensors.__getitem__, name),
                functools.partial(tensors.release, name),
                name,
            )
            extras[name] = leaf if tables.BUFFERS.fullmatch(name) else leaf.cast(kind)
    if not keep_both:  # how far the averaging had come belongs to the two sets
        for name in ("model_ema.decay", "model_ema.num_updates"):
            extras.pop(name, None)
    return extras


def _decide(
    source: Source,
    config: ModelConfig,
    decision: Decision | None,
    asked: str | None,
    leaves: Mapping[str, LazyTensor],
    notices: list[str],
) -> Decision:
    if asked is not None:
        if decision is not None and decision.prediction != asked:
            notices.append(f"prediction={asked} was asked for, though {decision.origin} says {decision.prediction}")
        zero = decision is not None and decision.zero_terminal_snr and asked != "epsilon"
        return Decision(asked, "prediction=", zero)
    if decision is not None:
        return decision
    if not prediction.is_ambiguous(config):
        return Decision(config.schedule.prediction, f"the family {config.name}")
    from sdjax.convert.describe.probe import probe

    asked_parts = {path: leaf for path, leaf in leaves.items() if not path.startswith("vae/")}
    tree = Bundle(config, asked_parts, {}, Report(source.layout, "", "", False)).params
    try:
        answer, correlation = probe(config, tree)
    except CheckpointError as error:
        raise source.error(str(error)) from error
    notices.append(
        f"nothing says what the network predicts; asked, it answered like one that predicts {answer} (correlation with "
        f"its input {correlation:.2f}); say prediction={answer} to skip the question"
    )
    return Decision(answer, "a probe of the network")


def _with_prediction(source: Source, config: ModelConfig, decision: Decision) -> ModelConfig:
    try:
        return prediction.with_prediction(config, decision)
    except ConfigError as error:
        raise source.error(str(error)) from error
