"""`sdjax cache-latents`: the latents and texts of a training set, computed once (sdjax.train.data.cache_latents)."""

import argparse
import sys

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.train.data import cache_latents
from sdjax.train.data.cache_latents import IF_OUT_OF_MEMORY, run

__all__ = ["IF_OUT_OF_MEMORY", "make_parser", "run"]


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax cache-latents`."""
    return cache_latents.make_parser(EXIT_STATUS)


if __name__ == "__main__":
    sys.exit(main(["cache-latents", *sys.argv[1:]]))
