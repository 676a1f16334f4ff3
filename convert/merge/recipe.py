"""The recipe of a merged model: what it was made of and how. The file's metadata holds it; it can be run again."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjax.checks import arguments
from sdjax.convert.containers.places import WEIGHTS, cached_repository
from sdjax.convert.containers.strict_json import read_json
from sdjax.convert.errors import CheckpointError, printable, shown
from sdjax.convert.merge.ratios import Ratios
from sdjax.convert.merge.table import METHODS
from sdjax.convert.merge.task_vectors import SIGNS
from sdjax.spelling import meant

RECIPE_KEY = "sdjax.merge"
LONGEST = 2**18  # characters
MOST_FILES = 1000  # of a model's folder
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # what the models are called, in their order
MERGED = "merge"


@dataclasses.dataclass(frozen=True)
class Source:
    """A model or adapter that went into a merge: its name, its bytes and their SHA-256 (of a folder: of its weights).

    `weight`, `text_weight` and `blocks` are those of an adapter.
    """

    name: str
    bytes: int
    sha256: str
    weight: float | None = None
    text_weight: float | None = None
    blocks: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How models are merged. They are called A, B, C, ... in their order.

    `method` is a name of `METHODS`; None takes A as it is, for adapters. `ratios` has a number for each model that has
    one (`Method.per_model`); None is the method's default. `blocks` and `patterns` are those of `Ratios`. `density`,
    `sign` and `seed` are for methods that trim or draw. `text_from` and `vae_from` say whose text encoder and
    autoencoder the result has: a letter, or "merge".

    Raises ValueError for values out of range, and for those that have no effect.
    """

    method: str | None = None
    ratios: tuple[float, ...] | None = None
    blocks: tuple[float, ...] | None = None
    patterns: tuple[tuple[str, tuple[float, ...]], ...] = ()
    density: float | None = None
    sign: str | None = None
    seed: int | None = None
    text_from: str = MERGED
    vae_from: str = "A"

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise ValueError(
                f"a method is one of {', '.join(METHODS)}; "
                f"got {arguments.shown(self.method)}{meant(self.method, METHODS)}"
            )
        allowed = METHODS[self.method].options if self.method is not None else ()
        for name in "density", "sign", "seed":
            if getattr(self, name) is not None and name not in allowed:
                raise ValueError(f"{name} has no effect with the method {self.method}: leave it out")
        if self.density is not None:
            arguments.number("density", self.density, 0, 1)
            if self.density == 0:
                raise ValueError("density is more than 0: it is the share that is kept")
        if self.sign is not None and self.sign not in SIGNS:
            raise ValueError(f"sign is one of {', '.join(SIGNS)}; got {arguments.shown(self.sign)}")
        if self.seed is not None:
            arguments.seed(self.seed)
        if self.method is None and (self.ratios is not None or self.blocks is not None or self.patterns):
            raise ValueError("ratios have no effect without a method: name one, or leave them out")

    def check_models(self, count: int) -> None:
        """Raises ValueError if the settings do not fit this number of models."""
        letters = LETTERS[:count]
        for name in "text_from", "vae_from":
            value = getattr(self, name)
            if value != MERGED and (len(value) != 1 or value not in letters):
                raise ValueError(f"{name} is {MERGED} or one of {', '.join(letters)}; got {arguments.shown(value)}")
        if self.method is None:
            if count != 1:
                raise ValueError(f"{count} models need a method, one of {', '.join(METHODS)}")
            return
        method = METHODS[self.method]
        if count < method.least or (method.most is not None and count > method.most):
            several = f"{method.least}" + ("" if method.most == method.least else " or more")
            raise ValueError(f"{self.method} takes {several} models; got {count}")
        self.ratios_of(count)

    def ratios_of(self, count: int) -> Ratios:
        """Returns the ratios for this number of models. Raises ValueError for another number of ratios."""
        assert self.method is not None
        method = METHODS[self.method]
        wanted = count - 1 if method.per_model else 1
        usual = (method.ratio,) * wanted if self.ratios is None else self.ratios
        if len(usual) != wanted:
            raise ValueError(
                f"{self.method} of {count} models takes {wanted} ratio{'s'[: wanted > 1]}; got {len(usual)}"
            )
        return Ratios(usual, self.blocks, self.patterns)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings with the files that they were used for, and how those were read and written."""

    settings: Settings
    models: tuple[Source, ...]
    loras: tuple[Source, ...] = ()
    vae: Source | None = None
    ema: str = "auto"
    prediction: str | None = None
    dtype: str | None = None

    def to_json(self) -> str:
        """Returns the recipe as text for a file's metadata."""
        return json.dumps({"format": 1, **dataclasses.asdict(self)}, sort_keys=True)

    def lines(self) -> list[str]:
        """Returns the recipe in words, one line for each model and adapter."""
        settings, out = self.settings, []
        if settings.method is not None:
            given = dataclasses.asdict(settings)
            shown_as = {"ratios": "ratio", "text_from": "text from", "vae_from": "VAE from"}
            parts = [
                f"{shown_as.get(k, k)} {_short(v)}" for k, v in given.items() if k != "method" and v not in (None, ())
            ]
            out.append(f"{settings.method}: {'; '.join(parts)}")
        out += [
            f"{letter} is {printable(one.name)} (sha256 {one.sha256[:10]})" for letter, one in zip(LETTERS, self.models)
        ]
        out += [f"with {printable(one.name)} at {one.weight:g} (sha256 {one.sha256[:10]})" for one in self.loras]
        return out


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def read_recipe(metadata: Mapping[str, str]) -> Recipe | None:
    """Returns the recipe in a file's metadata, None if there is none.

    It is data from outside: names are shown and compared, never opened. Raises CheckpointError for a damaged one.
    """
    text = metadata.get(RECIPE_KEY)
    if text is None:
        return None
    if len(text) > LONGEST:
        raise CheckpointError(f"its recipe ({RECIPE_KEY}) has {len(text)} characters, more than {LONGEST}")
    data = read_json(text.encode(), lambda reason: CheckpointError(f"its recipe ({RECIPE_KEY}): {reason}"))
    try:
        if data.pop("format", None) != 1:
            raise ValueError("it is of another format than 1")
        settings = Settings(**{name: _tuples(value) for name, value in data.pop("settings").items()})
        models = tuple(_source(one) for one in data.pop("models"))
        loras = tuple(_source(one) for one in data.pop("loras"))
        vae = data.pop("vae")
        if not 1 <= len(models) <= len(LETTERS) or data.keys() != {"ema", "prediction", "dtype"}:
            raise ValueError("its fields are not a recipe's")
        for value, allowed in (
            (data["ema"], ("auto", "yes", "no")),
            (data["prediction"], (None, "epsilon", "v", "x0")),
            (data["dtype"], (None, *arguments.DTYPES)),
        ):
            if value not in allowed:
                raise ValueError(f"{shown(value)} is none of {allowed}")
        settings.check_models(len(models))
        return Recipe(settings, models, loras, None if vae is None else _source(vae), **data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"its recipe ({RECIPE_KEY}) cannot be used: {printable(str(error), limit=300)}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _source(data: Mapping[str, Any]) -> Source:
    source = Source(**{name: _tuples(value) for name, value in data.items()})
    texts = isinstance(source.name, str) and isinstance(source.sha256, str) and len(source.sha256) == 64
    if not texts or type(source.bytes) is not int:
        raise ValueError("a file is named by name, bytes and sha256")
    for value in (source.weight, source.text_weight, *(source.blocks or ())):
        if value is not None:
            arguments.number("a weight", value)
    return source


def fingerprint(path: str | os.PathLike[str]) -> Source:
    """Returns a model's name, size and SHA-256: of a file, or of the names and hashes of a folder's weights.

    Raises CheckpointError if it cannot be read.
    """
    path = Path(path)
    name = path.resolve().name or str(path)
    if repository := cached_repository(path.absolute()):
        name = f"{repository}/{name}" if path.is_file() else repository
    try:
        if path.is_file():
            return Source(name, path.stat().st_size, _sha256(path))
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in WEIGHTS and file.is_file())
        if len(files) > MOST_FILES:
            raise CheckpointError(f"it holds more than {MOST_FILES} files of weights", path)
        rows = "".join(f"{file.relative_to(path).as_posix()} {_sha256(file)}\n" for file in files)
        return Source(name, sum(file.stat().st_size for file in files), hashlib.sha256(rows.encode()).hexdigest())
    except OSError as error:
        raise CheckpointError(f"it cannot be read: {error.strerror}", path) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(wanted: Sequence[Source], places: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Returns where the files of a recipe are. A place is a model, a folder with models, or NAME=PATH.

    A file counts only if its bytes are those of the recipe. Raises CheckpointError naming what was not found.
    """
    candidates: list[Path] = []
    for place in (os.fspath(place) for place in places):
        name, equals, rest = place.partition("=")
        path = Path(rest if equals and name in [one.name for one in wanted] and not os.path.exists(place) else place)
        if not path.exists():
            raise CheckpointError("there is no such file or folder", path)
        candidates.append(path)
        if path.is_dir():
            candidates += sorted(path.iterdir())[:MOST_FILES]
    known: dict[Path, Source] = {}
    found, missing = [], []
    for one in wanted:
        for path in candidates:
            if path.is_file() and path.stat().st_size != one.bytes:
                continue
            if path not in known:
                known[path] = fingerprint(path)
            if known[path].sha256 == one.sha256:
                found.append(path)
                break
        else:
            missing.append(f"{printable(one.name)} (sha256 {one.sha256[:10]}, {one.bytes} bytes)")
    if missing:
        raise CheckpointError(f"not found among --models, by their bytes: {'; '.join(missing)}")
    return found
