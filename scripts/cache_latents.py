"""`sdjax cache-latents`: the latents and texts of a training set, computed once (sdjax.train.data.cache_latents)."""

import sys

from sdjax.scripts.main import main
from sdjax.train.data.cache_latents import IF_OUT_OF_MEMORY, make_parser, run

__all__ = ["IF_OUT_OF_MEMORY", "make_parser", "run"]

if __name__ == "__main__":
    sys.exit(main(["cache-latents", *sys.argv[1:]]))
