"""Files on this computer and in buckets, their addresses, and text files that users write."""
