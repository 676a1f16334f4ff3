"""`sdjax compile`: compiles a model's programs before they are needed."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sdjax import errors
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import model_flags, options, runtime, values

IF_OUT_OF_MEMORY = "smaller --size or --batch, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Compiles the programs of text to image for each size and number of pictures, and
keeps them: pictures of these sizes then need no compiler, in every process on this
kind of device with these versions of JAX and sdjax (docs/memory.md). Makes pictures
of one step to do so."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax compile`."""
    parser = options.make_command_parser("compile", DESCRIPTION, EXIT_STATUS)
    model_flags.add_place_argument(parser)
    add = parser.add_argument
    add("--size", type=values.positive, metavar="N", help="side in pixels; default: the model's own")
    add("--batch", type=values.positive, nargs="+", default=[1], metavar="N", help="pictures at once; default: 1")
    add(
        "--folder",
        type=values.folder,
        metavar="DIR",
        help="keep the programs here, and use them with JAX_COMPILATION_CACHE_DIR=DIR; default: in the user's cache "
        "folder, where sdjax finds them",
    )
    add("--dtype", type=values.dtype, choices=options.DTYPES, help="compute in this type")
    add("--device", metavar="NAME", help="cpu, gpu, cuda, rocm or tpu, or one device such as cuda:1")
    add("--low-memory", action="store_true", help="for pictures with --low-memory")
    return parser


def run(args: argparse.Namespace) -> None:
    """Compiles, and prints what was done. Raises what `sdjax.scripts.main` turns into a sentence."""
    devices = runtime.first_device(runtime.set_up_jax(args.device))
    import sdjax
    from sdjax.pipeline import cache
    from sdjax.tasks.resolve import check_size

    def begin(config: Any) -> None:  # when the model is known, and before anything is compiled
        try:
            check_size(config, args.size, args.size)
        except ValueError as error:
            raise ValueError(f"--size: {error}") from None
        if args.folder is not None:
            with errors.doing("making the folder", args.folder):
                Path(args.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.keep_all(None if args.folder is None else Path(args.folder))

    place = model_flags.place(args)
    pipe = sdjax.load(place, variant=args.variant, dtype=args.dtype, low_memory=args.low_memory, check=begin)
    for count in dict.fromkeys(args.batch):
        sdjax.text_to_image(pipe, [""] * count, num_steps=1, height=args.size, width=args.size, devices=devices)
        side = args.size or pipe.config.image_size
        print(f"{count} of {side} x {side} pixels at once, {pipe.dtype}: kept in {cache.folder()}", flush=True)


if __name__ == "__main__":
    sys.exit(main(["compile", *sys.argv[1:]]))
