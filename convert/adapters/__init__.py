"""Files of adapters: the LoRA family in the names that trainers and other tools use."""
