"""Training and evaluation of the small built-in model."""
