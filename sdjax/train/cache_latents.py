"""Runs `sdjax cache-latents`: computes the latents and texts of a training set once, before training on them."""

import argparse
import functools
import os
import sys
from typing import Any

SOURCES = ("folder", "records", "tfds", "tars")


def run(args: argparse.Namespace) -> None:
    """Makes the requested shards and prints the contents of the cache."""
    from sdjax.train.data import beam, cache

    share = parse_share(args.shard)
    if args.beam is not None and args.shard != "0/1":
        raise ValueError("--shard and --beam both split the work; give only one of them")
    if args.beam is not None:
        beam.check_installed()
    settings = {name: value for name, value in vars(args).items() if name not in ("beam", "shard", "debug", "given")}
    make = functools.partial(make_writer, settings)
    writer = make()
    for line in [*writer.pictures.notices, *(f"{n} left out: {why}" for why, n in writer.pictures.left_out.items())]:
        print(line, file=sys.stderr)
    if args.beam is None:
        cache.write_shards(writer, share)
    else:
        beam.make_shards(make, [k for k in range(writer.shards) if not writer.done(k)], args.beam)
    found = cache.cache_statistics(args.out)
    print(f"{found['shards']} of {found['of']} shards, {found['records']} records in {args.out}")
    for reason, number in found["bad"].items():
        print(f"{number} bad pictures: {reason}")
    if found.get("scale_factor"):
        own = writer.pipe.config.vae.scale_factor
        print(f"1 / standard deviation of the latents: {found['scale_factor']:.5f} (the model's scale factor: {own})")


def make_writer(settings: dict[str, Any]) -> Any:
    """Returns the LatentWriter that the command's arguments describe. Each Beam worker makes its own."""
    import sdjax
    from sdjax.loading.start_model import ModelSource, describe
    from sdjax.storage.files import check_folder
    from sdjax.train.data.buckets import Buckets
    from sdjax.train.data.cache import CacheSettings, LatentWriter
    from sdjax.train.data.pictures import Part, Pictures
    from sdjax.train.data.sources import open_source

    s = argparse.Namespace(**settings)
    names = (*SOURCES, "split", "data_dir", "image", "caption", "template", "default")
    kept = CacheSettings(text=s.text, variants=s.variants, seed=s.seed, shard_size=s.shard_size)
    if s.batch_size < 1 or not 0 <= s.bad_limit <= 1:
        raise ValueError(
            f"--batch-size must be 1 or more and --bad-limit from 0 to 1; got {s.batch_size} and {s.bad_limit}"
        )
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

    def check(config: Any) -> None:
        if not made:
            made.append(prepare(config.image_size))
        factor = config.vae.factor
        if any(value % factor for size in made[0].buckets.sizes for value in size):
            raise ValueError(f"the side must be a multiple of {factor} for this model's autoencoder; got {s.side}")

    if s.model is not None:
        check(describe(ModelSource(s.model)))  # before the weights are read
    pipe = sdjax.load(s.model, dtype=s.dtype)
    check(pipe.config)
    pictures = made[0]
    return LatentWriter(
        pipe, pictures, os.fspath(s.out), kept, batch_size=s.batch_size, bad_limit=s.bad_limit,
        say=_say,
    )  # fmt: skip


def _say(text: str) -> None:
    from tqdm.auto import tqdm

    tqdm.write(text, file=sys.stderr)


def parse_share(text: str) -> tuple[int, int]:
    """Returns (i, n) of "i/n". Raises ValueError unless i is from 0 to n - 1."""
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        i, n = -1, 0
    if not 0 <= i < n:
        raise ValueError(f"--shard must be I/N with I from 0 to N - 1, such as 0/4; got {text!r}")
    return i, n
