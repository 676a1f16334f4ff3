"""Training and evaluation of the small model inside the package."""
