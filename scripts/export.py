"""`sdjax export`: writes text to image with a model as programs that run without the code of the networks."""

import argparse
import sys
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options, prompt_files, prompt_flags, runtime, values

IF_OUT_OF_MEMORY = "smaller --H and --W, a smaller --batch"
PLATFORMS = ("cpu", "cuda", "tpu")  # those of sdjax.export.layout; a test compares them

DESCRIPTION = """\
Writes text to image with a model into a folder: programs for CPU, CUDA and TPU,
made by jax.export, and the weights beside them. `sdjax run-exported` makes
pictures with it, without the code of the networks. Any computer exports for all
platforms."""

EPILOG = f"""\
The programs make pictures of one size, --batch at a time. Prompts, seeds, scales,
samplers and numbers of steps are free.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax export`."""
    parser = options.make_command_parser("export", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("ckpt", metavar="MODEL", help="builtin, a checkpoint's file or folder, or a repository of the hub")
    add("folder", metavar="OUT", help="the folder to write; it must not exist")
    add("--H", type=int, metavar="PIXELS", help="height of the pictures; default: the model's own")
    add("--W", type=int, metavar="PIXELS", help="width, as --H")
    add("--batch", type=values.positive, default=1, metavar="N", help="pictures at a time; default: %(default)s")
    add(
        "--platform",
        type=platforms,
        default=PLATFORMS,
        metavar="NAME,NAME",
        help=f"what to export for, some of {', '.join(PLATFORMS)}; default: all",
    )
    add("--dtype", type=values.dtype, choices=options.DTYPES, help="type to compute in; default: float32")
    prompt_flags.add_merged_adapters(add)
    return parser


def platforms(text: str) -> tuple[str, ...]:
    """Returns the platforms, separated by commas, for argparse."""
    names = tuple(text.split(","))
    if not set(names) <= set(PLATFORMS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PLATFORMS)}; got {text}")
    return names


def run(args: argparse.Namespace) -> None:
    """Writes the folder and prints its name."""
    runtime.set_up_jax("cpu")
    import sdjax
    from sdjax.export import layout, write
    from sdjax.purpose import check_task
    from sdjax.storage import files
    from sdjax.tasks.resolve import check_size

    write.check_new(args.folder)
    files.check_folder(args.folder, "exporting to")

    def check(config: Any) -> None:
        check_task(config, "export")
        check_size(config, args.H, args.W)

    pipe = sdjax.load(args.ckpt, dtype=args.dtype or "float32", quantise="no", check=check)
    pipe, _ = prompt_files.with_adapters(pipe, args)
    height, width = check_size(pipe.config, args.H, args.W)
    write.write(pipe, args.folder, height=height, width=width, batch=args.batch, platforms=args.platform)
    print(f"{args.folder}: {width} x {height}, {args.batch} at a time, for {', '.join(sorted(set(args.platform)))}")
    print(f"weights: {layout.read(write.Path(args.folder)).weight_bytes:,} bytes")


if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
