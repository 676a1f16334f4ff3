"""A loaded model and its compiled primitives."""
