"""The folder of an exported model: its files, and the description in exported.json.

    exported.json            versions, sizes, noise schedule; bytes and SHA-256 of every program
    weights.safetensors      the parameters, which are arguments of the programs
    tokenizer/               only for a model that has its own
    cpu/, cuda/, tpu/        for each platform the programs, serialized by `jax.export`
    compiled/                executables of this computer (`sdjax.storage.executables`); they are not part of the model

The programs take and return mappings from names to arrays, so they need none of our types.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, PyTree

from sdjax.config import ConfigError, ScheduleConfig
from sdjax.errors import doing

FORMAT = 1  # of exported.json; another number means that older programs cannot be run
MANIFEST, WEIGHTS, TOKENIZER, COMPILED = "exported.json", "weights.safetensors", "tokenizer", "compiled"
PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAMS = ("text", "noise", "begin", "sample", "decode")
MAX_MANIFEST, MAX_PROGRAM = 2**20, 2**28  # bytes; a full-size UNet has some 10 MB


class ExportError(ValueError):
    """A folder is no exported model, or is damaged, or cannot be run here."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What exported.json says. `programs` has the size and SHA-256 of each program, by "cpu/text" and so on."""

    model: str
    height: int
    width: int
    batch: int
    chunk: int  # rows of one call of the program "sample"
    rows: tuple[str, ...]  # the names of the arrays of rows
    length: int  # tokens of a prompt
    pad: int  # the token that prompts are padded with
    guidance_scale: float
    dtype: str
    schedule: ScheduleConfig
    programs: Mapping[str, tuple[int, str]]
    versions: Mapping[str, str]
    weight_bytes: int

    def to_json(self) -> str:
        """Returns the text of exported.json."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def read(folder: Path) -> Description:
    """Returns the description of an exported model. Raises ExportError, with what is wrong."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ExportError(f"{folder} is no exported model: it has no {MANIFEST}; `sdjax export` makes one")
    with doing("reading", path), path.open("rb") as file:
        text = file.read(MAX_MANIFEST + 1)
    try:
        if len(text) > MAX_MANIFEST:
            raise ValueError("it is too long")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        if found.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}; export the model again with this version of sdjax")
        return _checked(found)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, ConfigError) as error:
        raise ExportError(f"{path} cannot be used: {error}") from None


def _checked(found: dict[str, Any]) -> Description:
    fields = {field.name: field for field in dataclasses.fields(Description)}
    if set(found) != set(fields):
        raise ValueError(f"it has not the entries {', '.join(fields)}")
    kinds = {"int": int, "str": str, "float": (int, float)}
    for name, value in found.items():
        kind = kinds.get(getattr(fields[name].type, "__name__", str(fields[name].type)))
        if kind is not None and (not isinstance(value, kind) or isinstance(value, bool)):  # type: ignore[arg-type]
            raise ValueError(f"{name} is wrong: {str(value)[:40]!r}")
    for name in "height", "width", "batch", "chunk", "length":
        if not 1 <= found[name] <= 2**16:
            raise ValueError(f"{name} is out of range: {found[name]}")
    if not 0 <= found["pad"] < 2**31:
        raise ValueError(f"pad is out of range: {str(found['pad'])[:40]}")
    if not math.isfinite(found["guidance_scale"]):
        raise ValueError(f"guidance_scale is not a finite number: {found['guidance_scale']}")
    for name in "programs", "versions", "schedule":
        if not isinstance(found[name], dict):
            raise ValueError(f"{name} is wrong: {str(found[name])[:40]!r}")
    if not all(isinstance(version, str) for version in found["versions"].values()):
        raise ValueError("versions are texts")
    schedule = ScheduleConfig.from_dict(found["schedule"])
    if schedule.num_timesteps > 2**16:
        raise ValueError(f"schedule.num_timesteps is out of range: {str(schedule.num_timesteps)[:40]}")
    programs = {}
    for name, (size, digest) in found["programs"].items():
        if not re.fullmatch(rf"({'|'.join(PLATFORMS)})/({'|'.join(PROGRAMS)})", name):
            raise ValueError(f"there is no program {name[:40]!r}")
        if not 0 < int(size) <= MAX_PROGRAM or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"size or SHA-256 of the program {name} is wrong")
        programs[name] = (int(size), str(digest))
    rows = tuple(map(str, found["rows"]))
    return Description(**{**found, "schedule": schedule, "programs": programs, "rows": rows})


def program_bytes(folder: Path, name: str, description: Description) -> bytes:
    """Returns the program `name`, such as "cpu/text". Raises ExportError if it is missing or has other bytes."""
    if name not in description.programs:
        raise ExportError(f"{folder} has no program {name}: export the model again")
    size, digest = description.programs[name]
    path = folder / program_file(name)
    with doing("reading", path):
        data = path.read_bytes() if path.is_file() and path.stat().st_size == size else b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise ExportError(f"the program {path} is missing or damaged: export the model again")
    return data


def program_file(name: str) -> str:
    """Returns the path of a program inside the folder."""
    return f"{name}.jax_export"


def named(tree: PyTree) -> dict[str, Array]:
    """Returns the leaves of a tree by their names, such as "coef/calls"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def restored(leaves: Mapping[str, Array], like: PyTree) -> PyTree:
    """Returns a tree with the structure of `like` from the leaves by name."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in named(like)])
