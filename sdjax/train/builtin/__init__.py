"""Training and judging the small model inside the package."""
