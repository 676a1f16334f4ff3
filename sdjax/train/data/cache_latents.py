"""`sdjax cache-latents`: computes the latents and texts of a training set once, before training on them."""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

IF_OUT_OF_MEMORY = "a smaller --batch-size, a smaller --side, --dtype bfloat16"

DESCRIPTION = """\
Computes what the autoencoder and the text encoder make of a training set, and
keeps it in a folder that `sdjax train` reads instead of the pictures. A run that
was stopped goes on where it was. On several machines give each its --shard i/n,
or one of them --beam."""

SOURCES = ("folder", "records", "tfds", "tars")


def make_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of `sdjax cache-latents`, with this text at the end of its help."""
    parser = argparse.ArgumentParser(
        prog="sdjax cache-latents", description=DESCRIPTION, epilog=epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT", help="the folder to write into")
    parser.add_argument("--model", help="checkpoint or hub repository, as for txt2img (default: the built-in model)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="what the networks compute in")
    data = parser.add_argument_group("pictures")
    kind = data.add_mutually_exclusive_group(required=True)
    kind.add_argument("--folder", metavar="DIR", help="pictures with metadata.jsonl or .csv, or NAME.txt beside each")
    kind.add_argument("--records", metavar="PATH", help="ArrayRecord files, or a folder of them")
    kind.add_argument("--tfds", metavar="NAME", help="a TensorFlow Dataset")
    kind.add_argument("--tars", metavar="PATH", help="tar shards, such as data/{00000..00099}.tar")
    data.add_argument("--split", help="of a TensorFlow Dataset (default: train)")
    data.add_argument("--data-dir", help="where TensorFlow Datasets lie")
    data.add_argument("--image", metavar="COLUMN", help="the column of a TensorFlow Dataset that holds its pictures")
    data.add_argument("--caption", metavar="COLUMN", help="the column that holds the captions")
    data.add_argument("--template", help='what a class name is put into (default: "a photo of a {}")')
    data.add_argument("--default", metavar="TEXT", help="the caption of pictures that have none")
    data.add_argument("--where", metavar="FILTER", help='such as "aesthetic > 5 and min(width, height) >= 512"')
    sizes = parser.add_argument_group("sizes and crops")
    sizes.add_argument("--side", type=int, metavar="PIXELS", help="(default: the model's own)")
    sizes.add_argument("--buckets", action="store_true", help="keep aspect ratios: sizes of about side x side pixels")
    sizes.add_argument("--bucket-step", type=int, default=64, metavar="PIXELS", help="(default: 64)")
    sizes.add_argument("--bucket-sides", type=int, nargs=2, metavar=("LEAST", "MOST"), help="(default: side/2 2*side)")
    sizes.add_argument("--least", type=int, default=1, metavar="N", help="merge buckets of fewer pictures (default: 1)")
    sizes.add_argument("--crop", choices=("random", "centre"), default="centre", help="(default: centre)")
    sizes.add_argument("--flip", type=float, default=0.0, metavar="SHARE", help="how often mirrored (default: 0)")
    sizes.add_argument("--resample", choices=("lanczos", "area", "bicubic", "bilinear"), default="lanczos")
    sizes.add_argument("--variants", type=int, default=1, metavar="N", help="crops and flips kept of each picture")
    sizes.add_argument("--seed", type=int, default=0, help="of crops and flips (default: 0)")
    work = parser.add_argument_group("work")
    work.add_argument("--text", choices=("ids", "context"), default="ids",
                      help="keep tokens, or the text encoder's output (default: ids)")  # fmt: skip
    work.add_argument("--shard-size", type=int, default=1024, metavar="N", help="pictures a shard (default: 1024)")
    work.add_argument("--batch-size", type=int, default=8, metavar="N", help="(default: 8)")
    work.add_argument("--bad-limit", type=float, default=0.01, metavar="SHARE",
                      help="of a shard's pictures that may be bad; 10 are always let pass (default: 0.01)")  # fmt: skip
    work.add_argument("--shard", default="0/1", metavar="I/N", help="make every N-th shard from the I-th on, I from 0")
    work.add_argument("--beam", nargs=argparse.REMAINDER, metavar="OPTION",
                      help="let Apache Beam do the work; what follows are its own options")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def run(args: argparse.Namespace) -> None:
    """Makes the shards that are asked for, and prints what the cache holds then."""
    from sdjax.train.data import beam, cache

    share = parse_share(args.shard)
    if args.beam is not None and args.shard != "0/1":
        raise ValueError("--shard splits the work by hand and --beam by itself: give one of them")
    settings = {name: value for name, value in vars(args).items() if name not in ("beam", "shard", "debug")}
    make = functools.partial(make_writer, settings)
    writer = make()
    for line in [*writer.pictures.notices, *(f"{n} left out: {why}" for why, n in writer.pictures.left_out.items())]:
        print(line, file=sys.stderr)
    if args.beam is None:
        cache.write_shards(writer, share)
    else:
        beam.make_shards(make, [k for k in range(writer.shards) if not writer.done(k)], args.beam)
    found = cache.statistics(args.out)
    print(f"{found['shards']} of {found['of']} shards, {found['records']} records in {args.out}")
    for reason, number in found["bad"].items():
        print(f"{number} bad pictures: {reason}")
    if found.get("scale_factor"):
        own = writer.pipe.config.vae.scale_factor
        print(f"1 / standard deviation of the latents: {found['scale_factor']:.5f} (the model's scale factor: {own})")


def make_writer(settings: dict[str, Any]) -> Any:
    """Returns the LatentWriter that the command's arguments describe; a Beam worker makes its own."""
    import sdjax
    from sdjax.files import check_folder
    from sdjax.train.data.buckets import Buckets
    from sdjax.train.data.cache import CacheSettings, LatentWriter
    from sdjax.train.data.pictures import Part, Pictures
    from sdjax.train.data.sources import open_source

    s = argparse.Namespace(**settings)
    names = (*SOURCES, "split", "data_dir", "image", "caption", "template", "default")
    kept = CacheSettings(text=s.text, variants=s.variants, seed=s.seed, shard_size=s.shard_size)
    if s.batch_size < 1 or not 0 <= s.bad_limit <= 1:
        raise ValueError(f"--batch-size is 1 or more, --bad-limit from 0 to 1; got {s.batch_size} and {s.bad_limit}")
    source = open_source({name: getattr(s, name) for name in names})
    check_folder(s.out, "writing latents into")

    def prepare(side: int) -> Pictures:
        buckets = Buckets.square(side)
        if s.buckets:
            buckets = Buckets.around(side, step=s.bucket_step, sides=s.bucket_sides)
        return Pictures(
            [Part(source, s.where)], buckets, least=s.least, crop=s.crop, flip=s.flip, resample=s.resample
        )  # fmt: skip

    made = [] if s.side is None else [prepare(s.side)]

    def check(config: Any) -> None:  # before the weights are read
        if s.side is None:
            made.append(prepare(config.image_size))
        factor = config.vae.factor
        if any(value % factor for size in made[0].buckets.sizes for value in size):
            raise ValueError(f"sides are multiples of {factor} for this model's autoencoder; got {s.side}")

    pipe = sdjax.load(s.model, dtype=s.dtype, check=check)
    (pictures,) = made
    return LatentWriter(pipe, pictures, os.fspath(s.out), kept, batch_size=s.batch_size, bad_limit=s.bad_limit)


def parse_share(text: str) -> tuple[int, int]:
    """Returns (i, n) of "i/n". Raises ValueError unless i is from 0 to n - 1."""
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        i, n = -1, 0
    if not 0 <= i < n:
        raise ValueError(f"--shard is I/N with I from 0 to N - 1, such as 0/4; got {text!r}")
    return i, n


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command by itself."""
    args = make_parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
