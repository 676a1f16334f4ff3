"""The lines of MLPerf's log, `:::MLLOG {...}`, and its clock, which stands still while pictures are judged.

MLPerf measures the time from `run_start` to `run_stop`, without evaluation. So the lines after `run_start` carry the
time of training alone. A run that goes on from a checkpoint writes a new log, which is no valid result.

Source of the keys: mlcommons/logging, compliance_checker/training_5.0.0 (common.yaml, closed_common.yaml and
closed_stable_diffusion.yaml).
"""

import dataclasses
import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Literal

import jax

from sdjax.config import ConfigError
from sdjax.errors import doing
from sdjax.storage import addresses
from sdjax.storage.files import write_file
from sdjax.train import judges
from sdjax.train.config import MLPerfConfig, TrainConfig
from sdjax.train.judging import read
from sdjax.train.loop import DONE, Event
from sdjax.train.state import TrainState

NAMES = {"fid": "FID", "openclip-score": "CLIP"}  # MLPerf's names of measures
FILE = "mlperf.log"


def check_mlperf(folder: Any) -> None:
    """Raises ConfigError if a run cannot be logged: mlperf-logging is missing, or the folder is no local one."""
    if addresses.remote(folder):
        raise ConfigError(f"MLPerf's log is written into a local folder; --workdir is {folder}")
    try:
        import mlperf_logging.mllog  # noqa: F401
    except ImportError:
        raise ConfigError(
            "MLPerf's log needs mlperf-logging: pip install mlperf-logging, or set mlperf = None"
        ) from None


class MLPerfLog:
    """Writes the lines of one run to `mlperf.log` in its folder, through mlperf_logging. The first process writes.

    The order of calls is `prepare`, `begin`, and `end`; `judged` makes the event that writes the lines between.
    """

    def __init__(self, config: TrainConfig, mlperf: MLPerfConfig, folder: pathlib.Path):
        self.config, self.mlperf, self.folder = config, mlperf, folder
        self.reached = False
        self._still: float | None = None  # the time at which the clock stands
        self._paused = 0.0  # seconds that it has stood
        self._file: pathlib.Path | None = None

    @property
    def every(self) -> int:
        """The steps from one evaluation to the next."""
        return math.ceil(self.mlperf.every / self.config.batch_size)

    def prepare(self) -> None:
        """Begins a log: writes that preparing begins, and what the run is."""
        if jax.process_index() == 0:
            with doing("making the run's folder", self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.folder / FILE
            write_file(self._file, b"", overwrite=True, what="beginning MLPerf's log")
        c, o = self.config, self.config.optim
        self._write("event", "cache_clear", True)
        self._write("start", "init_start")
        values = {
            "submission_benchmark": "stable_diffusion", "submission_division": "closed", "submission_org": "sdjax",
            "submission_platform": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "submission_status": "research", "submission_poc_name": "none", "submission_poc_email": "none",
            "seed": c.seed, "global_batch_size": c.batch_size, "gradient_accumulation_steps": c.accumulate,
            "opt_name": o.name, "opt_adamw_beta_1": 0.9 if o.beta1 is None else o.beta1,
            "opt_adamw_beta_2": 0.999 if o.beta2 is None else o.beta2, "opt_adamw_epsilon": 1e-8,
            "opt_adamw_weight_decay": o.weight_decay, "opt_base_learning_rate": o.learning_rate / c.batch_size,
            "opt_learning_rate_warmup_steps": o.warmup_steps, "eval_samples": len(read(c.validation.metrics)),
        }  # fmt: skip
        for name, value in values.items():
            self._write("event", name, value)

    def begin(self, step: int, records: int) -> None:
        """Writes that training begins after so many steps, on a set of so many `records`."""
        self._write("event", "train_samples", records)
        self._write("end", "init_stop")
        self._write("start", "run_start")
        self._block("start", step)

    def judged(self, event: Event) -> Event:
        """Returns the event that judges pictures, with MLPerf's lines around it, every `every` steps.

        It ends the training when all targets are reached at once, unless `MLPerfConfig.stop` is False.
        """

        def run(state: TrainState) -> dict[str, float]:
            step = int(state.step)
            self._block("end", step)
            self._still = time.time()
            try:
                self._write("start", "eval_start", None, self._samples(step))
                values = event.run(state)
                found = {name: values[f"metrics/{name}"] for name in self.mlperf.targets}
                for name, value in found.items():
                    where = {**self._samples(step), "metric": NAMES.get(name, name)}
                    self._write("event", "eval_accuracy", value, where)
                self._write("end", "eval_stop", None, self._samples(step))
            finally:
                self._paused += time.time() - self._still
                self._still = None
            self.reached |= all(self._good(name, value) for name, value in found.items())
            if self.reached and self.mlperf.stop:
                return {**values, DONE: 1.0}
            if step < self.config.optim.steps:
                self._block("start", step)
            return values

        return dataclasses.replace(event, every=self.every, run=run)

    def end(self) -> None:
        """Writes that the run ends: with success if all targets were reached at once."""
        self._write("end", "run_stop", None, {"status": "success" if self.reached else "aborted"})

    def _good(self, name: str, value: float) -> bool:
        target = self.mlperf.targets[name]
        return value <= target if judges.ALL[name].lower_is_better else value >= target

    def _samples(self, step: int) -> dict[str, int]:
        return {"samples_count": step * self.config.batch_size}

    def _block(self, kind: Literal["start", "end"], step: int) -> None:
        self._write(kind, "block_start" if kind == "start" else "block_stop", None, self._samples(step))

    def _write(
        self, kind: Literal["start", "end", "event"], key: str, value: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if self._file is None:
            return
        from mlperf_logging.mllog import mllog

        now = (time.time() if self._still is None else self._still) - self._paused
        lines = logging.Logger("mlperf")  # of its own: mllog's default prints, and stays for ever
        with open(self._file, "a") as file:
            lines.addHandler(logging.StreamHandler(file))
            logger = mllog.MLLogger(lines, root_dir=str(pathlib.Path(__file__).parents[2]))
            write = {"start": logger.start, "end": logger.end, "event": logger.event}[kind]
            write(key, json.loads(json.dumps(value)), metadata=dict(metadata or {}), time_ms=int(1000 * now))
