"""A graph's surroundings without a server: models by name from the command line, pictures from and into folders."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import sdjax
from sdjax.loading import builtin
from sdjax.pictures.image import encode_png, save_numbered_file
from sdjax.pictures.opening import read_file
from sdjax.pipeline.model import Pipeline
from sdjax.serve.comfy.kept_files import is_latent, keep, stem
from sdjax.serve.comfy.latent_file import MOST_BYTES
from sdjax.serve.comfy.pictures import with_opacity

T = TypeVar("T")
KINDS = ("checkpoint", "vae", "lora", "embedding", "hypernetwork", "control", "clip_vision", "upscaler")
WHOLE_MODELS = ("checkpoint", "vae")  # kinds that a plain "*" stands for
INPUTS = ("input", "latent")  # files of `input_dir`
LONGEST_NAME = 255


@dataclasses.dataclass(eq=False)
class PlainHost:
    """Runs graphs for `sdjax run`. `models` are (pattern, path): the first pattern that fits a name decides.

    A pattern is a name, perhaps with * and ?; "lora:*" is for one kind of file alone, and "*" for checkpoints and
    autoencoders. Pictures and latents are read from `input_dir`; files are written to `outdir`, numbered.
    """

    models: Sequence[tuple[str, str]]
    input_dir: Path
    outdir: Path
    dtype: str | None = None
    show: Callable[[str], None] = lambda line: None
    _loaded: dict[str, Pipeline] = dataclasses.field(default_factory=dict, repr=False)

    def names(self, kind: str) -> list[str]:
        """Returns the names that the command line gives, or the pictures of `input_dir`."""
        if kind in INPUTS:
            found = sorted(path.name for path in self.input_dir.iterdir()) if self.input_dir.is_dir() else []
            return [name for name in found if is_latent(name) == (kind == "latent")]
        return [pattern for pattern, _ in self.models]

    def has(self, kind: str, name: str) -> bool:
        """Returns whether a name stands for a file."""
        if kind in INPUTS:
            return self._input(name) is not None and is_latent(name) == (kind == "latent")
        return self._place(kind, name) is not None

    def checkpoint(self, name: str) -> Pipeline:
        """Returns the model of this name; each is loaded once."""
        place = self._found("checkpoint", name)
        if place not in self._loaded:
            self._loaded[place] = sdjax.load(place, dtype=self.dtype)
        return self._loaded[place]

    def file(self, kind: str, name: str) -> Path:
        """Returns the file of this name."""
        place = self._found(kind, name)
        if place in builtin.NAMES and not Path(place).exists():
            return builtin.place(place)
        return Path(place)

    def picture(self, name: str) -> np.ndarray:
        """Returns a picture in `input_dir`, uint8 [h, w, 4]."""
        path = self._input(name)
        if path is None:
            raise ValueError(f"there is no picture {name[:200]!r} in {self.input_dir}; --input-dir names its folder")
        return with_opacity(read_file(path))

    def latent(self, name: str) -> bytes:
        """Returns a file of latents in `input_dir`."""
        path = self._input(name)
        if path is None:
            raise ValueError(f"there is no file {name[:200]!r} in {self.input_dir}; --input-dir names its folder")
        with open(path, "rb") as opened:
            return opened.read(MOST_BYTES + 1)

    def call(self, function: Callable[[], T]) -> T:
        """Returns function()."""
        return function()

    def prepared(self, pipe: Pipeline) -> Pipeline:
        """Returns the pipeline itself."""
        return pipe

    def save(self, pixels: np.ndarray, prefix: str, texts: Mapping[str, str], *, keep: bool) -> dict[str, str]:
        """Writes a picture, and prints its path; one that is only shown is not written."""
        if not keep:
            return {"filename": "", "subfolder": "", "type": "temp"}
        path = save_numbered_file(self.outdir, encode_png(pixels, texts), ".png", prefix=f"{stem(prefix)}_", digits=5)
        self.show(str(path))
        return {"filename": path.name, "subfolder": "", "type": "output"}

    def keep(self, folder: str, prefix: str, suffix: str, write: Callable[[Path], None]) -> dict[str, str]:
        """Has a file written below `outdir`, and prints its path."""
        made = keep(self.outdir, folder, prefix, suffix, write)
        self.show(str(self.outdir / folder / made["filename"]))
        return made

    def progress(self, number: str, done: int, total: int) -> None:
        """Shows nothing."""

    def preview(self, number: str, pixels: np.ndarray) -> None:
        """Shows nothing."""

    def node(self, kind: str, number: str, ui: Mapping[str, Any] | None = None) -> None:
        """Shows nothing."""

    def cancelled(self) -> bool:
        """Returns False: Ctrl-C ends the process."""
        return False

    def _found(self, kind: str, name: str) -> str:
        place = self._place(kind, name)
        if place is None:
            raise ValueError(f"there is no {kind} {name[:200]!r}: give --model {name[:200]!r}=FILE")
        return place

    def _place(self, kind: str, name: str) -> str | None:
        """Returns the file of a name. The command line decides; a graph only names."""
        if len(name) > LONGEST_NAME:
            return None
        for pattern, place in self.models:
            own, colon, rest = pattern.partition(":")
            colon = colon if own in KINDS else ""
            if colon and own != kind:
                continue
            pattern = rest if colon else pattern
            if pattern == "*" and not colon and kind not in WHOLE_MODELS:
                continue
            if pattern == name or fnmatch.fnmatchcase(name, pattern):
                return place
        return None

    def _input(self, name: str) -> Path | None:
        """Returns the path of a file in the folder; a name with folders or .. is none."""
        name = name.removesuffix(" [input]")
        plain = Path(name)
        if plain.name != name or not name or len(name) > LONGEST_NAME or "\\" in name or "\0" in name:
            return None
        path = self.input_dir / name
        return path if path.is_file() else None
