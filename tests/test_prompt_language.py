"""The language of prompts: against what A1111 1.10.1 and ComfyUI 0.3.64 make of the same texts, and against anything.

golden/prompts.json.gz holds texts and what these programs return for them; ids and weights of chunks are without start,
end and padding.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.config import TextConfig
from sdjax.prompts.attention import Piece, comfyui_pieces, web_ui_pieces
from sdjax.prompts.chunks import Encoder
from sdjax.prompts.clip_skip import layers_used, read_clip_skip
from sdjax.prompts.emphasis import RULES, Parts, lowered, without
from sdjax.prompts.language import SYNTAXES, Language
from sdjax.prompts.padding import PADDINGS, pad_contexts
from sdjax.prompts.schedule import schedule, split_and, text_at
from sdjax.prompts.tokenizer import Tokenizer

CASES = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "prompts.json.gz").read_bytes()))
V1, V2 = Encoder(Tokenizer()), Encoder(Tokenizer(), pad=0)


def of(kind: str) -> list[dict]:
    return [case for case in CASES if case["kind"] == kind]


def assert_pieces(got, want) -> None:
    assert [text for text, _ in got] == [text for text, _ in want]
    np.testing.assert_allclose([w for _, w in got], [w for _, w in want], rtol=1e-12)


def test_weights_are_read_as_a1111_and_comfyui_read_them() -> None:
    for case in of("a1111_attention"):
        assert_pieces(web_ui_pieces(case["text"]), case["want"])
    for case in of("comfyui_weights"):
        assert_pieces(comfyui_pieces(case["text"]), case["want"])


def test_and_is_read_as_a1111_reads_it() -> None:
    for case in of("a1111_and"):
        assert_pieces(split_and(case["text"]), case["want"])


def test_changes_while_sampling_are_those_of_a1111() -> None:
    for case in of("a1111_schedule"):
        steps, hires, old = case["steps"], case["hires_steps"], case["use_old"]
        second = hires is not None and not old
        got = schedule(case["text"], hires if second else steps, after=steps if second else None, old=old)
        assert [list(one) for one in got] == case["want"], case
    for case in of("a1111_prompt_at"):
        texts = schedule(case["text"], case["steps"])
        assert [text_at(texts, call) for call in range(len(case["want"]))] == case["want"]


def test_chunks_are_cut_as_a1111_and_comfyui_cut_them() -> None:
    for case in [*of("a1111_chunks"), *of("comfyui_chunks")]:
        encoder = V1 if case["family"] == "v1" else V2
        if case["kind"] == "a1111_chunks":
            emphasis = "none" if case["emphasis"] == "None" else "original"
            language = Language("weights", emphasis, case["comma_padding_backtrack"])
        else:
            language = Language("comfyui")
        chunks = language.chunks(case["text"], encoder)
        assert [list(chunk.ids[1 : chunk.ids.index(49407)]) for chunk in chunks] == [ids for ids, _ in case["want"]]
        for chunk, (ids, weights) in zip(chunks, case["want"]):
            assert len(chunk.ids) == len(chunk.weights) == 77
            assert set(chunk.ids[len(ids) + 2 :]) <= {encoder.pad}
            np.testing.assert_allclose(chunk.weights[1 : len(ids) + 1], weights or [1] * len(ids), rtol=1e-6)


def test_a_number_that_is_none_is_text() -> None:
    assert web_ui_pieces("(a:1.2.3)") == [Piece("a:1.2.3", 1.1)]  # A1111 raises
    assert web_ui_pieces("(a:" + "9" * 400 + ")")[0].weight == 1.1
    assert comfyui_pieces("(a:nan)") == [Piece("a:nan", 1.1)]


def test_a_prompt_without_special_characters_is_one_chunk_with_today_s_ids() -> None:
    for text in "a photo of a cat, 1girl, don't", "", "naïve café", "x " * 75:
        for encoder in V1, V2:
            row = tuple(encoder.tokenizer(text, pad_token_id=encoder.pad)[0].tolist())
            for syntax in SYNTAXES:
                (chunk,) = Language(syntax).chunks(text, encoder)
                assert chunk.ids == row
                assert set(chunk.weights) == {1.0}


ODD = st.text(st.sampled_from("ab ,()[]:|\\{}_.-+019\n\t\"'é🐱") | st.characters(), max_size=80)
WORDS = st.lists(
    st.sampled_from(
        ["AND", "BREAK", "a cat", ":1.2", "(", ")", "[", "]", "|", ":", "0.5", "\\", " ", "\n", "word " * 40]
    ),
    max_size=20,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(ODD | WORDS, st.integers(1, 12))
def test_nothing_that_a_user_types_raises(text: str, steps: int) -> None:
    for syntax in SYNTAXES:
        language = Language(syntax)
        for part, weight in language.joined(text):
            assert np.isfinite(weight)
            texts = language.schedule(part, steps)
            assert [end for end, _ in texts] == sorted({end for end, _ in texts})
            assert texts[-1][0] == steps
            for _, one in texts[:3]:
                chunks = language.chunks(one, V1)
                assert chunks
                assert all(len(chunk.ids) == len(chunk.weights) == 77 for chunk in chunks)
                assert all(0 <= token < 49408 for chunk in chunks for token in chunk.ids)


@pytest.mark.parametrize("text", ["(" * 5_000, "[a:" * 1_000 + "b:0.5]" * 1_000, " " * 50_000, "((a:1 BREAK" * 1_000])
def test_long_and_deep_prompts_take_no_time(text: str) -> None:
    for syntax in "weights", "comfyui":
        language = Language(syntax)
        for part, _ in language.joined(text):
            for _, one in language.schedule(part, 10):
                language.pieces(one)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"prompt_syntax is one of weights, comfyui, plain; got 'a1111'"):
        Language("a1111")
    with pytest.raises(ValueError, match=r"emphasis is one of original, .*; got 'loud'"):
        Language("weights", "loud")
    with pytest.raises(ValueError, match="emphasis has no effect with prompt_syntax plain"):
        Language("plain", "original")


def parts(weights, seed: int = 0, **more) -> Parts:
    z, empty = np.random.default_rng(seed).normal(1, 1, (2, len(weights), 4)).astype(np.float32)
    return Parts(z, np.asarray(weights, np.float32), empty, **more)


def test_emphasis_follows_its_formulas() -> None:
    given_parts = parts([1, 2, 0.5])
    z, w, empty = given_parts.encoded, given_parts.weights[:, None], given_parts.empty
    np.testing.assert_allclose(RULES["no_norm"].apply(given_parts), z * w)
    original = RULES["original"].apply(given_parts)
    np.testing.assert_allclose(original.mean(), z.mean(), rtol=1e-5)
    np.testing.assert_allclose(original / (z * w), (original / (z * w)).mean(), rtol=1e-4)  # one factor
    np.testing.assert_allclose(RULES["comfyui"].apply(given_parts), empty + w * (z - empty), atol=1e-6)
    assert RULES["ignore"].apply(given_parts) is z


def test_compel_s_weight_0_is_the_prompt_without_the_word_and_1_is_with_it() -> None:
    other = np.zeros((3, 4), np.float32)
    for weight in 1e-12, 0.5, 1 - 1e-9:
        made = parts([1, weight, 1], without=(other,), lowered=(weight,))
        got, z = RULES["compel"].apply(made), made.encoded
        share = {1e-12: 0.0, 0.5: 0.5}.get(weight, 1.0)
        np.testing.assert_allclose(got, share * z, atol=1e-5)
    assert np.all(RULES["compel"].apply(parts([1, 1, 2])) == RULES["comfyui"].apply(parts([1, 1, 2])))


def test_lowered_pieces_are_left_out_one_by_one() -> None:
    (chunk,) = Language("weights").chunks("a (red:0.5) big (apple pie:0.8)", V1)
    runs = lowered(chunk)
    assert [weight for weight, _, _ in runs] == [0.5, 0.8]
    texts = [V1.tokenizer.words(without(chunk, start, end, V1).ids[1:5]) for _, start, end in runs]
    assert [text[:3] for text in texts] == [["a ", "big ", "apple "], ["a ", "red ", "big "]]


def test_clip_skip_counts_as_each_tool_does() -> None:
    v1, v2 = TextConfig(), TextConfig(layers=23, activation="gelu", pad_token_id=0)
    assert [layers_used(v1, skip) for skip in (None, 1, 2, -1, -2, "diffusers:1", "a1111:3")] == [
        12,
        12,
        11,
        12,
        11,
        11,
        10,
    ]
    assert [layers_used(v2, skip) for skip in (None, 1, -1, -2, -3, "diffusers:1")] == [23, 23, 24, 23, 22, 22]
    with pytest.warns(UserWarning, match="no effect on Stable Diffusion 2"):
        assert layers_used(v2, 2) == 23
    for wrong in 0, "1.5", "comfyui:1", "forge:2", True, None, [], "a1111:0", "::", 1.0:
        with pytest.raises(ValueError, match="clip_skip is 1, 2"):
            read_clip_skip(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaves none of the text encoder's 12 blocks"):
        layers_used(v1, 13)


def test_contexts_become_equal_as_each_tool_does_it() -> None:
    empty = np.zeros((2, 1))
    short, long = np.arange(2.0).reshape(2, 1), np.arange(10.0, 16).reshape(6, 1)
    assert [[len(a) for a in pad_contexts(how, [short], long, empty)[0]] for how in PADDINGS] == [
        [2],
        [2],
        [6],
        [2],
        [6],
    ]
    (cond,), uncond = pad_contexts("a1111_empty", [short], long, empty)
    assert cond[:, 0].tolist() == [0, 1, 0, 0, 0, 0]
    (cond,), uncond = pad_contexts("a1111_v0", [long], short, empty)
    assert uncond[:, 0].tolist() == [0, 1, 1, 1, 1, 1]
    assert pad_contexts("a1111_v0", [short], long, empty)[1][:, 0].tolist() == [10, 11]
    (cond,), uncond = pad_contexts("comfyui", [short], np.zeros((3, 1)), empty)
    assert cond[:, 0].tolist() == [0, 1] * 3
    assert len(uncond) == 6
    (cond,), uncond = pad_contexts("comfyui", [short], np.zeros((9, 1)), empty)
    assert (len(cond), len(uncond)) == (2, 9)  # more than four repetitions: two calls there, two lengths here
    joined, _ = pad_contexts("a1111", [short, long], short, empty)
    assert joined[0][:, 0].tolist() == [0, 1, 1, 1, 1, 1]
