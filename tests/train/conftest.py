"""Fixtures for tests of the built-in model's training."""

import pytest

from sdjax.train.builtin import emoji


@pytest.fixture(scope="session")
def sprites():
    """Returns the emoji at 64 x 64 pixels; skips without the font (apt install fonts-noto-color-emoji)."""
    try:
        return emoji.Sprites.render(64)
    except FileNotFoundError as error:
        pytest.skip(str(error))
