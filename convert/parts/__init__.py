"""Single networks from files of their own."""
