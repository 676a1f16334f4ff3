"""From a file, a folder, a run or a hub repository to a pipeline."""
