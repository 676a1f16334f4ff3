"""`sdjax benchmark`: steps a second on this computer, as a table to paste."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import model_flags, options, runtime, values

WRITING = "writing the numbers"
IF_OUT_OF_MEMORY = "smaller --size or --batch, --dtype bfloat16"

DESCRIPTION = """\
Measures how fast this computer makes pictures: steps a second for sizes and
batches, encoding, decoding, compiling in the first run, and the device's memory.
Prints a Markdown table. Weights do not change the speed, so --random measures a
released architecture without a checkpoint."""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax benchmark`."""
    parser = options.make_command_parser("benchmark", DESCRIPTION, EXIT_STATUS)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ckpt", metavar="PATH", help="the model to measure; default: the built-in model")
    which.add_argument(
        "--random", metavar="NAME", help="a released architecture such as sd1 or sd2_v, with random weights"
    )
    add("--size", type=values.positive, nargs="+", metavar="N", help="sides in pixels; default: the model's")
    add("--batch", type=values.positive, nargs="+", default=[1], metavar="N", help="pictures in a batch; default: 1")
    add("--repeats", type=values.positive, default=3, metavar="N", help="number of runs of each; default: %(default)s")
    add("--dtype", type=values.dtype, choices=options.DTYPES, help="default: float32 on CPU, bfloat16 elsewhere")
    model_flags.add_quantise_flag(parser)
    add("--device", metavar="NAME", help="cpu, gpu, cuda, rocm or tpu; default: the first of the best kind")
    add("--json", metavar="FILE", help="also write the numbers to this file")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measures and prints the table."""
    devices = runtime.set_up_jax(args.device)
    import jax

    import sdjax
    from sdjax import configs
    from sdjax.convert.write.outputs import check_output
    from sdjax.evaluate import benchmark
    from sdjax.pipeline.placement import default_dtype
    from sdjax.storage.files import write_file
    from sdjax.tasks.resolve import check_size

    if args.json:
        check_output(args.json, True, WRITING)
    device = (devices or jax.local_devices())[0]
    for side in args.size or ():
        check_size(sdjax.ModelConfig("any"), side, side)
    if args.random:
        pipe = benchmark.random_model(configs.get(args.random), args.dtype or default_dtype())
    else:

        def check(config: Any) -> None:
            for side in args.size or ():
                check_size(config, side, side)

        pipe = sdjax.load(args.ckpt, dtype=args.dtype, quantise=args.quantise, check=check)
    results = []
    for size in args.size or [pipe.config.image_size]:
        for batch in args.batch:
            print(f"{size} x {size}, batch {batch} ...", file=sys.stderr, flush=True)
            results.append(benchmark.measure(pipe, size, batch, repeats=args.repeats, device=device))
    print(benchmark.table(pipe, results, device))
    if args.json:
        found = {
            "sdjax": sdjax.__version__, "jax": jax.__version__, "device": benchmark.device_name(device),
            "dtype": pipe.dtype, "quantised": args.quantise, "model": benchmark.model_name(pipe),
            "results": [dataclasses.asdict(r) for r in results],
        }  # fmt: skip
        write_file(args.json, (json.dumps(found, indent=1) + "\n").encode(), overwrite=True, what=WRITING)


if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
