"""Training objectives, and their conditioning, masks and random draws."""
