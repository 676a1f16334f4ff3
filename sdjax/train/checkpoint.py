"""Saving and restoring a training state with Orbax; the one module that knows it.

Orbax takes a half-written folder of a step for a whole one, and reads flipped bits without a word. So beside each step
lies a manifest with every file's size and SHA-256, written when the step is complete, and only steps that agree with
theirs are restored.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from sdjax.train.state import TrainState


class Checkpoints:
    """The checkpoints of a run in a folder; the `keep` newest stay.

    Raises ValueError from `restore` where there are checkpoints and none is whole.
    """

    def __init__(self, folder: str | pathlib.Path, keep: int = 2):
        self.folder = pathlib.Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep = keep
        self._checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def steps(self) -> list[int]:
        """Returns the steps whose checkpoints are whole as far as their names tell, oldest first."""
        return sorted(int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit())

    def save(self, state: TrainState) -> None:
        """Writes the state, unless its step is there already, and returns when it is on the disk."""
        step = int(state.step)
        if step in self.steps():
            return
        path = self._path(step)
        shutil.rmtree(path, ignore_errors=True)  # of a run that ended while writing it
        self._checkpointer.save(path, args=ocp.args.StandardSave(_without_key_type(state)))
        partial = self.folder / f"{step}.json.partial"
        partial.write_text(json.dumps(_manifest(path), indent=1, sort_keys=True) + "\n")
        partial.rename(self.folder / f"{step}.json")
        for old in self.steps()[: -self.keep]:
            (self.folder / f"{old}.json").unlink()
            shutil.rmtree(self._path(old), ignore_errors=True)

    def restore(self, like: TrainState) -> TrainState | None:
        """Returns the newest whole state, None if there is no checkpoint; `like` gives its shapes and types."""
        steps = self.steps()
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), _without_key_type(like)
        )
        for step in reversed(steps):
            path = self._path(step)
            if _manifest(path) == json.loads((self.folder / f"{step}.json").read_text()):
                state = self._checkpointer.restore(path, args=ocp.args.StandardRestore(shapes))
                return state.replace(key=jax.random.wrap_key_data(state.key))
        if steps:
            raise ValueError(f"every checkpoint in {self.folder} is damaged ({', '.join(map(str, steps))})")
        return None

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / f"{step:08d}"


def _without_key_type(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.key_data(state.key))


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): [file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()]
        for file in files
    }
