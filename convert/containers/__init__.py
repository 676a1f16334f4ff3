"""Containers: any file as names and arrays, never executed."""
