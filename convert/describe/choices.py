"""Finds a checkpoint's configuration, set of weights and prediction type, and where each is stated."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import get_args

from sdjax import configs
from sdjax.config import ConfigError, ModelConfig, Prediction
from sdjax.convert.checkpoint import Checkpoint
from sdjax.convert.containers import carried
from sdjax.convert.containers.diffusers_folder import OWN_SETTINGS
from sdjax.convert.containers.lazy import LazyTensor, read_tree
from sdjax.convert.describe import detection, diffusers_config, ldm_config, own_settings, prediction
from sdjax.convert.describe.distilled import few_step_of
from sdjax.convert.describe.other_kinds import kind_of_folder
from sdjax.convert.describe.prediction import Decision
from sdjax.convert.errors import CheckpointError
from sdjax.convert.names import naming

ConfigLike = ModelConfig | str | os.PathLike[str]  # a description, a released model's name, or an ldm YAML file


@dataclasses.dataclass(frozen=True)
class Description:
    """A model's description, and the prediction with its own origin if that is known.

    `origin` says where the description came from, `notices` what its user should know of that.
    """

    config: ModelConfig
    origin: str
    decision: Decision | None
    notices: tuple[str, ...] = ()


def given_description(config: ConfigLike | None) -> Description | None:
    """Returns the description that a user gives, None if none is given. Raises CheckpointError."""
    if config is None:
        return None
    notices: tuple[str, ...] = ()
    if (name := ldm_config.stand_in(config)) is not None:
        notices = (f"there is no file {config} here; sdjax's own description of that name was taken, {name}",)
        config = name
    if isinstance(config, ModelConfig):
        read, origin = config, "config="
    elif isinstance(config, str) and config in configs.NAMES:
        read, origin = configs.get(config), f"config={config}"
    else:
        read, origin = ldm_config.read_ldm_yaml(config), str(config)
    return Description(read, origin, Decision(read.schedule.prediction, origin), notices)


def stated(checkpoint: Checkpoint, asked: Prediction | None = None) -> Decision | None:
    """Returns the prediction type that a single file states; None if it contradicts itself and the user chose."""
    if checkpoint.layout != "ldm":
        return None
    try:
        return prediction.stated(checkpoint.metadata, checkpoint.tensors)
    except CheckpointError:
        if asked is None:
            raise
        return None


def describe(checkpoint: Checkpoint, given: Description | None, said: Decision | None) -> Description:
    """Returns the model's configuration: the given one, else from the folder, the metadata, a YAML file or the tensors.

    `said` is what `stated` returns. Raises CheckpointError and ConfigError.
    """
    if kind := kind_of_folder(checkpoint.configs):
        raise CheckpointError(str(kind))
    if given is not None:
        return given
    names, metadata = checkpoint.tensors, checkpoint.metadata
    if checkpoint.layout == "native":
        read, where = checkpoint.native_config(), "config.json"
        return Description(read, where, _of_schedule(read, where))
    if checkpoint.layout == "diffusers" and (checkpoint.configs or any(name.startswith("prior/") for name in names)):
        read, says = diffusers_config.config_from_diffusers(checkpoint.configs)
        read = own_settings.applied(read, checkpoint.configs.get(OWN_SETTINGS))
        decision = _of_schedule(read, "scheduler/scheduler_config.json") if says else None
        return Description(read, "the folder's JSON files", decision)
    if carried.CONFIG_KEY in metadata:
        read = ModelConfig.from_dict(carried.described(metadata[carried.CONFIG_KEY]))
        where = f"the metadata's {carried.CONFIG_KEY}"
        return Description(read, where, said or _of_schedule(read, where))
    if beside := _yaml_beside(checkpoint.path):
        read = ldm_config.read_ldm_yaml(beside)
        return Description(read, str(beside), Decision(read.schedule.prediction, str(beside)))
    return _detected(checkpoint, said)


def _detected(checkpoint: Checkpoint, said: Decision | None) -> Description:
    """Returns the description that the tensors' shapes show, and the distillation that metadata or name say."""
    read, where = detection.detect(checkpoint.shapes), "the tensors' shapes"
    word = few_step_of(checkpoint.metadata, checkpoint.path)
    if read.unet.guidance_dim is not None:
        read, word = dataclasses.replace(read, guidance_scale=diffusers_config.LCM_SCALE), "lcm"
    if word in ("turbo", "sdxs"):
        if not prediction.is_ambiguous(read):  # a name alone: these two have the text encoder of 2-base
            return Description(read, where, said)
        said = said or Decision("epsilon", f"its name, which is {word}'s")
    return Description(dataclasses.replace(read, few_step=word), where, said)


def _of_schedule(config: ModelConfig, where: str) -> Decision:
    return Decision(config.schedule.prediction, where, config.schedule.zero_terminal_snr)


def prediction_of(word: str) -> Prediction:
    """Returns the prediction type that the user names. Raises ValueError for an unknown word."""
    for known in get_args(Prediction):
        if word == known:
            return known
    raise ValueError(f"prediction is one of {', '.join(get_args(Prediction))}; got {word!r}")


def _yaml_beside(path: pathlib.Path | None) -> pathlib.Path | None:
    if path is None:
        return None
    return next((p for suffix in (".yaml", ".yml") if (p := path.with_suffix(suffix)).is_file()), None)


def choose_ema(checkpoint: Checkpoint, ema: str) -> bool:
    """Returns whether to use the UNet's averaged weights. Raises CheckpointError if the requested set is missing."""
    if checkpoint.layout != "ldm":
        if ema != "auto":
            raise checkpoint.error(
                f"ema={ema!r} was asked for, but a folder holds one set of weights; diffusers folders that hold both "
                "have variants, as variant='non_ema'"
            )
        return False
    unet = naming.LDM_PREFIXES["unet"]
    averages = sum(name.startswith(naming.ema_name(unet)) for name in checkpoint.tensors)
    plain = sum(name.startswith(unet) for name in checkpoint.tensors)
    there = averages > 0 and (ema == "yes" or 2 * averages >= plain)  # fewer are what another tool has left over
    if ema == "yes" and not there:
        raise checkpoint.error("ema='yes' was asked for, but it holds no averaged weights (model_ema. ...)")
    return there and ema != "no"


def decide(
    checkpoint: Checkpoint,
    config: ModelConfig,
    decision: Decision | None,
    asked: Prediction | None,
    leaves: Mapping[str, LazyTensor],
    notices: list[str],
) -> Decision:
    """Returns the prediction type: the user's, else the files', else from a test of the network.

    `decision` is the files' statement, `leaves` are the parameters by path. Messages for the user are added to
    `notices`.
    """
    if asked is not None:
        if decision is not None and decision.prediction != asked:
            notices.append(f"prediction={asked} was asked for, though {decision.origin} says {decision.prediction}")
        zero = decision is not None and decision.zero_terminal_snr and asked != "epsilon"
        return Decision(asked, "prediction=", zero)
    if decision is not None:
        return decision
    if not prediction.is_ambiguous(config):
        return Decision(config.schedule.prediction, f"the family {config.name}")
    from sdjax.convert.describe.probe import probe  # which alone needs the networks

    tree = read_tree({path: leaf for path, leaf in leaves.items() if path.startswith(("unet/", "text/"))}, {})
    try:
        answer, correlation = probe(config, tree)
    except CheckpointError as error:
        raise checkpoint.error(str(error)) from error
    notices.append(
        f"nothing says what the network predicts; asked, it answered like one that predicts {answer} (correlation with "
        f"its input {correlation:.2f}); say prediction={answer} to skip the question"
    )
    return Decision(answer, "a probe of the network")


def with_prediction(checkpoint: Checkpoint, config: ModelConfig, decision: Decision) -> ModelConfig:
    """Returns the description with this prediction. Raises CheckpointError if they do not go together."""
    try:
        return prediction.with_prediction(config, decision)
    except ConfigError as error:
        raise checkpoint.error(str(error)) from error
