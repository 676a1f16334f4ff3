"""Loaded models and the compiled programs that run them."""
