"""Saves and restores a training state with Orbax. Only this module uses Orbax.

Orbax does not detect flipped bits, and marks a finished step only by a file of its own. So each step's folder has a
manifest beside it, with the size and SHA-256 of every file. It is written last. Only steps that agree with their
manifest are restored.

    00012000/    what Orbax writes        12000.json    its manifest        best.json    the best step, if one is marked

A state is a tree of arrays with a `step`. Typed keys in it are stored as their data. If a run has several processes,
all must see the folder and make the same calls. The first process writes the manifests and removes old steps.
"""

import contextlib
import errno
import itertools
import json
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from sdjax import errors
from sdjax.loading.run_layout import absolute, make_folder
from sdjax.storage import files, manifest
from sdjax.train.checkpoints import state_tree

# Orbax and asyncio log a traceback for each error in Orbax's threads; `Checkpoints` raises such errors as one sentence
for _name in "absl", "asyncio":
    logging.getLogger(_name).addFilter(
        lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname + record.getMessage()
    )

_saves = itertools.count()  # the same in every process, so that each waits for the others of the same save


class Checkpoints:
    """The checkpoints of a run in a folder, written while the run goes on.

    The `keep` newest steps are kept. So are all steps that are multiples of `keep_every`, and the step with the best
    metric if any step has one.

    Args:
        say: is called with one line for each damaged step that `restore` skips.
        timeout: seconds after which a save that waits for another process fails.

    If a save fails, the next call of `save`, `wait`, `restore` or `close` raises an OSError with one sentence (`errno`
    is ENOSPC if the disk is full). The files of the failed save are removed; earlier steps are untouched. Close the
    object or use it as a context manager: otherwise a save that is running when the program ends may be lost.
    """

    def __init__(
        self, folder: str | pathlib.Path, keep: int = 2, *, keep_every: int | None = None,
        say: Callable[[str], None] = print, timeout: int = 600,
    ):  # fmt: skip
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep and keep_every are at least 1; got {keep} and {keep_every}")
        self.folder = absolute(folder)
        with errors.doing("making the folder of the checkpoints,", self.folder):
            make_folder(self.folder)
        self._needs = 0  # bytes of the state last saved
        self.keep, self.keep_every, self.say, self.timeout = keep, keep_every, say, timeout
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.StandardCheckpointHandler(), timeout_secs=timeout,
            temporary_path_class=ocp.path.atomicity.CommitFileTemporaryPath,
        )  # fmt: skip
        self._current: int | None = None  # the step last saved or restored, which need not be saved again
        self._damaged: set[int] = set()
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            return self.close()
        try:
            self.close()
        except OSError as error:  # what the block raised goes on its way
            self.say(str(error))

    def steps(self) -> list[int]:
        """Returns the steps whose checkpoints are complete by their file names, oldest first."""
        return manifest.steps(self.folder)

    def best(self) -> tuple[int, float] | None:
        """Returns the stored step with the lowest metric, and that metric; None if no stored step has one."""
        try:
            entry = json.loads((self.folder / "best.json").read_bytes())
            step, metric = int(entry["step"]), float(entry["metric"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return (step, metric) if step in self.steps() else None

    def save(self, state: PyTree, *, metric: float | None = None, wait: bool = False) -> None:
        """Copies the state and writes the copy in the background. Skips a step that was just saved or restored.

        The caller may donate or overwrite the state's arrays at once. It first waits for the save before it.

        Args:
            metric: of this step, such as a validation loss. Lower is better; NaN is never the best.
            wait: if True, return only when everything is on the disk.
        """
        self.wait()
        step = int(state.step)
        if step != self._current:
            self._needs = sum(leaf.nbytes for leaf in jax.tree.leaves(state_tree.without_key_types(state)))
            try:
                if jax.process_index() == 0:
                    manifest.remove(
                        self.folder, step
                    )  # left by a damaged step, or by a run that ended while writing it
                    if not files.has_room(self.folder, self._needs):
                        raise OSError(errno.ENOSPC, "")
                    make_folder(self.folder)
                self._checkpointer.save(
                    manifest.path(self.folder, step), args=ocp.args.StandardSave(state_tree.without_key_types(state))
                )
            except OSError as error:
                raise self._failed(step, error) from error
            self._thread = threading.Thread(target=self._finish, args=(step, metric, next(_saves)), name="checkpoint")
            self._thread.start()
        elif metric is not None and jax.process_index() == 0:
            self._mark(step, metric)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until all saves are written. Raises the error of a failed save."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Waits for all saves and stops Orbax's threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def restore(self, like: PyTree, *, step: int | None = None, optional: Collection[str] = ()) -> PyTree:
        """Returns the newest intact state, bit for bit as it was saved; None if there is no checkpoint.

        Args:
            like: a state of the same structure, shapes and types, of arrays or jax.ShapeDtypeStruct. The result has its
                shardings, over any number of devices. Its values are used only for `optional`.
            step: the step to restore instead of the newest.
            optional: names of fields that are taken from `like` if an older checkpoint does not have them.

        Raises ValueError if there are checkpoints but none is intact, if `step` is not intact, or if the stored state
        has another structure; the message says where it differs.
        """
        self.wait()
        chosen = self._choose(step)
        if chosen is None:
            return None
        fields, structure = state_tree.fields(like)
        path = manifest.path(self.folder, chosen)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            stored = reader.metadata(path).item_metadata.tree
            wanted = {name: part for name, part in fields.items() if name in stored or name not in optional}
            shapes = jax.tree.map(state_tree.stored_shape, wanted)
            state_tree.check_same(stored, shapes, f"checkpoint {chosen} in {self.folder}")
            args = ocp.checkpoint_utils.construct_restore_args(shapes)
            found = reader.restore(path, args=ocp.args.PyTreeRestore(shapes, restore_args=args))
        found = jax.tree.map(state_tree.with_key_type, wanted, found)
        self._current = chosen
        return jax.tree.unflatten(structure, [found.get(name, part) for name, part in fields.items()])

    def _choose(self, step: int | None) -> int | None:
        """Returns the step to restore. The first process decides, for all processes."""
        answer, problem = -1, None
        if jax.process_index() == 0:
            try:
                chosen, self._damaged = manifest.intact(self.folder, step, self.say)
                answer = -1 if chosen is None else chosen
            except ValueError as error:
                answer, problem = -2, error
        if jax.process_count() > 1:
            answer = int(ocp.multihost.broadcast_one_to_all(np.int32(answer)))
        if answer == -2:
            raise problem or ValueError(f"the first process found no intact checkpoint to restore in {self.folder}")
        return None if answer == -1 else answer

    def _finish(self, step: int, metric: float | None, number: int) -> None:
        """Finishes a save; runs in a separate thread."""
        try:
            self._checkpointer.wait_until_finished()
            try:
                if jax.process_index() == 0:
                    manifest.write(self.folder, step)
                    self._damaged.discard(step)
                    if metric is not None:
                        self._mark(step, metric)
                    self._prune(step)
            finally:
                barrier = ocp.multihost.get_barrier_sync_fn()
                barrier(key=f"sdjax_checkpoint_{number}", timeout_ms=1000 * self.timeout)
            self._current = step
        except Exception as error:
            self._error = self._failed(step, error)
            self._error.__cause__ = error

    def _mark(self, step: int, metric: float) -> None:
        best = self.best()
        if math.isfinite(metric) and (best is None or metric < best[1]):
            manifest.write_json(self.folder / "best.json", {"step": step, "metric": float(metric)})

    def _prune(self, current: int) -> None:
        """Removes steps older than `current` that need not be kept. Later steps are not touched."""
        whole = [step for step in self.steps() if step <= current and step not in self._damaged]
        kept = {current, *whole[-self.keep :], *(best[:1] if (best := self.best()) else ())}
        if self.keep_every is not None:
            kept.update(step for step in whole if step % self.keep_every == 0)
        for step in manifest.traces(self.folder):
            if step < current and step not in kept:
                manifest.remove(self.folder, step)

    def _remove_unfinished(self, step: int) -> None:
        """Removes a step whose writing failed. Repeats this if Orbax, which continues, writes more of its files."""
        for _ in range(30):
            manifest.remove(self.folder, step)
            time.sleep(0.1)
            if not manifest.path(self.folder, step).exists():
                break

    def _failed(self, step: int, error: Exception) -> OSError:
        """Returns the error to raise. Removes the files of the step unless it is complete."""
        written = step in self.steps()
        if not written and jax.process_index() == 0:
            with contextlib.suppress(OSError):
                self._remove_unfinished(step)
        number = errors.number_of(error)
        if isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in str(error):
            why = f"another process died, or was not done with it after {self.timeout} seconds"
        elif number is None or (isinstance(error, OSError) and errors.is_sentence(error)):
            why = str(error)
        else:
            why = errors.why(OSError(number, str(error)), self.folder, self._needs)
        before = "" if written else f" (the newest there is {max(self.steps(), default='none')})"
        what = f"checkpoint {step} was {'' if written else 'not '}written to {self.folder}{before}"
        sentence = f"{what}{', but then' if written else ''}: {why}"
        failed = OSError(sentence)
        failed.errno = number
        return failed
