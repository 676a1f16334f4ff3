"""`python -m sdjax`: the `sdjax` command."""

import sys

from sdjax.scripts.main import main

if __name__ == "__main__":
    sys.exit(main())
