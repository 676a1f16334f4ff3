"""Finds the configurations of models from their files."""
