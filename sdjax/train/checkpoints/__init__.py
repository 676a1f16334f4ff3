"""The folder of a run: its checkpoints, manifests, settings and exports."""
