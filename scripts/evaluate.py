"""`sdjax evaluate`: judges models by measures such as FID and CLIP score, over guidance scales and samplers."""

import argparse
import sys
from pathlib import Path

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import hosts, judged, options, values
from sdjax.scripts.shared.flags import Needs

IF_OUT_OF_MEMORY = "a smaller --batch, --dtype bfloat16"
OUT = "outputs/evaluate"
RESAMPLES = 100  # as in sdjax.evaluate.bootstrap; a test compares them
WAIT = 10 * 24 * 3600  # seconds that a host waits for the others at its end

DESCRIPTION = """\
Makes pictures of captions and measures them: FID, KID, FD-DINOv2, CMMD, CLIP
score, precision and recall, and others. A measure needs the file of its network,
such as --inception, and most need reference pictures. Without any file the
built-in model is judged by its own reader and autoencoder.

  sdjax evaluate MODEL --captions captions_val2014.json --count 5000 \\
      --reference val2014 --inception pt_inception-2015-12-05-6726825d.pth \\
      --clip openai/clip-vit-large-patch14 --sweep scale=1.5,2,3,4,5,6,7,8

Every picture depends on its caption and the settings alone. What is interrupted
goes on where it stopped, with the same command."""

EPILOG = f"""\
DIR/result.json holds settings, measures and confidence intervals, DIR/result.csv
the same as a table. Two results are compared without making anything:
`sdjax evaluate A/result.json --against B/result.json`.

{EXIT_STATUS}"""

MADE = Needs(lambda args: judged.makes(args), "where results are only read: leave it out, or name a model")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax evaluate`."""
    parser = options.make_command_parser("evaluate", DESCRIPTION, EPILOG)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a model, as --ckpt of txt2img, or the result.json of an evaluation; default: the built-in model",
    )
    parser.add_argument("--against", metavar="MODEL", help="compare with this model or result.json, caption by caption")
    judged.add_what_flags(parser, MADE)
    judged.add_network_flags(parser, MADE)
    add = parser.add_argument_group("where and how to compute").add_argument
    add("--batch", type=values.positive, default=8, metavar="N", needs=MADE,
        help="pictures that are made at a time; default: %(default)s")  # fmt: skip
    add("--bootstrap", type=values.natural, default=RESAMPLES, metavar="N", needs=MADE,
        help="resamples for confidence intervals; 0 for none; default: %(default)s")  # fmt: skip
    add("--device", metavar="NAME", needs=MADE,
        help="cpu, gpu, cuda, rocm or tpu; default: all of the best kind")  # fmt: skip
    add("--dtype", type=values.dtype, choices=options.DTYPES, needs=MADE,
        help="compute the model in this type; default: float32 on CPU, bfloat16 elsewhere")  # fmt: skip
    add("--ema", choices=("auto", "yes", "no"), default="auto", needs=MADE,
        help="use the averaged weights; auto: if the checkpoint has them; default: %(default)s")  # fmt: skip
    hosts.add_host_flags(parser, (MADE,))
    add = parser.add_argument_group("what to write").add_argument
    add("--out", type=values.folder, default=OUT, metavar="DIR", needs=MADE,
        help="folder for pictures, features and results; with --against, those of the second model go to DIR/against; "
        "default: %(default)s")  # fmt: skip
    add("--figure", metavar="NAME,NAME",
        help="draw this measure across and this one up, with a point for each setting; default: with --sweep, a score "
        "of captions across and a distance up")  # fmt: skip
    return parser


def run(args: argparse.Namespace) -> None:
    """Makes what is missing, measures, and prints tables, comparisons and the paths of files."""
    figure = judged.read_figure(args)
    first, second = (judged.read_result(path) for path in (args.model, args.against))
    for one in first, second:
        if one is not None:
            judged.check_figure(figure, one.measures)
    if judged.makes(args):
        judged.check(args)
        hosts.join_hosts(args, shutdown_timeout_seconds=WAIT)
        judge = judged.Judge(args)
        judged.check_figure(figure, [one.name for one in judge.measures])
        first = first or judge.evaluate(args.model, Path(args.out))
        if args.against is not None:
            second = second or judge.evaluate(args.against, Path(args.out) / "against")
        if first is None or (args.against is not None and second is None):
            judged.say("this host has made its share; the last host measures")
            return
    shown = [one for one in (first, second) if one is not None]
    print("\n\n".join(f"{one.model.get('name')}, {one.count} captions\n\n{one.table()}" for one in shown))
    for path in judged.written(args, shown, figure):
        print(path)
    if args.against is not None:
        from sdjax.evaluate.comparing import compare

        print()
        for comparison in compare(*shown):
            print(comparison.sentence)


if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
