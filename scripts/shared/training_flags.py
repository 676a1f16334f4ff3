"""The short flags of `sdjax train`: the settings that they change, and the folder of a run."""

import argparse
import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdjax.loading.run_layout import workdir as folder_of
from sdjax.scripts.shared import values
from sdjax.scripts.shared.flags import alone, together
from sdjax.storage import addresses, buckets

RUNS = Path("runs")  # the folder of runs without --workdir
SETS = {  # the settings that each flag changes
    "--data": ("data.parts", "data.cached"),
    "--default": ("data.parts",),
    "--dataset-config": ("data", "batch_size", "objective.dropout", "objective.masked"),
    "--ckpt": ("model.path", "model.scratch"),
    "--steps": ("optim.steps", "optim.epochs"),
    "--lr": ("optim.learning_rate",),
    "--batch-size": ("batch_size",),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to a parser."""
    add = parser.add_argument_group("the common case").add_argument
    add("--data", action="append", metavar="DIR",
        help="a folder of pictures with captions, tar shards (*.tar), ArrayRecord files, or a cache of latents; may be "
        "repeated, in the order of the configuration's parts if it has several")  # fmt: skip
    add("--dataset-config", metavar="FILE.toml", needs=alone("--data", "--batch-size"),
        help="a dataset configuration of kohya's scripts: folders, captions, sizes and batch size")  # fmt: skip
    add("--default", needs=together("--data"), metavar="TEXT", help="the caption of pictures without one")
    add("--ckpt", metavar="PATH", help="the model to start from, as for txt2img; default: the configuration's, or "
        "else the built-in model")  # fmt: skip
    add("--steps", type=values.positive, metavar="N", help="number of steps of the run")
    add("--lr", type=_rate, metavar="RATE", help="the learning rate, such as 1e-5")
    add("--batch-size", type=values.positive, metavar="N", help="pictures in a step, on all devices together")


def apply(config: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Returns the configuration with the flags applied.

    Raises ValueError for a flag that contradicts --set or does not fit the configuration.
    """
    for flag, names in SETS.items():
        for text in args.set if _given(args, flag) is not None else ():
            name = text.partition("=")[0].strip()
            if any(other == name or other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in names):
                raise ValueError(f"{flag} and --set {name} both set the same value: give one of them")
    config = {**config, "model": dict(config["model"]), "optim": dict(config["optim"])}
    if args.ckpt is not None:
        if config["model"].get("scratch") is not None:
            raise ValueError(f"--ckpt is a model to start from, and {args.config} starts from none (model.scratch)")
        config["model"]["path"] = args.ckpt
    if args.steps is not None:
        config["optim"]["steps"] = args.steps
    if args.lr is not None:
        config["optim"]["learning_rate"] = args.lr
    if args.batch_size is not None:
        config["batch_size"] = args.batch_size
    if args.dataset_config is not None:
        from sdjax.train.data.kohya_dataset import read_dataset_config

        for name, value in read_dataset_config(args.dataset_config).items():
            *outer, last = name.split(".")
            place = config
            for key in outer:
                place[key] = dict(place[key])
                place = place[key]
            place[last] = value
    if args.data is not None:
        config["data"] = {**config["data"], **_data(config["data"]["parts"], args)}
    return config


def check_own(parts: Sequence[Any], name: str) -> None:
    """Raises ValueError if the example folder of pictures in a configuration does not exist."""
    folders = [part["source"]["folder"] for part in parts if isinstance(part["source"].get("folder"), str)]
    missing = [folder for folder in folders if "://" not in folder and not Path(folder).is_dir()]
    if missing:
        raise ValueError(
            f"--data names the folder of pictures to train on{' (once for each part)' * (len(parts) > 1)}; the "
            f"configuration {name} says {' and '.join(missing)}, which is not there"
        )


def _data(parts: Sequence[Any], args: argparse.Namespace) -> dict[str, Any]:
    """Returns `parts` and `cached` for --data."""
    sources = [source(path) for path in args.data]
    cached = [one["cached"] for one in sources if "cached" in one]
    if cached:
        if len(cached) < len(sources):
            raise ValueError("--data names caches of latents or sources of pictures, not both")
        if args.default is not None:
            raise ValueError("--default is for pictures; a cache of latents has its captions")
        return {"parts": (), "cached": tuple(cached)}
    if args.default is not None:
        if any("records" in one for one in sources):
            raise ValueError("--default is for pictures without captions; ArrayRecord files hold theirs")
        sources = [{**one, "default": args.default} for one in sources]
    if len(parts) > 1:
        if len(sources) != len(parts):
            listed = ", ".join(str(next(iter(part["source"].values()))) for part in parts)
            raise ValueError(
                f"the configuration has {len(parts)} parts of data ({listed}): give --data for each of them, in this "
                f"order; got {len(sources)}"
            )
        options_of = [
            {name: value for name, value in part["source"].items() if name in ("default", "caption")} for part in parts
        ]
        kept = [dict(part, source={**old, **new}) for part, old, new in zip(parts, options_of, sources)]
        return {"parts": tuple(kept), "cached": ()}
    return {"parts": tuple({"source": one} for one in sources), "cached": ()}


def source(text: str) -> dict[str, Any]:
    """Returns the source that --data names: {"folder": path}, {"tars": ...}, {"records": ...} or {"cached": ...}."""
    if text.endswith(".tar"):
        return {"tars": text}
    if addresses.remote(text):
        path: Any = text
        names = [name for name in buckets.contents(text) if "/" not in name] or [text]
    else:
        path = Path(text).expanduser()
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    if "manifest.json" in names and any(name.startswith("latents-") for name in names):
        return {"cached": str(path)}
    for ending, kind in (".tar", "tars"), (".array_record", "records"), (".arrayrecord", "records"):
        if any(name.endswith(ending) and not name.startswith(".") for name in names):
            return {kind: str(path)}
    return {"folder": str(path)}


@contextlib.contextmanager
def workdir(args: argparse.Namespace, several: bool) -> Iterator[Path]:
    """Yields the folder of the run: --workdir, else a new one, runs/CONFIG-001 or the next number.

    A new folder is removed if the block fails before anything was trained. Raises ValueError on several hosts without
    --workdir, because they must use the same folder.
    """
    if args.workdir is not None:
        yield folder_of(args.workdir)
        return
    if several:
        raise ValueError("on several hosts give --workdir, a folder that all of them see")
    folder = _new(Path(args.config).stem)
    try:
        yield folder
    except BaseException:
        if not (folder / "log.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                RUNS.rmdir()  # if nothing else is in it
        raise


def _new(name: str) -> Path:
    RUNS.mkdir(exist_ok=True)
    taken = [path.name.removeprefix(f"{name}-") for path in RUNS.glob(f"{name}-*")]
    number = max([int(digits) for digits in taken if digits.isdecimal()], default=0)
    while True:
        number += 1
        folder = RUNS / f"{name}-{number:03d}"
        try:
            folder.mkdir()  # another run may begin at the same moment
        except FileExistsError:
            continue
        return folder


def _given(args: argparse.Namespace, flag: str) -> Any:
    return getattr(args, flag.lstrip("-").replace("-", "_"))


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a learning rate is above 0, such as 1e-5; got {text}")
    return value
