"""The checkpoints that are loaded: leased by jobs in their order, the least recently used is dropped for another."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

import sdjax
from sdjax.loading import builtin, hub
from sdjax.pipeline.model import Pipeline
from sdjax.serve.engine.device import Device
from sdjax.serve.engine.joined import JoinedPipeline
from sdjax.tasks import recording, safety

if TYPE_CHECKING:
    from sdjax.serve.library import Library

SHARE = 0.6  # of a device's memory that loaded models may take
OFF, AUTO = "off", "auto"  # of the safety checker


@dataclasses.dataclass(eq=False)
class Loaded:
    """A loaded model, what a picture's file says about it, and its safety checker if it has one."""

    name: str
    parts: tuple[tuple[str, str], ...]
    pipe: Pipeline
    size: int
    description: dict[str, Any]
    checker: sdjax.SafetyChecker | None = None
    used: float = 0.0
    jobs: set[str] = dataclasses.field(default_factory=set)


class Models:
    """The models of a library on a device. `most` bytes may be loaded at once; one model always may."""

    def __init__(
        self, library: "Library", device: Device, current: str, choose: Callable[[str], None], *,
        dtype: str | None = None, most: int | None = None, checker: str = AUTO, quantise: str = "auto",
    ) -> None:  # fmt: skip
        self.library, self.device, self.dtype, self.checker = library, device, dtype, checker
        self.quantise = quantise
        self.most = memory(device.mesh.devices.flat[0]) if most is None else most
        self._current, self._choose = current, choose
        self._loaded: list[Loaded] = []
        self._clock = 0
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # one job after the other: a job that waits for room is not overtaken

    @property
    def current(self) -> str:
        """The name of the model for works that name none."""
        return self._current

    def use(self, name: str) -> str:
        """Makes a model the current one, for works that come later. Raises ValueError for an unknown name."""
        name = self.library.find("checkpoint", name).name
        self._choose(name)
        self._current = name
        return name

    @property
    def loaded(self) -> list[str]:
        """The names of the loaded models, the most recently used first."""
        with self._changed:
            return [one.name for one in sorted(self._loaded, key=lambda one: -one.used)]

    def free(self) -> None:
        """Drops every model that no job uses."""
        with self._changed:
            self._loaded = [one for one in self._loaded if one.jobs]
        self.device.latest = None

    def lease(self, job: str, name: str | None, **parts: Any) -> Loaded:
        """Returns a model for a job until `release`. It is read if it is not there."""
        entry = self.library.find("checkpoint", name or self.current)
        key = tuple(sorted((part, str(value)) for part, value in parts.items() if value is not None))
        with self._changed:
            more = any(job in one.jobs for one in self._loaded)  # others may wait for it: it waits for nobody
        with contextlib.nullcontext() if more else self._turn:
            with self._changed:
                found = self._find(entry.name, key)
            if found is None:
                found = self._load(entry, key, job)
            with self._changed:
                self._clock += 1
                found.used = self._clock
                found.jobs.add(job)
                if found not in self._loaded:
                    self._loaded.append(found)
            return found

    def release(self, job: str) -> None:
        """Gives back what a job leased."""
        with self._changed:
            for one in self._loaded:
                one.jobs.discard(job)
            self._changed.notify_all()

    def _find(self, name: str, parts: tuple[tuple[str, str], ...]) -> Loaded | None:
        return next((one for one in self._loaded if (one.name, one.parts) == (name, parts)), None)

    def _load(self, entry: Any, parts: tuple[tuple[str, str], ...], job: str) -> Loaded:
        own, place = entry.name in builtin.NAMES, str(entry.path)
        local = builtin.place(entry.name) if own else Path(hub.resolve(place))
        self._make_room(0 if own else size_of(local), job)
        pipe = sdjax.load(entry.name if own else local, dtype=self.dtype, quantise=self.quantise, **dict(parts))
        joined = JoinedPipeline.of(pipe, self.device)
        self.device.call(lambda: jax.block_until_ready(joined.on(self.device.mesh)))
        found = safety.beside(local) if self.checker == AUTO else None
        checker = None if found is None else sdjax.SafetyChecker.load(found, dtype="float32")
        self.library.hash_soon([entry])
        description: dict[str, Any] = {"model": recording.describe_model(str(local) if own else place, local)}
        vae = dict(parts).get("vae")
        description["vae"] = None if vae is None else recording.describe_model(vae, Path(vae))
        if checker is not None and found is not None:
            description["safety_checker"] = recording.describe_model(str(found), found)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(pipe.params))
        return Loaded(entry.name, parts, joined, size, description, checker)

    def _make_room(self, needed: int, job: str) -> None:
        """Drops models that no job uses, the least recently used first, until there is room.

        If there is none, the job waits for others to end, unless it has a model itself, for which others may wait.
        """
        with self._changed:
            while self._loaded and sum(one.size for one in self._loaded) + needed > self.most:
                idle = [one for one in self._loaded if not one.jobs]
                if idle:
                    self._loaded.remove(min(idle, key=lambda one: one.used))
                elif any(job in one.jobs for one in self._loaded):
                    return
                else:
                    self._changed.wait()


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def memory(device: jax.Device) -> int:
    """Returns how many bytes loaded models may take: a share of the device's memory, or of the computer's."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(SHARE * limit) if limit else 2**62
