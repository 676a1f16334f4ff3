"""`sdjax train`: trains or fine-tunes a model as a configuration file says."""

import argparse
import ast
import importlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.loading.run_layout import workdir
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import hosts, options, training_flags, values
from sdjax.scripts.shared.flags import alone, together
from sdjax.scripts.shared.kohya_flags import KOHYA
from sdjax.spelling import meant

IF_OUT_OF_MEMORY = (
    'a smaller batch_size or data.side; accumulate; remat = "products" or "blocks"; dtype = "bfloat16"; '
    "ema.host = True; parallel.fsdp. `sdjax train --plan` shows what is needed"
)

# Files of sdjax.configs
TRAININGS = (
    "finetune",
    "dreambooth",
    "lora",
    "textual_inversion",
    "pivotal",
    "inpainting",
    "depth",
    "autoencoder",
    "pretrain",
    "distill",
    "controlnet",
    "image_prompt",
    "mlperf_sd2",
)

DESCRIPTION = """\
Trains or fine-tunes a model on one device, on several, or on many hosts. A
configuration file holds the settings (docs/training.md):

  sdjax train --data pictures --ckpt v1-5-pruned.safetensors

Run the same command with --workdir again to continue a stopped run."""

EPILOG = f"""\
On many hosts, run the same command on each of them. On TPU pods, Slurm and Open
MPI, JAX finds the hosts (--hosts auto). Elsewhere give --coordinator, --num-hosts
and --host.

signals:
  SIGTERM  saves and ends with status 0; Ctrl-C saves and ends with 130
  SIGUSR1  saves and continues

further exit status:
  6    a step, batch or save took longer than `patience`: a device hangs, or
       another process died

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax train`."""
    parser = options.make_command_parser("train", DESCRIPTION, EPILOG)
    parser.other_tools = KOHYA
    add = parser.add_argument
    names = ", ".join(TRAININGS)
    add("--config", default="finetune", metavar="FILE.py",
        help=f"a file with get_config(), or one of {names}; default: %(default)s")  # fmt: skip
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="replace a value of the configuration, such "
        "as --set optim.learning_rate=1e-5; may be repeated")  # fmt: skip
    add("--workdir", type=values.folder, metavar="DIR",
        help="where the run is kept, a folder or gs://bucket/name; a run that is there continues; "
        "default: a new folder, runs/CONFIG-001 or the next number")  # fmt: skip
    add("--plan", action="store_true", help="print the memory that each device will need, and end; reads no weights")
    add(
        "--devices",
        needs=together("--plan"),
        type=values.positive,
        metavar="N",
        help="with --plan: for this many devices; default: those here",
    )
    add(
        "--platform",
        needs=(together("--plan"), alone("--accelerator")),
        choices=("cpu", "cuda", "tpu"),
        help="with --plan: for this kind of devices; default: those here",
    )
    add(
        "--accelerator",
        needs=together("--plan"),
        metavar="NAME",
        help="with --plan: for such devices, and predict the time: a100, h100, h200, v4, v5e, v5p, v6e, or a slice of "
        "TPUs such as v5p-16",
    )
    add(
        "--mfu",
        needs=together("--accelerator"),
        type=_share,
        metavar="SHARE",
        help="with --accelerator: the share of the peak that is reached; default: a published one, if there is one",
    )
    add(
        "--like",
        needs=together("--plan"),
        metavar="MODEL",
        help="with --plan: plan for a model like sd1, sd2_base, ... in place of the configuration's, whose file need "
        "not exist",
    )
    add(
        "--profile",
        needs=alone("--plan", why=", which trains nothing"),
        metavar="DIR",
        help="write a trace of ten steps for XProf, and continue",
    )
    add("--debug-nans", action="store_true", needs=alone("--plan", why=", which trains nothing"),
        help="stop at the first operation whose result is not finite (slow)")  # fmt: skip
    training_flags.add_flags(parser)
    hosts.add_host_flags(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Trains, or prints the plan."""
    if args.workdir is not None:
        workdir(args.workdir)  # refuses an invalid address first
    config = training_flags.apply(read_config(args.config, args.set), args)
    hosts.join_hosts(args)
    import jax

    from sdjax.description import build
    from sdjax.train.config import TrainConfig

    described = build(TrainConfig, config)
    check_effects(described, args.set)
    if args.debug_nans:
        jax.config.update("jax_debug_nans", True)
    if args.plan:
        from sdjax.train.planning.report import plan_of

        progress = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        print(
            plan_of(
                described, args.devices, args.platform, progress, accelerator=args.accelerator, mfu=args.mfu,
                like=args.like,
            )
        )  # fmt: skip
        return
    if (
        args.data is None
        and args.dataset_config is None
        and not any(text.lstrip().startswith("data") for text in args.set)
    ):
        training_flags.check_own(config["data"]["parts"], args.config)
    with training_flags.workdir(args, jax.process_count() > 1) as folder:
        train(described, folder, args)


def _share(text: str) -> float:
    """Returns a share of a peak, above 0 and up to 1. Raises argparse.ArgumentTypeError for anything else."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"a share of the peak is above 0 and at most 1; got {text}")
    return share


def check_effects(described: Any, changes: Sequence[str]) -> None:
    """Raises ValueError for a --set without effect, even if it sets the default."""
    from sdjax.train.config import without_effect

    for name, why in without_effect(described).items():
        for path in (text.partition("=")[0].strip() for text in changes):
            if path == name or path.startswith(f"{name}."):
                raise ValueError(f"--set {path} has no effect {why}: leave it out")


def train(described: Any, folder: Path, args: argparse.Namespace) -> None:
    """Trains, and keeps the run in `folder`."""
    import jax

    from sdjax.train.loop import Stopped
    from sdjax.train.run import Run
    from sdjax.train.watch import GO_ON, end

    def say(text: str) -> None:
        if jax.process_index() == 0:
            print(text, file=sys.stderr, flush=True)

    kept = f"this run is kept in {folder}: to continue it later, add --workdir {folder}"
    notices = (kept,) if args.workdir is None else ()
    try:
        Run(described, folder, say, profile=args.profile, notices=notices).train()
    except Stopped as stopped:
        if stopped.number != signal.SIGTERM:
            raise
        say(str(stopped))
        return
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        end(f"sdjax train: the processes lost contact ({str(error).splitlines()[0]}); {GO_ON}")
    say(f"done; `sdjax convert {folder} OUT` writes the model")


def read_config(name: str, changes: Sequence[str]) -> dict[str, Any]:
    """Returns the configuration from a file's get_config(), with NAME=VALUE texts applied.

    The file is a program and is run. Raises ValueError for a file without get_config, and for unknown names.
    """
    import ml_collections

    config = _module(name).get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        config = ml_collections.ConfigDict(config)
    paths: list[str] = []
    for text in changes:
        path, equals, value = text.partition("=")
        if path in paths:
            raise ValueError(f"--set {path} is given twice but takes one value: give it once")
        paths.append(path)
        if not equals:
            raise ValueError(f"--set is NAME=VALUE, such as optim.learning_rate=1e-5; got {text!r}")
        try:
            given = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given = value  # a plain text
        *outer, last = path.split(".")
        place = config
        for key in outer:
            place = place.get(key) if isinstance(place, ml_collections.ConfigDict) else None
        if not isinstance(place, ml_collections.ConfigDict) or last not in place:
            known = list(place if isinstance(place, ml_collections.ConfigDict) else config)
            near = meant(last if isinstance(place, ml_collections.ConfigDict) else outer[0], known)
            raise ValueError(f"the configuration has no {path}{near}; it has {', '.join(known)}")
        with place.ignore_type():
            place[last] = given
    return config.to_dict()


def _module(name: str) -> Any:
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"there is no configuration {name}")
        spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
        assert spec is not None  # for a file's name ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses in the file look up their annotations there
        spec.loader.exec_module(module)
    elif name in TRAININGS:
        module = importlib.import_module(f"sdjax.configs.{name}")
    else:
        raise ValueError(
            f"--config is a file, FILE.py, or one of {', '.join(TRAININGS)}; got {name!r}{meant(name, TRAININGS)}"
        )
    if not hasattr(module, "get_config"):
        raise ValueError(f"{name} has no function get_config()")
    return module


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
