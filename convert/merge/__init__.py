"""Merging checkpoints: a table of methods, and mixtures of files that are computed a tensor at a time."""
