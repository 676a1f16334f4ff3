"""Names of tensors in every layout, as tables."""
