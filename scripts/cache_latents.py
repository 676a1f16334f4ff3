"""`sdjax cache-latents`: computes the latents and texts of a training set once (sdjax.train.cache_latents)."""

import argparse
import sys

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options
from sdjax.scripts.shared.flags import Needs, alone, together
from sdjax.train.cache_latents import run

__all__ = ["IF_OUT_OF_MEMORY", "make_parser", "run"]

IF_OUT_OF_MEMORY = "a smaller --batch-size, a smaller --side, --dtype bfloat16"

DESCRIPTION = """\
Computes the latents and tokens (or contexts) of a training set once, and writes
them to a folder that `sdjax train` reads instead of the pictures. Run the same
command again to continue. On several machines give each its --shard i/n, or use
--beam."""

DRAWN = Needs(
    lambda args: args.crop == "random" or args.flip > 0,
    "because nothing is random: add --crop random or --flip, or leave this flag out",
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax cache-latents`."""
    parser = options.make_command_parser("cache-latents", DESCRIPTION, EXIT_STATUS)
    parser.add_argument("out", metavar="OUT", help="the folder to write into")
    parser.add_argument("--model", help="checkpoint or hub repository, as for txt2img (default: the built-in model)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="type that the networks compute in")
    data = parser.add_argument_group("pictures")
    kind = data.add_mutually_exclusive_group(required=True)
    kind.add_argument("--folder", metavar="DIR", help="pictures with metadata.jsonl or .csv, or NAME.txt beside each")
    kind.add_argument("--records", metavar="PATH", help="ArrayRecord files, or a folder of them")
    kind.add_argument("--tfds", metavar="NAME", help="a TensorFlow Dataset")
    kind.add_argument("--tars", metavar="PATH", help="tar shards, such as data/{00000..00099}.tar")
    data.add_argument("--split", needs=together("--tfds"), help="split of the TensorFlow Dataset (default: train)")
    data.add_argument("--data-dir", needs=together("--tfds"), help="folder of the TensorFlow Datasets")
    data.add_argument(
        "--image",
        needs=together("--tfds"),
        metavar="COLUMN",
        help="the column of the TensorFlow Dataset with the pictures",
    )
    data.add_argument(
        "--caption",
        needs=alone("--records", why=", which already name their captions"),
        metavar="COLUMN",
        help="the column with the captions",
    )
    data.add_argument(
        "--template", needs=together("--tfds"), help='the caption for a class name, {} (default: "a photo of a {}")'
    )
    data.add_argument(
        "--default",
        needs=alone("--records", why=", which hold their captions"),
        metavar="TEXT",
        help="the caption of pictures without one",
    )
    data.add_argument(
        "--where",
        metavar="FILTER",
        help='use only these pictures, such as "aesthetic > 5 and min(width, height) >= 512"',
    )
    sizes = parser.add_argument_group("sizes and crops")
    sizes.add_argument("--side", type=int, metavar="PIXELS", help="side of a picture (default: the model's own)")
    sizes.add_argument(
        "--buckets", action="store_true", help="keep aspect ratios, with sizes of about side x side pixels"
    )
    sizes.add_argument(
        "--bucket-step",
        needs=together("--buckets"),
        type=int,
        default=64,
        metavar="PIXELS",
        help="sides are multiples of this (default: 64)",
    )
    sizes.add_argument(
        "--bucket-sides",
        needs=together("--buckets"),
        type=int,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="smallest and largest side (default: side/2 2*side)",
    )
    sizes.add_argument(
        "--least",
        needs=together("--buckets"),
        type=int,
        default=1,
        metavar="N",
        help="merge buckets with fewer pictures (default: 1)",
    )
    sizes.add_argument(
        "--crop", choices=("random", "centre"), default="centre", help="where pictures are cut (default: centre)"
    )
    sizes.add_argument(
        "--flip", type=float, default=0.0, metavar="SHARE", help="share of mirrored pictures, from 0 to 1 (default: 0)"
    )
    sizes.add_argument("--resample", choices=("lanczos", "area", "bicubic", "bilinear"), default="lanczos",
                       help="how pictures are resized (default: lanczos)")  # fmt: skip
    sizes.add_argument(
        "--variants",
        needs=DRAWN,
        type=int,
        default=1,
        metavar="N",
        help="number of crops and flips kept of each picture (default: 1)",
    )
    sizes.add_argument("--seed", needs=DRAWN, type=int, default=0, help="seed of crops and flips (default: 0)")
    work = parser.add_argument_group("work")
    work.add_argument("--text", choices=("ids", "context"), default="ids",
                      help="keep tokens, or the text encoder's output (default: ids)")  # fmt: skip
    work.add_argument("--shard-size", type=int, default=1024, metavar="N", help="pictures in a shard (default: 1024)")
    work.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures in a batch (default: 8)")
    work.add_argument("--bad-limit", type=float, default=0.01, metavar="SHARE",
                      help="bad pictures allowed in a shard; 10 are always allowed (default: 0.01)")  # fmt: skip
    work.add_argument(
        "--shard",
        default="0/1",
        needs=alone("--beam", why=", which splits the work itself"),
        metavar="I/N",
        help="make every N-th shard, starting with shard I, counted from 0",
    )
    work.add_argument("--beam", nargs=argparse.REMAINDER, metavar="OPTION",
                      help="let Apache Beam do the work; its own options follow this flag")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main(["cache-latents", *sys.argv[1:]]))
