"""Measures pictures of the averaged parameters during training: FID, CLIP score and others, on all processes together.

Every process makes its share of the pictures on its own devices, and computes their features. These are gathered. The
first process measures, and sends the values to the others.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sdjax.config import ConfigError, ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.evaluate import making, measuring
from sdjax.evaluate.captions import Caption, choose, digest_of, read_captions
from sdjax.evaluate.extractors import Extractor
from sdjax.evaluate.making import Folder, Host
from sdjax.evaluate.measures import Features, Measure
from sdjax.evaluate.measuring import Reference
from sdjax.evaluate.result import Evaluation, Judged, Measured
from sdjax.evaluate.settings import Setting, check_settings, make_settings
from sdjax.loading.trainable import Parts, Trainable
from sdjax.pipeline.model import Pipeline, cast
from sdjax.purpose import kind_of
from sdjax.storage import addresses, manifest
from sdjax.tasks.results import ImageError
from sdjax.train import judges
from sdjax.train.builtin import judging as builtin
from sdjax.train.config import MetricsConfig, TrainConfig
from sdjax.train.samples import averaged, pipeline_of
from sdjax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class PictureJudge:
    """Measures the pictures that a configuration describes. `folder` gets a result for each time, as JSON."""

    config: MetricsConfig
    start: Bundle
    folder: Any
    dtype: str
    trainable: Trainable = Parts()
    say: Callable[[str], None] = print

    @functools.cached_property
    def captions(self) -> list[Caption]:
        """The captions, with their seeds."""
        return read(self.config)

    @functools.cached_property
    def setting(self) -> Setting:
        """The setting of all pictures."""
        return make_settings(self.config.settings)[0]

    @functools.cached_property
    def measures(self) -> list[Measure]:
        """The measures."""
        return chosen(self.config)

    @functools.cached_property
    def networks(self) -> Mapping[str, Extractor]:
        """The networks that judge. The autoencoder is the start model's, so that all steps are judged by the same."""
        start = Pipeline(self.start.config, cast(self.start.params, self.dtype), self.start.tokenizer(), self.dtype)
        return judges.load_networks(self.measures, self.config.files, start)

    @functools.cached_property
    def references(self) -> Mapping[str, Reference]:
        """What the networks' features are compared with. Only the first process needs it."""
        wanted = [one.extractor for one in self.measures if one.needs_reference]
        if not wanted:
            return {}
        found = judges.open_reference(self.config.reference, builtin=self.config.captions == judges.BUILTIN)
        assert found is not None  # `chosen`
        kept = None if addresses.remote(self.folder) else Folder(self.folder)
        return {name: found.features(self.networks[name], kept) for name in dict.fromkeys(wanted)}

    def prepare(self) -> None:
        """Loads the networks and looks at the reference, so that what is wrong with them is found before training."""
        if jax.process_index() == 0:
            judges.fitting(self.measures, self.networks, self.references)

    def run(self, state: TrainState) -> dict[str, float]:
        """Returns the measures of a state's moving average, or of its parameters if it has none: "metrics/fid", ...

        With `config.best`, the value that ranks the state is also returned, as "best". A value that cannot be computed
        is NaN.
        """
        pipe = pipeline_of(averaged(state), self.start, self.trainable, self.dtype)
        features = self._features(pipe)
        values = np.full(len(self.measures), np.nan)
        if jax.process_index() == 0 and features is not None:
            measured = {one.name: found for one in self.measures if (found := self._measured(one, features))}
            values = np.array([_value(measured.get(one.name)) for one in self.measures])
            self._write(int(state.step), measured)
        values = _from_first(values)
        numbers = {f"metrics/{one.name}": float(value) for one, value in zip(self.measures, values)}
        if self.config.best is not None:
            value = numbers[f"metrics/{self.config.best}"]
            numbers["best"] = value if judges.ALL[self.config.best].lower_is_better else -value
        return numbers

    def _features(self, pipe: Pipeline) -> Mapping[str, Features] | None:
        """Returns the features of all pictures by network; None if a picture holds values that are not numbers."""
        host, batch = Host(jax.process_index(), jax.process_count()), self.config.batch
        share = host.share(self.captions) or self.captions[:1]  # every process takes part
        pictures: list[np.ndarray] = []
        problem = ""
        try:
            for start in range(0, len(share), batch):
                requests = [self.setting.request(one) for one in share[start : start + batch]]
                pictures += making.make(pipe, requests, batch=batch, devices=jax.local_devices())
        except ImageError as error:
            problem = str(error)
        if _gathered(np.array([[float(bool(problem))]], np.float32), host.count).any():
            self.say(f"the pictures cannot be measured: {problem or 'another process has made one that is none'}")
            return None
        found: dict[str, Features] = {}
        for name, network in self.networks.items():
            own = measuring.extract(network, pictures, [one.text for one in share])
            found[name] = {key: _gathered(rows, host.count, len(self.captions)) for key, rows in own.items()}
        return found

    def _measured(self, one: Measure, features: Mapping[str, Features]) -> Measured | None:
        try:
            return measuring.measure(
                one, features[one.extractor], self.references.get(one.extractor),
                identity=self.networks[one.extractor].identity, resamples=self.config.resamples,
            )  # fmt: skip
        except ValueError as error:
            self.say(f"{one.name} cannot be measured: {error}")
            return None

    def _write(self, step: int, measured: Mapping[str, Measured]) -> None:
        judged = Judged(self.setting.name, {}, self.setting.values, measured)
        made = Evaluation({"name": f"step {step}"}, digest_of(self.captions), len(self.captions), (judged,))
        if not addresses.remote(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        manifest.write_json(self.folder / f"{step:08d}.json", json.loads(made.to_json()))


def check_judging(config: TrainConfig, model: ModelConfig) -> None:
    """Raises ConfigError or ValueError for measures that a run cannot compute, before weights are read."""
    if kind_of(model) != "text" or config.autoencoder is not None:
        raise ConfigError("validation.metrics makes pictures of captions alone: it is for training text to image")
    metrics = config.validation.metrics
    chosen(metrics)
    read(metrics)
    check_settings(model, make_settings(metrics.settings))


def read(config: MetricsConfig) -> list[Caption]:
    """Returns the captions of a configuration. Raises ValueError for a file that holds none, or fewer."""
    assert config.captions is not None  # MetricsConfig
    if config.captions == judges.BUILTIN:
        return choose(builtin.captions(config.seed), config.count or judges.COUNT, config.seed)
    return choose(read_captions(config.captions), config.count, config.seed)


def chosen(config: MetricsConfig) -> list[Measure]:
    """Returns the measures of a configuration. Raises ValueError if one is unknown, or if its files are missing."""
    own = config.captions == judges.BUILTIN
    return judges.choose(config.measures, config.files, reference=config.reference is not None or own, builtin=own)


def _value(found: Measured | None) -> float:
    return math.nan if found is None or found.value is None else found.value


def _from_first(values: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    # Halves of float64: JAX would round it to float32
    high = values.astype(np.float32)
    low = (values - high).astype(np.float32)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(np.stack([high, low])), np.float64)
    return sent.sum(0)


def _gathered(rows: np.ndarray, hosts: int, count: int | None = None) -> np.ndarray:
    """Returns the rows of all processes, [n, d], in the order of the captions that `Host.share` has dealt out.

    All have `count` rows together; None if each has as many.
    """
    if hosts == 1:
        return rows
    from jax.experimental import multihost_utils

    most = len(rows) if count is None else -(-count // hosts)
    filled = np.concatenate([rows, np.repeat(rows[-1:], most - len(rows), axis=0)])
    dealt = np.asarray(multihost_utils.process_allgather(filled))  # [hosts, most, d]
    together = dealt.swapaxes(0, 1).reshape(-1, *rows.shape[1:])
    return together if count is None else together[:count]
