"""A server that makes pictures: its engine, the folders of models, and what clients speak to."""
