"""Files: on this computer and in buckets; addresses; text that users write."""
