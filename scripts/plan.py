"""`sdjax plan`: the memory that pictures need."""

import argparse
import sys

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import model_flags, options, runtime, values

IF_OUT_OF_MEMORY = "close other programs"

DESCRIPTION = """\
Prints the memory that pictures of a model need, and what to do if it is too much.
Reads the model's description, not its weights. Compiles the programs for this
device, and keeps them for the first picture."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax plan`."""
    parser = options.make_command_parser("plan", DESCRIPTION, EXIT_STATUS)
    model_flags.add_place_argument(parser)
    add = parser.add_argument
    add("--H", type=values.positive, metavar="N", help="height in pixels; default: the model's own")
    add("--W", type=values.positive, metavar="N", help="width in pixels; default: the model's own")
    add("--n_samples", type=values.positive, default=1, metavar="N", help="pictures at once; default: %(default)s")
    add("--dtype", type=values.dtype, choices=options.DTYPES, help="compute in this type")
    add("--device", metavar="NAME", help="cpu, gpu, cuda, rocm or tpu, or one device such as cuda:1")
    add("--low-memory", action="store_true", help="with the weights left in their file, as for txt2img")
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints the plan. Raises what `sdjax.scripts.main` turns into a sentence."""
    (device,) = runtime.first_device(runtime.set_up_jax(args.device))
    import jax

    import sdjax
    from sdjax.pipeline import planning
    from sdjax.pipeline.placement import default_dtype
    from sdjax.tasks.resolve import check_size

    config = sdjax.load(model_flags.place(args), variant=args.variant, low_memory=True).config  # which reads no weights
    size = check_size(config, args.H, args.W)
    dtype = args.dtype or default_dtype(device.platform)
    with jax.default_device(device):
        plan = planning.plan(config, dtype, size, batch=args.n_samples, low_memory=args.low_memory)
    print(f"{config.name}, {args.n_samples} of {size[1]} x {size[0]} pixels at once, {dtype}, on {device.device_kind}")
    print(plan)
    for line in planning.advice(plan, dtype, args.n_samples, device):
        print(line)


if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
