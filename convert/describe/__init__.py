"""Descriptions of models from their files."""
