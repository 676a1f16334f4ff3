"""Finds a network's prediction type from statements in a file. It does not show in the tensors."""

import dataclasses
from collections.abc import Iterable, Mapping

from sdjax import configs
from sdjax.config import ModelConfig, Prediction
from sdjax.convert.errors import CheckpointError

_WORDS: dict[str, Prediction] = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v", "v-prediction": "v", "vpred": "v",
    "sample": "x0", "x0": "x0",
}  # fmt: skip
_ARCHITECTURES: dict[str, Prediction] = {
    "stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v", "stable-diffusion-v2-unclip-l": "v",
    "stable-diffusion-v2-unclip-h": "v",
}  # fmt: skip
_OWN = tuple(field.name for field in dataclasses.fields(ModelConfig) if field.name != "name")
MARKERS = ("v_pred", "ztsnr")  # empty tensors that ComfyUI reads


@dataclasses.dataclass(frozen=True)
class Decision:
    """The prediction type and its source, such as "the metadata's modelspec.prediction_type"."""

    prediction: Prediction
    origin: str
    zero_terminal_snr: bool = False


def stated(metadata: Mapping[str, str], names: Iterable[str]) -> Decision | None:
    """Returns the prediction type that a file's metadata and marker tensors state; None if they state none.

    Raises CheckpointError if they contradict each other.
    """
    said: dict[str, Prediction] = {}
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if word := _WORDS.get(metadata.get(key, "").strip().lower()):
            said[f"the metadata's {key}"] = word
    v = metadata.get("ss_v_parameterization", "").strip().lower()
    if v in ("true", "false"):
        said["the metadata's ss_v_parameterization"] = "v" if v == "true" else "epsilon"
    markers = set(MARKERS).intersection(names)
    if "v_pred" in markers:
        said["the marker tensor v_pred"] = "v"
    if not said and (word := _ARCHITECTURES.get(metadata.get("modelspec.architecture", "").strip().lower())):
        said["the metadata's modelspec.architecture"] = word
    if not said:
        return None
    if len(set(said.values())) > 1:
        claims = ", ".join(f"{origin} says {word}" for origin, word in said.items())
        raise CheckpointError(f"it contradicts itself about what it predicts ({claims}); say which by prediction=")
    origin, word = next(iter(said.items()))
    return Decision(word, origin, "ztsnr" in markers and word != "epsilon")


def is_ambiguous(config: ModelConfig) -> bool:
    """Returns whether the same tensors were released as two models: 2-base predicts epsilon, 2-v predicts v."""
    return config.name in ("sd2_base", "sd2_v")


def with_prediction(config: ModelConfig, decision: Decision) -> ModelConfig:
    """Returns the description with this prediction: the other of 2-base and 2-v where it is one of them."""
    if is_ambiguous(config) and decision.prediction in ("epsilon", "v"):
        other = configs.get("sd2_base" if decision.prediction == "epsilon" else "sd2_v")
        known = configs.get(config.name)
        own = [name for name in _OWN if getattr(config, name) != getattr(known, name)]  # which stays as it is
        config = dataclasses.replace(other, **{name: getattr(config, name) for name in own})
    schedule = dataclasses.replace(
        config.schedule,
        prediction=decision.prediction,
        zero_terminal_snr=decision.zero_terminal_snr
        or (config.schedule.zero_terminal_snr and decision.prediction != "epsilon"),
    )
    return dataclasses.replace(config, schedule=schedule)
