"""`python -m sdjax.convert IN OUT`: the same as `sdjax convert IN OUT`."""

import sys

from sdjax.scripts.main import main

sys.exit(main(["convert", *sys.argv[1:]]))
