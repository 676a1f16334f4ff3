"""`python -m sdjax.convert IN OUT`: the same as `sdjax convert IN OUT`."""

import sys

try:
    from sdjax.scripts.main import main
except ImportError as error:
    sys.exit(f"sdjax must be installed first, by `make run` or `pip install .` in its folder ({error})")

sys.exit(main(["convert", *sys.argv[1:]]))
