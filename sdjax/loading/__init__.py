"""Loads pipelines from files, folders, training runs and hub repositories."""
