"""`python -m sdjax.train.builtin`: trains the built-in model (`make train-builtin`)."""

from sdjax.train.builtin.training import main

main()
