"""The configuration of a training run, filled from a file of `configs/` and checked before anything is loaded."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from sdjax.checks.arguments import dtype_name
from sdjax.checks.effects import Needs, ignored, needs
from sdjax.checks.notes import note
from sdjax.description import build, kinds
from sdjax.loading.start_model import ModelSource
from sdjax.loading.trainable import TRAINABLES, Parts, Trainable
from sdjax.pictures import METHODS
from sdjax.train.data.pictures import FILES, checked_hints
from sdjax.train.data.tags import UNCHANGED, CaptionConfig
from sdjax.train.objectives.autoencoder import ALONE, AutoencoderObjective
from sdjax.train.objectives.diffusion import DiffusionObjective
from sdjax.train.objectives.objective import Objective
from sdjax.train.objectives.table import OBJECTIVES
from sdjax.train.optim import OptimConfig
from sdjax.train.parallel import ParallelConfig
from sdjax.train.state import GuardConfig

PARTS = ("unet", "text", "vae", "discriminator")  # with learning rates of their own
PART = ("source", "where", "repeats", "weight", "loss_weight", "captions")  # of a training set

# Conditions for `needs`: a test of the configuration, and the end of the message "... has no effect" if it is false
OF_PICTURES = (lambda data: not data.cached, "on cached latents: it was settled when the cache was made")
BUCKETED = (lambda data: data.buckets and not data.cached, "without data.buckets")
HELD_OUT = (lambda validation: validation.data is not None, "without a held-out set (validation.data)")
JUDGED = (lambda metrics: bool(metrics.measures), "without validation.metrics.measures")
SAMPLED = (lambda samples: bool(samples.prompts), "without samples.prompts")
HINTED = (lambda data: data.hints not in (None, FILES), "without a preprocessor in data.hints")
OF_A_DENOISER = (lambda config: config.autoencoder is None, ALONE)


def _at_least_one(where: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{where}.{name} must be 1 or more; got {value}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A training set: `parts`, each {"source", "where", "repeats", "weight", "loss_weight", "captions"}, or `cached`.

    A source is what `sdjax.train.data.sources.open_source` takes (docs/training-data.md). `cached` are folders of
    latents. `captions` says how captions change each time; a part's own `captions` replace some of its values.

    `side` None is the model's side; `buckets` keeps aspect ratios, in sizes whose sides are multiples of `bucket_step`
    (None: 64, or the autoencoder's factor below 256) within `bucket_sides`, (least, most) (None: half and twice the
    side). Without `enlarge` no picture is made larger, and sizes follow from the pictures. With `masks` masks are read;
    "alpha" also takes the opacity of pictures without one. `hints` are what a ControlNet sees: "files" beside the
    pictures, or the name of a preprocessor without a network, with `hint_options` (docs/hints.md). These, `crop`,
    `flip` and `resample` apply to pictures only: a cache was made with its own. `bad_limit` is the share of unreadable
    pictures above which a run ends.
    """

    parts: tuple[dict[str, Any], ...] = ()
    cached: tuple[str, ...] = ()
    captions: CaptionConfig = UNCHANGED
    side: int | None = None
    buckets: bool = needs(False, *OF_PICTURES)
    bucket_step: int | None = needs(None, *BUCKETED)
    bucket_sides: tuple[int, int] | None = needs(
        None, lambda data: BUCKETED[0](data) and data.enlarge, "without data.buckets, or where nothing is enlarged"
    )
    enlarge: bool = needs(True, *BUCKETED)
    crop: Literal["random", "centre"] = needs("random", *OF_PICTURES)
    flip: float = needs(0.0, *OF_PICTURES)
    resample: str = needs("lanczos", *OF_PICTURES)
    masks: Literal[False, True, "alpha"] = needs(False, *OF_PICTURES)
    hints: str | None = needs(None, *OF_PICTURES)
    hint_options: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={"needs": Needs(*HINTED)})
    threads: int | None = None
    workers: int = 0
    bad_limit: float = 0.01

    def __post_init__(self) -> None:
        if bool(self.parts) == bool(self.cached):
            raise ValueError("data names parts, which are sources of pictures, or cached folders, and not both")
        _at_least_one("data", self, "side", "threads", "bucket_step")
        if self.side is not None and self.side >= 256 and self.side % 64:
            raise ValueError(f"data.side is a multiple of 64; got {self.side}")
        if not 0 <= self.flip <= 1 or not 0 <= self.bad_limit <= 1:
            raise ValueError(f"data.flip and data.bad_limit are from 0 to 1; got {self.flip} and {self.bad_limit}")
        if self.resample not in METHODS:
            raise ValueError(f"data.resample is one of {', '.join(METHODS)}; got {self.resample!r}")
        if self.hints not in (None, FILES):
            checked_hints(self.hints, self.hint_options)
        if self.workers < 0:
            raise ValueError(f"data.workers is 0 or more; got {self.workers}")
        for i, part in enumerate(self.parts):
            unknown = [name for name in part if name not in PART]
            if unknown or not isinstance(part.get("source"), Mapping):
                raise ValueError(
                    f"data.parts[{i}] has a source, and may have {', '.join(PART[1:])}; got {', '.join(part)}"
                )
            self.captions_of(part, f"data.parts[{i}].captions")

    def captions_of(self, part: Mapping[str, Any], name: str = "captions") -> CaptionConfig:
        """Returns how a part's captions change. Raises ConfigError for values that cannot be."""
        own = part.get("captions", {})
        return build(
            CaptionConfig, {**dataclasses.asdict(self.captions), **own} if isinstance(own, Mapping) else own, name
        )


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """The moving average: `decay` is its final decay, None for no average; `host` keeps it in the host's memory."""

    decay: float | None = 0.9999
    host: bool = needs(False, lambda c: c.decay is not None, "without a moving average (ema.decay)")

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"the moving average's decay lies between 0 and 1, or is None; got {self.decay}")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When states are saved: every `steps` steps or, if that is None, every `minutes` minutes.

    The `keep` newest are kept, and those whose step is a multiple of `keep_every`.
    """

    steps: int | None = None
    minutes: float = needs(15.0, lambda c: c.steps is None, "beside checkpoint.steps, which says when")
    keep: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        _at_least_one("checkpoint", self, "steps", "keep", "keep_every")
        if self.minutes <= 0:
            raise ValueError(f"checkpoint.minutes is above 0; got {self.minutes}")


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """Measures of pictures such as FID and CLIP score, of the averaged parameters, every `every` steps and at the end.

    `measures` are names of `sdjax.train.judges.ALL`. Pictures are made of `count` captions of the file `captions`
    (None: all; `sdjax.evaluate.captions`), each with its own fixed noise, `batch` at a time on each process. `settings`
    are fields of `sdjax.Request`, such as {"num_steps": 50, "guidance_scale": 3.0}. `reference` is a folder of
    pictures, or an npz file. `files` are those of the networks, such as {"inception": PATH}. "builtin" as captions and
    reference stands for those of the built-in model. `best` names the measure whose best state is kept. With
    `resamples` the results in the run's folder have confidence intervals.
    """

    measures: tuple[str, ...] = ()
    captions: str | None = needs(None, *JUDGED)
    count: int | None = needs(None, *JUDGED)
    reference: str | None = needs(None, *JUDGED)
    files: dict[str, str] = dataclasses.field(default_factory=dict, metadata={"needs": Needs(*JUDGED)})
    every: int = needs(5000, *JUDGED)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={"needs": Needs(*JUDGED)})
    batch: int = needs(8, *JUDGED)
    seed: int = needs(0, *JUDGED)
    resamples: int = needs(0, *JUDGED)
    best: str | None = needs(None, *JUDGED)

    def __post_init__(self) -> None:
        _at_least_one("validation.metrics", self, "count", "every", "batch")
        if self.measures and self.captions is None:
            raise ValueError("validation.metrics.captions names the file of captions to make pictures of")
        if self.measures and self.best is not None and self.best not in self.measures:
            raise ValueError(f"validation.metrics.best is one of the measures; got {self.best!r}")
        if self.resamples < 0 or self.seed < 0:
            raise ValueError(f"validation.metrics.resamples and seed are 0 or more; got {self.resamples}, {self.seed}")


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """The loss of a held-out set at fixed timesteps and noise, and measures of pictures.

    The loss is measured on `examples` pictures of `data`, every `every` steps, at `timesteps` timesteps spread evenly
    over the schedule. `best` keeps the state whose moving average has the lowest loss.
    """

    data: DataConfig | None = None
    every: int = needs(1000, *HELD_OUT)
    examples: int = needs(64, *HELD_OUT)
    timesteps: int = needs(4, *HELD_OUT)
    best: bool = False
    metrics: MetricsConfig = MetricsConfig()

    def __post_init__(self) -> None:
        _at_least_one("validation", self, "every", "examples", "timesteps")
        if self.best and self.data is None:
            raise ValueError("validation.best keeps the state of the lowest loss of validation.data: name it")
        if self.best and self.metrics.best is not None:
            raise ValueError("validation.best and validation.metrics.best both say which state is kept: set one")


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """Sample pictures of `prompts`, made with the averaged parameters every `every` steps, from the same noise.

    `first` also makes them before the first step. `image` is the path of an input picture, for models that need one;
    `mask` that of a mask, for inpainting models. `options` are further fields of `sdjax.Request`, such as
    {"negative_prompt": "blurry", "sampler": "euler"}; a list has a value for each prompt.
    """

    prompts: tuple[str, ...] = ()
    every: int = needs(1000, *SAMPLED)
    first: bool = needs(False, *SAMPLED)
    num_steps: int = needs(25, *SAMPLED)
    guidance_scale: float | None = needs(None, *SAMPLED)
    seed: int = needs(0, *SAMPLED)
    image: str | None = needs(None, *SAMPLED)
    mask: str | None = needs(None, *SAMPLED)
    options: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={"needs": Needs(*SAMPLED)})

    def __post_init__(self) -> None:
        _at_least_one("samples", self, "every", "num_steps")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Logging: numbers are written every `every` steps to log.jsonl and, with `tensorboard`, for TensorBoard.

    `peak_flops` is one device's peak rate in operations per second. MFU uses it if sdjax does not know the device.
    `progress` None shows a progress bar on a terminal.
    """

    every: int = 20
    tensorboard: bool = True
    peak_flops: float | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        _at_least_one("log", self, "every")


@dataclasses.dataclass(frozen=True)
class MLPerfConfig:
    """MLPerf's rules for a run: pictures are judged after every `every` pictures, by validation.metrics.

    `targets` are the values of measures at which the run is a success: at most for a distance, at least for a score.
    It then ends, unless `stop` is False. `sdjax.train.mlperf` writes MLPerf's log.
    """

    every: int = 512_000
    targets: dict[str, float] = dataclasses.field(default_factory=lambda: {"fid": 90.0, "openclip-score": 0.15})
    stop: bool = True

    def __post_init__(self) -> None:
        _at_least_one("mlperf", self, "every")
        for name, value in self.targets.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"mlperf.targets are numbers; got {value!r} for {name}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    - `train`: the parts that learn: "unet", "text" or both, trained by `objective`; or "vae" alone, by `autoencoder`.
    - `trainable`: which of their parameters learn: all (`Parts`), or those that a regular expression matches
      (`Leaves`), such as {"kind": "leaves", "pattern": "attn2/"}. `sdjax.loading.trainable.TRAINABLES` lists the kinds.
    - `objective`: the loss, of one of the kinds in `sdjax.train.objectives.table.OBJECTIVES`.
    - `batch_size`: examples a step, over all devices. A step processes them in `accumulate` parts, one after the other.
    - `dtype`: the type that networks compute in. None is bfloat16 on accelerators and float32 on CPU. Parameters,
      optimiser and average are float32. `frozen_dtype`: the type of the fixed parts; None is `dtype`.
    - `remat`: what the UNet's backward pass recomputes instead of storing (`sdjax.nn.unet.REMATS`): "none", "products"
      (cheap operations: all except products and convolutions) or "blocks" (everything within a block).
    - `patience`: seconds after which a step that does not end stops the run. It must allow for compiling.
    - `mlperf`: MLPerf's rules and log; None for any other run.
    """

    data: DataConfig
    optim: OptimConfig
    model: ModelSource = ModelSource()
    train: tuple[str, ...] = ("unet",)
    trainable: Trainable = kinds(Parts(), TRAINABLES)
    objective: Objective = kinds(DiffusionObjective(), OBJECTIVES, needs=Needs(*OF_A_DENOISER))
    autoencoder: AutoencoderObjective | None = None
    batch_size: int = 4
    accumulate: int = 1
    dtype: Any = None
    frozen_dtype: Any = None
    remat: Literal["none", "products", "blocks"] = "none"
    ema: EmaConfig = EmaConfig()
    guard: GuardConfig = GuardConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    log: LogConfig = LogConfig()
    seed: int = 0
    patience: float | None = 1800.0
    mlperf: MLPerfConfig | None = None

    def __post_init__(self) -> None:
        self.minimised.check_parts(self.train)
        unknown = [part for part in self.optim.part_rates if part not in PARTS]
        if unknown:
            raise ValueError(f"optim.part_rates has rates of {', '.join(PARTS)}; got {unknown[0]!r}")
        for name in ("dtype", "frozen_dtype"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, dtype_name(value, name))
        if self.dtype == "float16":
            raise ValueError("float16 has too little range for gradients without scaling the loss: use bfloat16")
        if self.mlperf is not None:
            unmeasured = [name for name in self.mlperf.targets if name not in self.validation.metrics.measures]
            if unmeasured or not self.mlperf.targets or self.optim.name != "adamw":
                raise ValueError(
                    "mlperf needs AdamW, and targets that validation.metrics.measures has; got "
                    f"{self.optim.name} and {', '.join(unmeasured) or 'no target'}"
                )
        if self.batch_size < 1 or self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate divides batch_size, and both are at least 1; got {self.accumulate} and {self.batch_size}"
            )

    @property
    def minimised(self) -> Objective:
        """The objective that is used: `autoencoder` if it is set, else `objective`."""
        return self.objective if self.autoencoder is None else self.autoencoder


def without_effect(config: TrainConfig) -> dict[str, str]:
    """Returns the settings of a run that have no effect, such as "optim.final", each with the reason."""
    return {**config.minimised.without_effect, **_ignored(config)}


def _ignored(config: Any, within: str = "") -> dict[str, str]:
    found = {f"{within}{field.name}": why for field, why in ignored(config)}
    for field in dataclasses.fields(config):
        inner, name = getattr(config, field.name), f"{within}{field.name}"
        if dataclasses.is_dataclass(inner) and name not in found:
            found |= _ignored(inner, f"{name}.")
    return found


def note_settings(config: TrainConfig) -> None:
    """Notes every setting of a run that is not at its default and has no effect."""
    for name, why in without_effect(config).items():
        *outer, field = name.split(".")
        owner = functools.reduce(getattr, outer, config)
        default = next(f.default for f in dataclasses.fields(owner) if f.name == field)
        if default is not dataclasses.MISSING and getattr(owner, field) != default:
            note(f"{name} has no effect {why}: leave it out")
