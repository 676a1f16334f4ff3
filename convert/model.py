"""A whole model, read from a checkpoint of any layout: its tensors described, found and checked."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sdjax.config import ConfigError, ModelConfig, Prediction
from sdjax.convert.bundle import Bundle, Report
from sdjax.convert.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from sdjax.convert.containers import carried
from sdjax.convert.containers.casting import better_type, losses_in_words
from sdjax.convert.containers.diffusers_folder import OWN_SETTINGS
from sdjax.convert.containers.lazy import LazyTensor, float_type
from sdjax.convert.describe.choices import (
    ConfigLike,
    Description,
    choose_ema,
    decide,
    describe,
    given_description,
    prediction_of,
    stated,
    with_prediction,
)
from sdjax.convert.describe.other_kinds import UNET_ALONE, kind_of_tensors
from sdjax.convert.describe.prediction import Decision
from sdjax.convert.describe.tokens import check_tokens
from sdjax.convert.errors import CheckpointError, printable
from sdjax.convert.names import beside, naming, tables
from sdjax.convert.names.matching import Match, match, refuse
from sdjax.convert.parts.autoencoder import autoencoder
from sdjax.convert.parts.depth import depth_network
from sdjax.convert.parts.embedding_statistics import embedding_statistics, unit_statistics
from sdjax.convert.parts.tower import image_tower
from sdjax.nn.jax_settings import pinned
from sdjax.prompts.tokenizer import CLIP_TOKENS
from sdjax.typing import Params

FEW = 3  # names of tensors that a note repeats


def load(
    source: CheckpointLike,
    config: ConfigLike | None = None,
    prediction: str | None = None,
    ema: str = "auto",
    vae: CheckpointLike | None = None,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    depth: CheckpointLike | None = None,
    vision: CheckpointLike | None = None,
    noise_stats: CheckpointLike | None = None,
) -> tuple[ModelConfig, Params]:
    """Returns the description and parameters {"unet", "vae", "text"} of a checkpoint, as trees of numpy arrays.

    A model that looks at depth may have its depth network too, {"depth": ...}; one that is told a picture's embedding
    its image tower, {"vision": ...}, and the embeddings' mean and standard deviation, {"noise_stats": {"mean", "std"}}.

    Args:
        source: a `.ckpt` or `.safetensors` file, a diffusers or native folder, or a mapping of names to arrays.
        config: a description, a released model's name ("sd1", see `sdjax.configs`), or an original ldm YAML file.
            None: the folder's own; a YAML beside the file; its metadata; else what the tensors' shapes show.
        prediction: "epsilon", "v" or "x0". None: what config, metadata or marker tensors say; what the family predicts;
            for 2-base and 2-v, whose tensors look alike, the network is asked.
        ema: "yes" takes the UNet's averaged weights, "no" the others, "auto" the averaged where there are some.
        vae: a file or folder to take the autoencoder from instead.
        dtype: "float32", "bfloat16" or "float16" to convert the parameters to; None keeps each as it is.
        variant: of a diffusers folder's files, "fp16" for example.
        depth: a file or folder to take the depth network from instead.
        vision: a file or folder to take the image tower from instead.
        noise_stats: a file or folder with the mean and standard deviation of image embeddings, as Stability's
            `ViT-L-14_stats.th` for unCLIP-L, whose single files hold none.

    Raises:
        CheckpointError: if it cannot be read, or is not a whole model; every missing, unknown and misshapen tensor is
            named as the file spells it. Also for tensors whose numbers `dtype` cannot hold.
        ValueError: for an argument out of range.
    """
    bundle = load_model(source, config, prediction, ema, vae, dtype, variant, depth=depth, vision=vision,
                        noise_stats=noise_stats)  # fmt: skip
    params, kind = bundle.params, float_type(dtype)
    if kind is not None and bundle.losses:
        raise CheckpointError(f"{losses_in_words(bundle.losses, kind.name)}; {better_type(kind.name)}")
    return bundle.config, params


@pinned()
def load_model(
    source: CheckpointLike,
    config: ConfigLike | None = None,
    prediction: str | None = None,
    ema: str = "auto",
    vae: CheckpointLike | None = None,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    *,
    depth: CheckpointLike | None = None,
    vision: CheckpointLike | None = None,
    noise_stats: CheckpointLike | None = None,
    keep_both: bool = False,
) -> Bundle:
    """Returns the model of a checkpoint, its parameters not read yet but checked to be all there.

    Arguments and errors are those of `sdjax.convert.load`. `keep_both` keeps the UNet's weights that `ema` did not
    choose among the extras.
    """
    kind = float_type(dtype)
    asked = None if prediction is None else prediction_of(prediction)
    if ema not in ("auto", "yes", "no"):
        raise ValueError(f"ema is 'auto', 'yes' or 'no'; got {ema!r}")
    given = given_description(config)
    files = {"vae": vae, "depth": depth, "vision": vision, "noise_stats": noise_stats}
    elsewhere = {part: file for part, file in files.items() if file is not None}

    checkpoint = open_checkpoint(source, variant)
    said, description = _described(checkpoint, given, asked)
    averaged = choose_ema(checkpoint, ema)
    table = tables.model_table(description.config, checkpoint.layout)
    wanted = [part for part in table.parts if part not in elsewhere]
    found = match(checkpoint.tensors, table, ema=averaged, parts=wanted)
    _check(checkpoint, found, description)
    read, leaves, absent = _parts_here(checkpoint, found, description.config, kind)
    notices = [
        *checkpoint.notices,
        *_check_tokenizer(checkpoint, description.config),
        *description.notices,
        *(f"it has no {tables.PARTS[part]}: {tables.OPTIONAL[part]}" for part in absent),
        *_left_aside(checkpoint, found, read, elsewhere, averaged, keep_both),
    ]
    read, leaves, more = _parts_elsewhere(read, leaves, elsewhere, kind)
    notices += more
    extras = _extras(checkpoint, read, found, kind, keep_both)
    told = description.decision
    if said is not None and told is not None and asked is None and said.prediction != told.prediction:
        notices.append(f"{told.origin} says that it predicts {told.prediction}, {said.origin} {said.prediction}")
    decision = decide(checkpoint, read, told, asked, leaves, notices)
    return Bundle(
        config=with_prediction(checkpoint, read, decision),
        leaves=leaves,
        extras=extras,
        report=Report(checkpoint.layout, description.origin, decision.origin, averaged, tuple(notices)),
        metadata={key: text for key, text in checkpoint.metadata.items() if key != carried.CONFIG_KEY},
        files={name: content for name, content in checkpoint.files.items() if name != OWN_SETTINGS},
        licences=checkpoint.licences,
        own_tokenizer=checkpoint.tokenizer,
        cards=checkpoint.cards,
    )


def parameter_counts(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig | None = None, ema: str = "auto"
) -> dict[str, int]:
    """Returns {"unet": n, "vae": n, "text": n}, the parameters in use of a single file with these names and shapes.

    A depth network's are "depth": n, an image tower's "vision": n, where the file holds one.

    Allocates nothing. Raises CheckpointError as `load` would for the file.
    """
    nothing = np.float32(0)
    tensors = {name: np.broadcast_to(nothing, shape) for name, shape in shapes.items()}
    model = load_model(tensors, config, ema=ema, prediction="v")  # any: asking a network without weights is no use
    counts = dict.fromkeys(tables.described(model.config), 0)
    for path, leaf in model.leaves.items():
        counts[path.partition("/")[0]] += math.prod(leaf.shape)
    counts.pop("noise_stats", None)  # measured, not learned
    return counts


def _described(
    checkpoint: Checkpoint, given: Description | None, asked: Prediction | None
) -> tuple[Decision | None, Description]:
    """Returns what the checkpoint says of its prediction, and the description of its model.

    Raises CheckpointError with the checkpoint's name.
    """
    try:
        said = stated(checkpoint, asked)
        return said, describe(checkpoint, given, said)
    except (ConfigError, CheckpointError) as error:
        if checkpoint.path is None or str(checkpoint.path) in str(error):
            raise
        raise checkpoint.error(str(error)) from error


def _parts_here(
    checkpoint: Checkpoint, found: Match, config: ModelConfig, dtype: np.dtype | None
) -> tuple[ModelConfig, dict[str, LazyTensor], list[str]]:
    """Returns the description without the optional parts that are missing, the parameters, and the missing parts.

    Single files hold no statistics of image embeddings. Theirs are 0 and 1, and count as missing unless the image
    tower is OpenCLIP's, which has none.
    """
    absent = [part for part in found.missing_parts if part in tables.OPTIONAL]
    left_out: dict[str, Any] = dict.fromkeys(absent)
    read, leaves = dataclasses.replace(config, **left_out), found.leaves(checkpoint.tensors, dtype)
    if config.noise_stats is not None and "noise_stats" in absent and checkpoint.layout == "ldm":
        read = dataclasses.replace(read, noise_stats=config.noise_stats)
        leaves |= unit_statistics(config.noise_stats)
        absent.remove("noise_stats")
        if config.vision is None or config.vision.activation != "gelu":
            absent.append("noise_stats")
    return read, leaves, absent


def _check_tokenizer(checkpoint: Checkpoint, config: ModelConfig) -> Sequence[str]:
    """Returns notes on the tokenizer. Raises CheckpointError if it does not fit the text encoder."""
    if checkpoint.tokenizer is not None:
        check_tokens(checkpoint.tokenizer, config.text, checkpoint.error)
    elif config.text.kind == "clip" and (more := config.text.vocab_size - CLIP_TOKENS) > 0:
        return [
            f"its text encoder has {more} more token{'s'[: more > 1]} than CLIP's tokenizer, and it brings no "
            "tokenizer that says for which words: they are not used"
        ]
    return []


def _check(checkpoint: Checkpoint, found: Match, description: Description) -> None:
    """Raises CheckpointError unless the checkpoint holds the whole model that is described, of optional parts any."""
    if other_kind := kind_of_tensors(checkpoint.shapes):  # though there may be a description of it
        raise checkpoint.error(str(other_kind))
    if {"vae", "text"}.issubset(found.missing_parts) and "unet" not in found.missing_parts:
        raise checkpoint.error(str(UNET_ALONE))
    needed = tuple(part for part in found.missing_parts if part not in tables.OPTIONAL)
    whole = dataclasses.replace(found, missing_parts=needed)
    refuse(whole, f"the model that {description.origin} describes", checkpoint.error)


def _left_aside(
    checkpoint: Checkpoint,
    found: Match,
    config: ModelConfig,
    elsewhere: Mapping[str, CheckpointLike],
    averaged: bool,
    keep_both: bool,
) -> list[str]:
    """Returns notes on unused tensors."""
    notices = []
    foreign = any(beside.is_depth_network(name, checkpoint.layout) for name in found.extras)
    if foreign and config.depth is None and "depth" not in elsewhere:
        notices.append(f"its depth network is none that is known here, and not used: {tables.OPTIONAL['depth']}")
    if found.other_set and not keep_both:
        other = "not averaged" if averaged else "averaged (EMA)"
        notices.append(f"the file also holds weights of the UNet that are {other}; those were left out")
    if found.unknown:
        few = ", ".join(printable(checkpoint.tensors[name].name) for name in found.unknown[:FEW])
        more = ", ..." if len(found.unknown) > FEW else ""
        many = "s are" if len(found.unknown) > 1 else " is"
        notices.append(
            f"{len(found.unknown)} tensor{many} no part of the model, kept beside it and not used: {few}{more}"
        )
    return notices


def _parts_elsewhere(
    config: ModelConfig,
    leaves: dict[str, LazyTensor],
    elsewhere: Mapping[str, CheckpointLike],
    dtype: np.dtype | None,
) -> tuple[ModelConfig, dict[str, LazyTensor], tuple[str, ...]]:
    """Returns description and parameters with the parts that are taken from other files, and notes on these."""
    if "depth" in elsewhere:
        depth, own = depth_network(elsewhere["depth"], dtype)
        config, leaves = dataclasses.replace(config, depth=depth), leaves | own
    if "vision" in elsewhere:
        vision, own = image_tower(elsewhere["vision"], dtype, config.vision)
        config, leaves = dataclasses.replace(config, vision=vision), leaves | own
    if "noise_stats" in elsewhere:
        size = (config.unet.label_dim or 0) // 2
        leaves = leaves | embedding_statistics(elsewhere["noise_stats"], size, dtype)
        config = dataclasses.replace(config, noise_stats=size)
    notices: tuple[str, ...] = ()
    if "vae" in elsewhere:
        vae, own, notices = autoencoder(elsewhere["vae"], config.vae, dtype)
        config, leaves = dataclasses.replace(config, vae=vae), leaves | own
    return config, leaves, notices


def _extras(
    checkpoint: Checkpoint, config: ModelConfig, found: Match, dtype: np.dtype | None, keep_both: bool
) -> dict[str, LazyTensor]:
    """Returns the tensors that are not parameters, by the names that they are kept under."""
    extras = {name: checkpoint.tensors[name] for name in (*found.extras, *(found.other_set if keep_both else ()))}
    unet = {entry.name for entry in tables.part_entries("unet", config.unet, "ldm")}
    for name, tensor in checkpoint.extra.items():
        if keep_both or not (name in unet or name.startswith(naming.EMA_PREFIX)):
            extras[name] = tensor
    if not keep_both:  # how far the averaging had come belongs to the two sets
        for name in ("model_ema.decay", "model_ema.num_updates"):
            extras.pop(name, None)
    return {name: leaf if beside.BUFFERS.fullmatch(name) else leaf.cast(dtype) for name, leaf in extras.items()}
