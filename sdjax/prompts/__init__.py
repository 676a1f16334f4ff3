"""Prompts: tokenizers, and checks of their syntax and length."""
