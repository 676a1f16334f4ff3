"""Measuring models: speed and quality."""
