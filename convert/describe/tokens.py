"""Whether a tokenizer and a text encoder belong together: no token may lie outside the encoder's embedding."""

from collections.abc import Callable
from typing import Any

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


def choose_tokenizer(model: Any, vocab: Tokenizer | None) -> Tokenizer:
    """Returns the tokenizer of a model, BERT's with the vocabulary of `vocab`.

    Raises ValueError if there should be such a one and is none, or should be none and is one, or it is another one.
    """
    text = model.config.text
    if text.kind != "bert":
        if vocab is not None:
            raise ValueError(f"a vocabulary was given for a model that has its own ({model.config.name}); leave it out")
        return model.tokenizer()
    tokenizer = model.own_tokenizer if vocab is None else vocab
    if tokenizer is None:
        raise ValueError(
            "this model's text encoder reads BERT's tokens, and its checkpoint holds no vocabulary: give the vocab.txt "
            "of bert-base-uncased by vocab= (--vocab on the command line)"
        )
    if tokenizer.vocab_size != text.vocab_size:
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} tokens and the text encoder {text.vocab_size}; "
            "bert-base-uncased's vocab.txt is wanted"
        )
    return tokenizer
