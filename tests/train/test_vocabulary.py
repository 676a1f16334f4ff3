"""A vocabulary learned from captions."""

import pytest

from sdjax.prompts.tokenizer import Tokenizer
from sdjax.train.builtin import vocabulary


def test_the_likeliest_pair_is_merged_first():
    # The example of Sennrich et al. 2016, section 3.2, with the end of a word written on its last letter
    captions = ["low"] * 5 + ["lowest"] * 2 + ["newer"] * 6 + ["wider"] * 3
    files = dict(vocabulary.learn(captions, 518).files)
    merges = files["merges.txt"].decode().split("\n")[1:-1]
    assert merges[0] == "e r</w>"  # nine words end in it, more than any other pair
    assert merges[1:4] == ["l o", "e w", "ew er</w>"]  # then 7, and of those with 6 the ones that sort first


def test_words_of_the_captions_become_single_tokens_and_others_still_have_tokens(tmp_path):
    learned = vocabulary.learn(["a red apple on a blue background"] * 3, 600)
    learned.save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.encode("A blue apple  on a red background")) == 7
    assert len(tokenizer.encode("caf\u00e9")) == 5  # four letters, one of them two bytes
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (598, 599)
    ids = tokenizer(["a red apple"], length=8)
    assert ids.shape == (1, 8)
    assert ids.max() < 600


def test_the_same_captions_give_the_same_vocabulary_in_any_order():
    captions = ["a cat and a rocket", "a rocket", "an owl on a pink background"]
    assert vocabulary.learn(captions, 560).files == vocabulary.learn(captions[::-1], 560).files


def test_a_vocabulary_has_room_for_the_bytes():
    with pytest.raises(ValueError, match="at least 514 tokens, got vocab_size = 300"):
        vocabulary.learn(["a cat"], 300)
