"""The fields of one scheduler's file: read with their checks, so that none is ignored."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sdjax.checks.arguments import flag, is_sequence, number, shown, whole
from sdjax.config import ScheduleConfig
from sdjax.samplers.diffusers.grid import SPACINGS
from sdjax.samplers.diffusers.schedule import KINDS, PREDICTIONS, TableSchedule, rescaled_to
from sdjax.samplers.thresholding import Clip, Limit, Threshold

LATENT_BETAS = (0.00085, 0.012)  # the defaults of some classes; the others' are DDPM's
LATENT_CLASSES = {
    **dict.fromkeys(("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), "linear"),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), "scaled_linear"), "DPMSolverSDEScheduler": "linear",
}  # fmt: skip
CLIPS = ("DDIMScheduler", "DDPMScheduler")  # whose clip_sample is true if the file does not say
MOST_TIMESTEPS = 100_000


class Fields:
    """A scheduler's file and the arguments of its `step`, with what has not been read yet."""

    def __init__(
        self,
        config: Mapping[str, Any],
        step: Mapping[str, Any],
        *,
        timesteps: tuple[float, ...] | None,
        sigmas: tuple[float, ...] | None,
    ):
        self.class_name: str = config["_class_name"]
        self._config = {key: value for key, value in config.items() if not key.startswith("_")}
        self._left, self._step = set(self._config), dict(step)
        self._timesteps, self._sigmas = timesteps, sigmas

    def refuse(self, sentence: str) -> NoReturn:
        """Raises ValueError with the name of the class before the sentence."""
        raise ValueError(f"{self.class_name}: {sentence}")

    def take(self, name: str, default: Any) -> Any:
        """Returns a field as it is in the file."""
        self._left.discard(name)
        return self._config.get(name, default)

    def check_rest(self) -> None:
        """Raises ValueError if something was not read. Fields of other classes may be there if they are off."""
        # clip_sample=false stands in the PNDMScheduler files of Stable Diffusion 1
        unknown = sorted(
            name for name in self._left if self._config[name] is not None and self._config[name] is not False
        )
        if unknown:
            self.refuse(f"unknown field {shown(unknown[0])} in its file")
        if self._step:
            self.refuse(f"its step has no argument {shown(sorted(self._step)[0])}")
        for name, values in ("timesteps", self._timesteps), ("sigmas", self._sigmas):
            if values is not None:
                self.refuse(f"it takes no list of {name}")

    def choice(self, name: str, default: str, known: Sequence[str]) -> Any:
        """Returns a text that is one of the known ones."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in known:
            self.refuse(f"{name} is {' or '.join(known)}; got {shown(value)}")
        return value

    def only(self, name: str, wanted: Any, why: str, *, default: Any = None) -> None:
        """Raises ValueError unless a field has the one value that it can have here."""
        value = self.take(name, wanted if default is None else default)
        if type(value) is not type(wanted) or value != wanted:
            self.refuse(f"{name} is {wanted!r} here, because {why}; got {shown(value)}")

    def number(self, name: str, default: float) -> float:
        """Returns a number. It may be infinite, also as a text, if the default is."""
        value = self.take(name, default)
        if math.isinf(default) and (value in ("-inf", "-Infinity") or value == -math.inf):
            return -math.inf
        return number(f"{self.class_name}: {name}", value)

    def optional(self, name: str) -> float | None:
        """Returns a number above 0, or None."""
        value = self.take(name, None)
        if value is not None and number(f"{self.class_name}: {name}", value) <= 0:
            self.refuse(f"{name} is a number above 0; got {shown(value)}")
        return value

    def whole(self, name: str, default: int) -> int:
        """Returns a whole number from 0 up."""
        return whole(f"{self.class_name}: {name}", self.take(name, default), 0, MOST_TIMESTEPS)

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false. A missing value is the default, as in old files."""
        value = self.take(name, default)
        return default if value is None else flag(f"{self.class_name}: {name}", value)

    def step_number(self, name: str, default: float, low: float = 0.0) -> float:
        """Returns an argument of `step` that is a number."""
        value = self._step.pop(name, default)
        return value if value == math.inf else number(name, value, low)

    def step_whole(self, name: str, default: int) -> int:
        """Returns an argument of `step` that is a whole number."""
        return whole(name, self._step.pop(name, default), 1)

    def step_flag(self, name: str, default: bool) -> bool:
        """Returns an argument of `step` that is true or false."""
        return flag(name, self._step.pop(name, default))

    def churn(self, unit: float = 1.0) -> dict[str, Any]:
        """Returns the arguments of `step` for churn, with sigmas in the given unit."""
        limits = {name: self.step_number(name, value) / unit for name, value in (("s_tmin", 0.0), ("s_tmax", math.inf))}
        return limits | {name: self.step_number(name, value) for name, value in (("s_churn", 0.0), ("s_noise", 1.0))}

    def timesteps(self, sigmas: str) -> tuple[float, ...] | None:
        """Returns the given timesteps."""
        values, self._timesteps = self._timesteps, None
        if values is not None and sigmas != "table":
            self.refuse(f"timesteps cannot be given with {sigmas} sigmas")
        return values

    def given_sigmas(self, sigmas: str) -> tuple[float, ...] | None:
        """Returns the given sigmas."""
        values, self._sigmas = self._sigmas, None
        if values is not None and sigmas != "table":
            self.refuse(f"sigmas cannot be given with {sigmas} sigmas")
        return values

    def spacing(self, default: str = "linspace") -> Any:
        """Returns timestep_spacing."""
        return self.choice("timestep_spacing", default, SPACINGS)

    def sigmas(self, *, lu: bool = False) -> Any:
        """Returns how sigmas are chosen: "table", or the one way whose flag is set."""
        names = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
        names |= {"lu": "use_lu_lambdas"} if lu else {}
        chosen = [kind for kind, name in names.items() if self.flag(name, False)]
        if len(chosen) > 1:
            self.refuse(f"only one of {' and '.join(names[kind] for kind in chosen)} can be true")
        return chosen[0] if chosen else "table"

    def limits(self) -> bool:
        """Returns whether x0 is limited."""
        return self.flag("thresholding", False) or self.flag("clip_sample", self.class_name in CLIPS)

    def limit(self, unit: float = 1.0) -> Limit | None:
        """Returns how x0 is limited, for an x0 in the given unit. Thresholding goes before clipping."""
        ratio, most = self.number("dynamic_thresholding_ratio", 0.995), self.number("sample_max_value", 1.0)
        largest = self.number("clip_sample_range", 1.0)
        clips = self.flag("clip_sample", self.class_name in CLIPS)
        if self.flag("thresholding", False):
            if not 0 <= ratio <= 1 or most <= 0:
                self.refuse(f"thresholding takes a ratio from 0 to 1 and a maximum above 0; got {ratio} and {most}")
            return Threshold(ratio, 1.0 / unit, most / unit, 1.0 / unit)
        return Clip(largest) if clips else None

    def predicts(self) -> str:
        """Returns prediction_type."""
        return self.choice("prediction_type", "epsilon", tuple(PREDICTIONS))

    def betas(self) -> tuple[float, ...] | None:
        """Returns trained_betas."""
        values = self.take("trained_betas", None)
        if values is None:
            return None
        if not is_sequence(values) or not 2 <= len(values) <= MOST_TIMESTEPS:
            self.refuse(f"trained_betas is a list of at least 2 numbers; got {shown(values)}")
        return tuple(number("trained_betas", value, 0, 1) for value in values)

    def noise(self) -> TableSchedule:
        """Returns the noise schedule."""
        own = self.class_name in LATENT_CLASSES
        start, end = LATENT_BETAS if own else (0.0001, 0.02)
        kind = LATENT_CLASSES.get(self.class_name, "linear")
        config = ScheduleConfig(
            kind=KINDS[self.choice("beta_schedule", kind, tuple(KINDS))],
            num_timesteps=max(2, self.whole("num_train_timesteps", 1000)),
            beta_start=self.number("beta_start", start), beta_end=self.number("beta_end", end),
            prediction=PREDICTIONS[self.predicts()],
        )  # fmt: skip
        rescales = self.flag("rescale_betas_zero_snr", False)
        last = rescaled_to(self.class_name) if rescales else None
        return TableSchedule(config, last, trained_betas=self.betas())

    def preconditioned(self, prediction: Any) -> TableSchedule:
        """Returns a schedule that only says what the network predicts: the grid has its own sigmas."""
        return TableSchedule(ScheduleConfig(prediction=prediction))
