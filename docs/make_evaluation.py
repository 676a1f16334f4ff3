"""Makes the figure of docs/evaluation.md: the built-in model over guidance scales, by two samplers.

    pip install '.[figures]'
    python docs/make_evaluation.py

It goes on where it was interrupted, and takes some minutes on two cores.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from sdjax.scripts.main import main

DOCS = Path(__file__).parent
OUT = Path("outputs/evaluation-of-docs")
ARGUMENTS = [
    "evaluate", "--count", "64", "--set", "steps=20", "--sweep", "scale=1.5,2,3,4,5,6,7,8",
    "--sweep", "sampler=plms,ddim", "--batch", "16", "--out", str(OUT),
]  # fmt: skip

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    status = main(ARGUMENTS)
    if status == 0:
        figure = Image.open(OUT / "figure.png").convert("RGB").quantize(32)
        figure.save(DOCS / "images" / "evaluation.png", optimize=True)
    sys.exit(status)
