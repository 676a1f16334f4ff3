"""Models as programs in files: `write` makes them, `run` runs them without the code of any network."""
