"""Plans a run before it starts: memory, operations, a summary."""
