"""Makes the picture of docs/embeddings.md: a new word whose vector goes from that of one word to that of another.

    python docs/make_embeddings.py

Writes docs/sheets/embeddings.png. The built-in model draws it, on two seeds; nothing is chosen.
"""

import argparse
from pathlib import Path

import numpy as np
from make_pictures import of_64_colours
from PIL import Image

import sdjax
from sdjax.adapters.attached import table_of
from sdjax.loading.trainable import by_path
from sdjax.pictures.plot import plot

FILE = Path(__file__).parent / "sheets" / "embeddings.png"
ENDS = "cat", "fox"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SEEDS = (0, 1)


def main() -> None:
    """Makes and writes the grid, in 64 colours. All pictures share one program."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    pipe = sdjax.load()
    leaves = by_path({"text": pipe.params["text"]})
    table = np.asarray(leaves[table_of(leaves)], np.float32)
    first, second = (table[pipe.tokenizer.encode(word)] for word in ENDS)
    requests = [
        sdjax.Request(
            "a catfox on a blue background",
            seed=seed,
            num_steps=25,
            word_embeddings=[("catfox", (1 - share) * first + share * second)],
        )
        for seed in SEEDS
        for share in SHARES
    ]
    pictures = list(sdjax.generate(pipe, requests))
    labels = [[f"{1 - share:.0%} cat, {share:.0%} fox" for share in SHARES], [f"seed {seed}" for seed in SEEDS]]
    FILE.write_bytes(of_64_colours(Image.fromarray(plot(pictures, labels))))


if __name__ == "__main__":
    main()
