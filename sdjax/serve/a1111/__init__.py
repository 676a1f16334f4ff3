"""A1111's interface, by its paths, fields and defaults, so that its clients work here.

Source: its published OpenAPI description, and what its clients send and read.
"""
