"""Runs a training from its configuration to its last checkpoint, for `sdjax train`.

The folder of a run holds `settings.json`, the settings that it was started with; `dataset.json`, the statistics of its
training set; `base/`, a copy of the model that it started from, or `base.json`, the place of that model
(`sdjax.loading.reference`); `checkpoints/`; `log.jsonl`, `tensorboard/` and `pictures/`; `metrics/`, the results of
`validation.metrics`.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdjax._version import __version__
from sdjax.config import ConfigError, ModelConfig
from sdjax.convert.bundle import Bundle
from sdjax.loading import reference
from sdjax.loading.adapter_files import write_files
from sdjax.loading.run_folder import keep_start, read_start
from sdjax.loading.run_layout import BASE, CHECKPOINTS, DATASET, METRICS, REFERENCE, SETTINGS, workdir
from sdjax.loading.start_model import bytes_of, describe, open_start
from sdjax.loading.trainable import Addition
from sdjax.nn import TextEncoder
from sdjax.nn.jax_settings import IMPL, make_key, pinned, setting
from sdjax.pipeline import cache
from sdjax.pipeline.model import cast
from sdjax.prompts.added_words import AddedWords
from sdjax.storage import addresses, buckets, files, manifest
from sdjax.train import parallel, training_set
from sdjax.train.build import Setup
from sdjax.train.checkpoints import settings
from sdjax.train.checkpoints.checkpoint import Checkpoints
from sdjax.train.config import TrainConfig, note_settings
from sdjax.train.data.loader import Loader
from sdjax.train.data.order import Order
from sdjax.train.data.statistics import set_statistics
from sdjax.train.judging import PictureJudge, check_judging
from sdjax.train.loop import Event, fit
from sdjax.train.metrics import Speed, Writers
from sdjax.train.mlperf import MLPerfLog, check_mlperf
from sdjax.train.objectives.objective import SEED
from sdjax.train.outputs import check_tensorboard
from sdjax.train.planning.peaks import peak_flops
from sdjax.train.planning.summary import summary
from sdjax.train.profiling import profiled
from sdjax.train.run_data import RunData, RunSet
from sdjax.train.samples import SampleMaker, check_samples, whole
from sdjax.train.state import TrainState
from sdjax.train.validation import Validation
from sdjax.typing import Params

COPYING, ADVICE = "copying the start model to", ", or train with model.copy = False, which keeps only where it lies"


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run in a folder.

    `say` gets the lines to print before the first step; `notices` come first, after everything is checked. `profile` is
    a folder for a trace of steps 11 to 20 of this call. `devices` None means all devices.
    """

    config: TrainConfig
    folder: pathlib.Path
    say: Callable[[str], None] = print
    profile: str | None = None
    devices: Sequence[jax.Device] | None = None
    notices: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", workdir(self.folder))
        addresses.local(self.profile)

    @pinned()
    def train(self) -> TrainState:
        """Trains to the last step, from the newest checkpoint if there is one, and returns the state.

        Raises ConfigError, SourceError and CheckpointError for bad settings, data and files, and the errors of `fit`.
        """
        cache.enable()
        note_settings(self.config)
        if self.config.parallel.mode == "pmap" and jax.process_count() > 1:
            raise ConfigError('pmap is for the devices of one process: use parallel.mode = "jit"')
        files.check_folder(self.folder, "writing the run into")
        counted = dataclasses.replace(self, config=self.count_steps())
        return dataclasses.replace(counted, config=counted.check_settings())._train()

    def _train(self) -> TrainState:
        self.check()
        for notice in self.notices:
            self.say(notice)
        for notice in self.start.report.notices:
            self.say(notice)
        self.keep_settings()
        if self.mlperf is not None:
            self.mlperf.prepare()
        mesh = self.mesh
        c = self.config.checkpoint
        with Checkpoints(self.folder / CHECKPOINTS, c.keep, keep_every=c.keep_every, say=self.say) as checkpoints:
            like, create, frozen, step = self.prepare(mesh)
            state = checkpoints.restore(like)
            if state is not None and (over := finished(int(state.step), self.config.optim.steps)):
                self.say(over)
                return state
            state = create() if state is None else state
            with contextlib.closing(self._writers(mesh, int(state.step))) as log:
                self.loader.say = log.say
                for line in summary(self.setup, mesh, self.loader):
                    log.say(line)
                events = self._events(mesh, frozen, log)
                if self.mlperf is not None:
                    self.mlperf.begin(int(state.step), sum(len(one.members) for one in self.loader.examples.streams))
                with profiled(step, self.profile) as take:
                    state = fit(
                        state, take, functools.partial(self.batches, mesh), steps=self.config.optim.steps,
                        checkpoints=checkpoints, log=log, log_every=self.config.log.every, save_every=60 * c.minutes,
                        save_steps=c.steps, events=events,
                        refused_limit=self.config.guard.limit, patience=self.config.patience,
                        programs=len(self.loader.order.sizes),
                    )  # fmt: skip
                if self.mlperf is not None:
                    self.mlperf.end()
                self.write_files(state, log.say)
                return state

    def write_files(self, state: TrainState, say: Callable[[str], None]) -> None:
        """Writes what was learned beside the model as files that other tools read (`sdjax.loading.adapter_files`)."""
        what = self.config.trainable
        if not isinstance(what, Addition):
            return
        learned = whole(state.params if state.ema_params is None else state.ema_params)
        if jax.process_index() == 0 and not addresses.remote(self.folder):
            for path in write_files(self.folder, what, learned, self.start.config, int(state.step)):
                say(f"wrote {path}")

    def check(self) -> None:
        """Checks everything that can be checked before weights are read or anything is written."""
        if self.profile is not None:
            files.check_folder(self.profile, "writing the trace into")
        if self.config.log.tensorboard:
            check_tensorboard()
        self.config.minimised.check_files()
        self.data.open()
        parallel.examples_each(self.config.batch_size, self.config.accumulate, self.mesh.shape)
        setup, samples = self.setup, self.config.samples
        if samples.prompts:
            check_samples(samples, setup.model)
        if self.mlperf is not None:
            check_mlperf(self.folder)
        if self.config.validation.metrics.measures:
            check_judging(self.config, setup.model)
        copied = bytes_of(self.config.model) if self.new and self.config.model.copy else 0
        files.check_room(self.folder / BASE, copied, COPYING, ADVICE)
        state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.shapes[0]))
        files.check_room(self.folder / CHECKPOINTS, copied + state, "writing checkpoints into")

    @functools.cached_property
    def new(self) -> bool:
        """Whether there is no checkpoint yet. Settings may then change, and the start model is read again."""
        return not _first_says(manifest.steps(self.folder / CHECKPOINTS) != [])

    def check_settings(self) -> TrainConfig:
        """Returns the configuration. A resumed run keeps its warm-up.

        Raises ConfigError if settings that may not change differ from those that the run was started with. Without a
        checkpoint all settings may change, and the run counts as new.
        """
        if self.new:
            return self.config
        return settings.resumed(self.config, self.folder, self.say)

    def count_steps(self) -> TrainConfig:
        """Returns the configuration with the steps of its epochs (`optim.epochs`)."""
        optim = self.config.optim
        if optim.epochs is None:
            return self.config
        examples = self.data.training.examples
        order = Order(examples.streams, self.config.batch_size, self.config.seed)
        steps = optim.epochs * order.batches_per_epoch
        self.say(f"{optim.epochs} epochs of {order.batches_per_epoch} batches are {steps} steps")
        return dataclasses.replace(self.config, optim=dataclasses.replace(optim, steps=steps, epochs=None))

    def keep_settings(self) -> None:
        """Writes the settings of a new run, and the statistics of its training set, into its folder."""
        if self.new and jax.process_index() == 0:
            manifest.write_json(self.folder / SETTINGS, {"sdjax": __version__, **settings.stored(self.config)})
            statistics = set_statistics(self.data.training.examples, self.config.batch_size)
            manifest.write_json(self.folder / DATASET, {"started": time.time(), **statistics})

    @functools.cached_property
    def start(self) -> Bundle:
        """The model that the run starts from. Its folder keeps it from the first call on."""
        kept, source = self.folder / BASE, self.config.model
        if not self.new:
            return read_start(self.folder)
        made = open_start(source, self.config.seed)
        if jax.process_index() == 0:
            if addresses.remote(self.folder):  # left by a run that ended before its first checkpoint
                buckets.remove(kept)
                buckets.remove(self.folder / REFERENCE)
            else:
                shutil.rmtree(kept, ignore_errors=True)
                (self.folder / REFERENCE).unlink(missing_ok=True)
            if source.copy:
                keep_start(made, kept, COPYING, ADVICE)
            else:
                reference.keep(self.folder, source)
        return made

    @functools.cached_property
    def model(self) -> ModelConfig:
        """The configuration of the model that the run starts from."""
        return describe(self.config.model) if self.new else self.start.config

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh of devices."""
        return parallel.training_mesh(self.config.parallel, self.devices)

    @functools.cached_property
    def data(self) -> RunData:
        """Training set and held-out set."""
        return RunData(self.config, lambda: self.model)

    @functools.cached_property
    def mlperf(self) -> MLPerfLog | None:
        """MLPerf's log of this run; None without `config.mlperf`."""
        return None if self.config.mlperf is None else MLPerfLog(self.config, self.config.mlperf, self.folder)

    @functools.cached_property
    def loader(self) -> Loader:
        """The training set's batches."""
        return self._loader(self.data.training, self.config.seed)

    def _loader(self, data: RunSet, seed: int) -> Loader:
        tokenizer = self.start.tokenizer() if self.config.minimised.captions else None
        if tokenizer is not None and self.setup.added:
            tokenizer = AddedWords.to(tokenizer, self.setup.added)
        return training_set.make_loader(
            data.config, self.start.config, tokenizer, batch_size=self.config.batch_size, seed=seed,
            params=self.start.params, sharding=parallel.batch_sharding(self.mesh), examples=data.examples,
        )  # fmt: skip

    @functools.cached_property
    def setup(self) -> Setup:
        """The computations of the run."""
        held_out = None if self.data.held_out is None else self.data.held_out.text
        return Setup(self.config, self.model, self.data.training.text, held_out)

    @functools.cached_property
    def empty(self) -> np.ndarray:
        """The empty caption's tokens, or its context if captions are stored as context."""
        text = self.start.config.text
        ids = self.start.tokenizer()([""], length=text.max_length, pad_token_id=text.pad_token_id)
        if self.setup.text == "ids":
            return ids[0]
        encode = jax.jit(lambda params, ids: TextEncoder(text).apply({"params": params}, ids))
        return np.asarray(encode(self.start.params["text"], jnp.asarray(ids)))[0]

    def prepare(self, mesh: Mesh) -> tuple[TrainState, Callable[[], TrainState], Params, Callable]:
        """Returns the state's shapes with shardings, a function for the first state, the fixed parameters, the step."""
        setup, how = self.setup, self.config.parallel
        shapes, _ = setup.shapes
        where = parallel.shardings(shapes, mesh, how)
        if self.config.ema.host:
            where = where.replace(ema_params=parallel.on_host(where.ema_params))
        like = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, where)
        params, frozen = self._params()
        frozen_where = parallel.shardings(frozen, mesh, how)
        place_ema = parallel.move_ema(where.ema_params) if self.config.ema.host else None
        compiled = parallel.compile_step(setup.step(self.empty, place_ema), mesh, where, frozen_where, how)
        fixed, numbers = parallel.place(frozen, frozen_where), parallel.replicated(setup.numbers, mesh)

        def create() -> TrainState:
            def make(params: Params, key: jax.Array) -> TrainState:
                return setup.create(params, jax.random.wrap_key_data(key, impl=IMPL))

            # The seed is an argument too, as data that is the same in all processes
            key = np.asarray(jax.random.key_data(make_key(self.config.seed)))
            return jax.jit(make, out_shardings=where, donate_argnums=0)(parallel.place(params, where.params), key)

        return like, create, fixed, lambda state, batch: compiled(state, fixed, batch, numbers)

    def _params(self) -> tuple[Params, Params]:
        """Returns the trained parameters, float32, and the fixed ones, on the host."""
        params, frozen = self.setup.split(self.start.params, make_key(self.config.seed), self.start.tokenizer())
        return cast(params, "float32"), cast(frozen, self.setup.frozen_dtype)

    def batches(self, mesh: Mesh, first: int) -> Iterator[dict[str, Any]]:
        """Yields the batches from step `first` on, on the devices."""
        with contextlib.closing(self.loader.on_devices(parallel.batch_sharding(mesh), first)) as made:
            for batch in made:
                yield training_set.arrays(batch)

    def _writers(self, mesh: Mesh, first: int) -> Writers:
        c, device = self.config, mesh.devices.flat[0]
        products = self.setup.dtype
        if products == "float32" and device.platform == "gpu" and setting("jax_default_matmul_precision") is None:
            products = "tensorfloat32"
        peak = c.log.peak_flops or peak_flops(device.device_kind, products)
        speed = Speed(c.batch_size, self.setup.flops().model, peak and peak * mesh.size)
        return Writers(
            self.folder, c.optim.steps, first=first, speed=speed, tensorboard=c.log.tensorboard,
            progress=c.log.progress,
        )  # fmt: skip

    def _events(self, mesh: Mesh, frozen: Params, log: Writers) -> tuple[Event, ...]:
        events = []
        v, s = self.config.validation, self.config.samples
        if self.data.held_out is not None:
            held_out = self._loader(self.data.held_out, SEED)
            events.append(Event(v.every, self._validation(mesh, frozen, held_out).run, "validation"))
        if s.prompts:
            maker = SampleMaker(s, self.start, log, self.setup.dtype, self.config.trainable)
            events.append(Event(s.every, maker.run, "samples", s.first))
        if v.metrics.measures:
            judge = PictureJudge(
                v.metrics, self.start, self.folder / METRICS, self.setup.dtype, self.config.trainable, log.say
            )
            log.say("loading the networks that judge")
            judge.prepare()
            event = Event(v.metrics.every, judge.run, "the measures of pictures", brief=False)
            events.append(event if self.mlperf is None else self.mlperf.judged(event))
        return tuple(events)

    def _validation(self, mesh: Mesh, frozen: Params, loader: Loader) -> Validation:
        v, size = self.config.validation, self.config.batch_size
        count = min(-(-v.examples // size), loader.batches_per_epoch)
        sharding = parallel.batch_sharding(mesh)
        losses = jax.jit(parallel.over(mesh, self.setup.losses(self.empty)))

        def average(state: TrainState) -> Params | None:
            kept = state.ema_params
            return parallel.on_devices(kept) if self.config.ema.host and kept is not None else kept

        return Validation(
            losses, self.config.trainable.assemble,
            lambda i: training_set.arrays(loader.put(loader.batch(i), sharding)), count, size, frozen, v.best, average,
        )  # fmt: skip


def finished(done: int, steps: int) -> str | None:
    """Returns the message for a run that has already taken all its `steps`; None if some are left."""
    if done < steps:
        return None
    return (
        f"this run is finished: it has taken {done} steps, and optim.steps is {steps}. To train on, set optim.steps "
        f"(--steps) to more than {done}"
    )


def _first_says(answer: bool) -> bool:
    """Returns the first process's answer, so that all processes do the same."""
    if jax.process_count() == 1:
        return answer
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(answer)))
