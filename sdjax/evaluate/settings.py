"""The settings of an evaluation: all combinations of a sweep's values, each with a name that can be a folder's."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.config import ModelConfig
from sdjax.evaluate.captions import Caption
from sdjax.tasks import sweep
from sdjax.tasks.request import Request
from sdjax.tasks.resolve import check_requests
from sdjax.tasks.settings import SAMPLER_OPTIONS, check

OWN = ("prompt", "seed")  # decided by the caption
ONLY = "the model's own settings"
MAX_NAME = 80  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings that a set of pictures is made with: fields of `sdjax.Request` besides prompt and seed.

    `swept` are those that the sweep changes, as they are shown.
    """

    name: str
    swept: Mapping[str, Any]
    values: Mapping[str, Any]

    def request(self, caption: Caption) -> Request:
        """Returns the request for a caption's picture."""
        return Request(**self.values, prompt=caption.text, seed=caption.seed)

    @property
    def folder(self) -> str:
        """A folder's name, which no value can lead out of its place. Settings of other values have other names."""
        digest = hashlib.sha256(json.dumps(self.values, sort_keys=True, default=str).encode()).hexdigest()[:8]
        plain = ",".join(f"{name}={value}" for name, value in self.swept.items())
        plain = re.sub("[^A-Za-z0-9=,.-]+", "_", plain)[:MAX_NAME].strip("._")
        return f"{plain}-{digest}" if plain else digest


def check_settings(config: ModelConfig, settings: Sequence[Setting]) -> None:
    """Raises ValueError for settings that pictures of a model cannot have. Reads no weights."""
    check_requests(config, [one.request(Caption(0, "", 0)) for one in settings])


def make_settings(base: Mapping[str, Any], axes: Sequence[sweep.Axis] = ()) -> list[Setting]:
    """Returns a setting for each combination of the axes' values; the first axis changes fastest.

    `base` has the fields that all have. Captions are read as they stand, unless it has a `prompt_syntax`. Raises
    ValueError for values that `Request` refuses, and for a sweep of prompts or seeds.
    """
    base = {"prompt_syntax": "plain", **base}
    wrong = [name for name in (*base, *(axis.name for axis in axes)) if name in (*OWN, sweep.REPLACE, SAMPLER_OPTIONS)]
    if wrong:
        raise ValueError(f"{wrong[0]} cannot be set here; captions and their seeds are those of the file")
    found = []
    if axes:
        for values, cell in zip(sweep.combinations(axes), sweep.cells(axes, base), strict=True):
            swept = {axis.label or axis.name: value for axis, value in zip(axes, values)}
            name = ", ".join(f"{label} {value}" for label, value in swept.items())
            found.append(Setting(name, swept, cell))
    else:
        found.append(Setting(ONLY, {}, base))
    for one in found:
        check(one.values)
    return found
