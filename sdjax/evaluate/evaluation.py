"""An evaluation from its captions to its result, by one process or by several hosts that see one folder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from sdjax.evaluate import measuring
from sdjax.evaluate.bootstrap import RESAMPLES
from sdjax.evaluate.captions import Caption, digest_of
from sdjax.evaluate.extractors import Extractor
from sdjax.evaluate.making import Folder, Host, make_missing
from sdjax.evaluate.measures import Features, Measure
from sdjax.evaluate.measuring import Reference
from sdjax.evaluate.result import Evaluation, Judged
from sdjax.evaluate.settings import Setting
from sdjax.pipeline.model import Pipeline
from sdjax.storage.files import write_file

LOCK = ".joining.lock"
RESULT = "result.json"
WRITING = "writing the result"


@dataclasses.dataclass(frozen=True)
class Judging:
    """An evaluation that is to be made. `run` makes it, and goes on from whatever an interrupted run has left.

    `model` is the model's identity, for the result and the manifest; `file` is the digest of all captions of the file
    that `captions` are chosen from. `measures` are computed from the features of
    `networks`, by their names. `reference(name)` returns what a network's features are compared with. `batch` pictures
    are made at a time, over `devices`. `say` gets lines about the progress.
    """

    pipe: Pipeline
    model: Mapping[str, Any]
    file: str
    captions: Sequence[Caption]
    settings: Sequence[Setting]
    measures: Sequence[Measure]
    networks: Mapping[str, Extractor]
    reference: Callable[[str], Reference | None]
    path: Path
    host: Host = Host()
    batch: int = 8
    devices: Sequence[jax.Device] | None = None
    resamples: int = RESAMPLES
    say: Callable[[str], None] = print

    @property
    def folder(self) -> Folder:
        """The folder of files."""
        return Folder(self.path)

    def claim(self) -> None:
        """Takes the folder for this evaluation. Raises ValueError if it holds another one (`Folder.claim`)."""
        self.folder.claim({"model": dict(self.model), "dtype": self.pipe.dtype, "captions": self.file}, self.settings)

    def run(self) -> Evaluation | None:
        """Makes what is missing of this host's share. The host that is the last one also joins, measures and returns.

        Returns None on the other hosts. Raises what `make_missing` and the measures raise.
        """
        self.claim()
        for setting in self.settings:
            self._make(setting)
        parts = [self._extract(setting, name) for setting in self.settings for name in self.networks]
        mine = [part for part in parts if part is not None]
        with filelock.FileLock(self.path / LOCK):
            if mine and not any(part.exists() for part in mine):
                return None  # another host was the last one, and has joined this share
            if not mine and self.host.index > 0:
                return None  # all was joined before; one host is enough to measure
            if not all(self._is_there(setting, name) for setting in self.settings for name in self.networks):
                return None
            self.folder.remove_unfinished()
            return self._join()

    def _make(self, setting: Setting) -> None:
        share = self.host.share(self.captions)
        left = len(self.folder.missing(setting, share))
        if not left:
            return
        done = len(share) - left
        self.say(f"{setting.name}: {left} pictures to make" + (f", {done} are there" if done else ""))

        def report(count: int) -> None:
            nonlocal done
            done += count
            self.say(f"{setting.name}: {done} of {len(share)} pictures")

        make_missing(
            self.pipe, self.folder, setting, share, batch=self.batch, devices=self.devices, report=report
        )  # fmt: skip

    def _extract(self, setting: Setting, name: str) -> Path | None:
        """Writes the features of this host's share, and returns their path; None if all features are there."""
        network, share = self.networks[name], self.host.share(self.captions)
        if measuring.holds_features(self._whole(setting, name), _numbers(self.captions), network.identity):
            return None
        path = self.folder.features(setting.folder, name, self.host)
        if share and not measuring.holds_features(path, _numbers(share), network.identity):
            self.say(f"{setting.name}: features of {name}")
            pictures = self.folder.open(setting, share)
            found = measuring.extract(network, pictures, [caption.text for caption in share])
            measuring.save_features(path, found, _numbers(share), network.identity)
        return path

    def _whole(self, setting: Setting, name: str) -> Path:
        return self.folder.features(setting.folder, name)

    def _shares(self, setting: Setting, name: str) -> list[tuple[Path, Sequence[Caption]]]:
        hosts = [Host(index, self.host.count) for index in range(self.host.count)]
        shares = [(self.folder.features(setting.folder, name, host), host.share(self.captions)) for host in hosts]
        return [(path, share) for path, share in shares if share]

    def _is_there(self, setting: Setting, name: str) -> bool:
        """Returns whether the features of all pictures are there, joined or in parts."""
        identity, whole = self.networks[name].identity, self._whole(setting, name)
        return measuring.holds_features(whole, _numbers(self.captions), identity) or all(
            measuring.holds_features(path, _numbers(share), identity) for path, share in self._shares(setting, name)
        )

    def _join(self) -> Evaluation:
        judged = []
        references = {
            name: self.reference(name)
            for name in self.networks
            if any(one.needs_reference and one.extractor == name for one in self.measures)
        }
        for setting in self.settings:
            self.say(f"{setting.name}: measuring")
            features = {name: self._joined(setting, name) for name in self.networks}
            measures = {}
            for one in self.measures:
                network, reference = self.networks[one.extractor], references.get(one.extractor)
                try:
                    measures[one.name] = measuring.measure(
                        one, features[one.extractor], reference, identity=network.identity, resamples=self.resamples
                    )
                except ValueError as error:  # the other measures may still be right
                    self.say(f"{setting.name}: {one.name} cannot be measured: {error}")
            judged.append(Judged(setting.name, setting.swept, setting.values, measures))
        made = Evaluation(self.model, digest_of(self.captions), len(self.captions), tuple(judged))
        for ending, text in (".json", made.to_json()), (".csv", made.to_csv()):
            path = (self.path / RESULT).with_suffix(ending)
            write_file(path, text.encode(), overwrite=True, what=WRITING)
        return made

    def _joined(self, setting: Setting, name: str) -> Features:
        """Returns the features of all pictures, and joins the hosts' parts in one file."""
        identity, path = self.networks[name].identity, self._whole(setting, name)
        numbers = _numbers(self.captions)
        whole = measuring.read_features(path, numbers, identity)
        if whole is None:
            rows: dict[str, np.ndarray] = {}
            for index, (part, share) in enumerate(self._shares(setting, name)):
                found = measuring.read_features(part, _numbers(share), identity)
                if found is None:
                    raise ValueError(f"{part} is damaged: remove it, and start again")
                for feature, values in found.items():
                    shape = (len(numbers), *values.shape[1:])
                    rows.setdefault(feature, np.empty(shape, values.dtype))[index :: self.host.count] = values
            whole = rows
            measuring.save_features(path, whole, numbers, identity)
        for part in path.parent.glob(f"{name}.part-*-of-*.npz"):
            part.unlink()
        return whole


def _numbers(captions: Sequence[Caption]) -> list[int]:
    return [caption.number for caption in captions]
