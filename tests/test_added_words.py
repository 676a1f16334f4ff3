"""Words with tokens of their own."""

from sdjax.prompts.added_words import AddedWords
from sdjax.prompts.tokenizer import CLIP_TOKENS, Tokenizer


def test_words_are_found_in_texts_and_other_words_are_not_split():
    plain, words = Tokenizer(), AddedWords.to(Tokenizer(), {"<cat>": 2, "sks": 1, "<cat>s": 1})
    a, photo = plain.encode("a"), plain.encode("photo of")
    assert words.encode("a <CAT>, photo of sks") == [*a, CLIP_TOKENS, CLIP_TOKENS + 1, *plain.encode(","), *photo,
                                                     CLIP_TOKENS + 2]  # fmt: skip
    assert words.encode("<cat>s") == [CLIP_TOKENS + 3]
    assert words.encode("masks") == plain.encode("masks")
    row = words(["photo of sks"], length=5, pad_token_id=0)[0].tolist()
    assert row == [plain.bos_token_id, *photo, CLIP_TOKENS + 2, plain.eos_token_id]
    assert words("a", length=5, pad_token_id=0)[0].tolist() == [plain.bos_token_id, *a, plain.eos_token_id, 0, 0]
    assert words.cut("photo of sks, a <cat> here", length=5) == ", a <cat> here"
    assert words.cut("photo of a <cat> here", length=6) == "<cat> here"
    assert words.cut("photo of sks", length=5) == ""
    assert words.words([CLIP_TOKENS + 1, *a]) == ["<cat> ", "a "]
