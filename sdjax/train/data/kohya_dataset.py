"""Reads a dataset configuration of kohya's scripts (`--dataset_config FILE.toml`) as settings of a run."""

import os
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

from sdjax.train.data.captions import ENDINGS
from sdjax.train.data.records import SourceError

MOST_BYTES = 2**20
CAPTIONS = {  # of a subset: fields of CaptionConfig
    "shuffle_caption": "shuffle", "keep_tokens": "keep", "keep_tokens_separator": "keep_separator",
    "caption_separator": "separator", "secondary_separator": "second_separator",
    "caption_tag_dropout_rate": "tag_dropout", "caption_prefix": "prefix", "caption_suffix": "suffix",
}  # fmt: skip
WHOLE = {  # the same in all subsets: the setting, and kohya's default. A function makes the setting's value
    "resolution": ("data.side", None, lambda value: _side(value)),
    "batch_size": ("batch_size", 1, int),
    "enable_bucket": ("data.buckets", False, bool),
    "min_bucket_reso": ("data.bucket_sides.0", 256, int),
    "max_bucket_reso": ("data.bucket_sides.1", 1024, int),
    "bucket_reso_steps": ("data.bucket_step", 64, int),
    "bucket_no_upscale": ("data.enlarge", False, lambda value: not value),
    "flip_aug": ("data.flip", False, lambda value: 0.5 if value else 0.0),
    "random_crop": ("data.crop", False, lambda value: "random" if value else "centre"),
    "alpha_mask": ("data.masks", False, lambda value: "alpha" if value else False),
    "caption_dropout_rate": ("objective.dropout", 0.0, float),
}
OWN = ("image_dir", "class_tokens", "num_repeats", "is_reg", "caption_extension")
OFF = {  # values of options that sdjax does not have, with which they do nothing
    "color_aug": (False,), "face_crop_aug_range": (None,), "enable_wildcard": (False,), "token_warmup_min": (1,),
    "token_warmup_step": (0,), "caption_dropout_every_n_epochs": (0, None), "validation_split": (0.0,),
    "cache_info": (False,), "max_train_steps": (None,),
}  # fmt: skip


def read_dataset_config(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the settings by name, such as "data.parts" and "batch_size". Raises SourceError, naming what is wrong.

    Options of `[general]` hold for all datasets, those of `[[datasets]]` for all their subsets. All subsets must agree
    on what is one value here, such as the resolution. One subset with `is_reg` beside one without get equal shares, and
    their `num_repeats` do not count.
    """
    subsets = _subsets(_read(pathlib.Path(path)), str(path))
    for subset in subsets:
        _check(subset, str(path))
    made: dict[str, Any] = {"data.parts": tuple(_part(subset) for subset in subsets)}
    regular = [bool(subset.get("is_reg")) for subset in subsets]
    if any(regular):
        if sorted(regular) != [False, True]:
            raise SourceError(
                f"{path}: is_reg is read of one subset beside one other; for more, give data.parts with a weight each"
            )
        for part in made["data.parts"]:
            part["weight"] = 1.0
            part.pop("repeats", None)
    for name, (setting, usual, convert) in WHOLE.items():
        values = [subset.get(name, usual) for subset in subsets]
        if any(value != values[0] for value in values):
            raise SourceError(f"{path}: {name} is the same in all datasets and subsets here; got {values}")
        if values[0] is not None:
            made[setting] = _converted(convert, values[0], usual, f"{path}: {name}")
    sides = made.pop("data.bucket_sides.0"), made.pop("data.bucket_sides.1")
    if not made["data.buckets"]:  # these would have no effect
        for name in ("data.bucket_step", "data.enlarge"):
            made.pop(name)
    elif made["data.enlarge"]:
        made["data.bucket_sides"] = sides
    if made["data.masks"]:
        made["objective.masked"] = True
    return made


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise SourceError(f"{path} has more than {MOST_BYTES} bytes: a dataset configuration is short")
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path} is no TOML ({error})") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error})") from None


def _subsets(config: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """Returns all subsets, each with the options of its dataset and of `[general]`."""
    unknown = [name for name in config if name not in ("general", "datasets")]
    datasets, general = config.get("datasets", []), config.get("general", {})
    if unknown or not isinstance(general, dict) or not _tables(datasets):
        raise SourceError(f"{path} has [general] and [[datasets]] with [[datasets.subsets]]; got {', '.join(config)}")
    found = []
    for dataset in datasets:
        own = {name: value for name, value in dataset.items() if name != "subsets"}
        subsets = dataset.get("subsets", [])
        if not _tables(subsets):
            raise SourceError(f"{path}: subsets of a dataset are tables, [[datasets.subsets]]")
        found += [{**general, **own, **subset} for subset in subsets]
    if not found:
        raise SourceError(f"{path} has no [[datasets.subsets]], which name folders of pictures by image_dir")
    return found


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _check(subset: Mapping[str, Any], path: str) -> None:
    """Raises SourceError for options that are unknown, not read, or of a wrong type."""
    for name, value in subset.items():
        if name in OFF:
            if value not in OFF[name]:
                raise SourceError(f"{path}: sdjax has no {name}; leave it out")
        elif name not in (*CAPTIONS, *WHOLE, *OWN):
            raise SourceError(f"{path}: {name} is not read; the options are {', '.join((*OWN, *CAPTIONS, *WHOLE))}")
    if not isinstance(subset.get("image_dir"), str):
        raise SourceError(f"{path}: a subset names its folder of pictures by image_dir")
    if not isinstance(subset.get("class_tokens", ""), str):
        raise SourceError(
            f"{path}: class_tokens is the caption of pictures without one; got {subset['class_tokens']!r}"
        )
    if subset.get("caption_extension", ".txt") not in ENDINGS:
        raise SourceError(
            f"{path}: captions are in files that end with {', '.join(ENDINGS)}; got {subset['caption_extension']!r}"
        )
    repeats = subset.get("num_repeats", 1)
    if type(repeats) is not int or repeats < 1:
        raise SourceError(f"{path}: num_repeats is a whole number from 1 on; got {repeats!r}")


def _part(subset: Mapping[str, Any]) -> dict[str, Any]:
    source = {"folder": subset["image_dir"]}
    if subset.get("class_tokens") is not None:
        source["default"] = subset["class_tokens"]
    part: dict[str, Any] = {"source": source, "repeats": float(subset.get("num_repeats", 1))}
    captions = {own: subset[name] for name, own in CAPTIONS.items() if subset.get(name) is not None}
    if not captions.get("shuffle") and not captions.get("tag_dropout"):
        captions.pop("keep", None)  # it would have no effect
    return {**part, "captions": captions} if captions else part


def _converted(convert: Any, value: Any, usual: Any, name: str) -> Any:
    numbers = isinstance(usual, float) and type(value) is int
    if usual is not None and type(value) is not type(usual) and not numbers:
        raise SourceError(f"{name} is a {type(usual).__name__}; got {value!r}")
    try:
        return convert(value)
    except ValueError:
        raise SourceError(f"{name} is a number, or twice the same in a list; got {value!r}") from None


def _side(value: Any) -> int:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int:
        raise ValueError
    return sides[0]
