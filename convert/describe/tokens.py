"""Checks that a tokenizer fits a text encoder: no token may be outside the encoder's embedding."""

from collections.abc import Callable

from sdjax.config import TextConfig
from sdjax.prompts.tokenizer import Tokenizer


def check_tokens(tokenizer: Tokenizer, text: TextConfig, error: Callable[[str], Exception]) -> None:
    """Raises the error of a reason if the tokenizer has a token for which the text encoder has no embedding."""
    if tokenizer.largest_id >= text.vocab_size:
        raise error(
            f"its tokenizer has tokens up to number {tokenizer.largest_id}, and its text encoder embeddings of "
            f"{text.vocab_size} tokens, up to number {text.vocab_size - 1}: put the tokenizer there that the text "
            "encoder was trained with, or the text encoder with the embeddings of the tokens that were added"
        )
