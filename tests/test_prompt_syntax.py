"""Prompts of other tools are found, and text that only looks alike is not."""

import time
import warnings

import pytest

import sdjax
from sdjax.checks.notes import Note
from sdjax.prompts.syntax import check_lengths, check_prompts, foreign_syntax
from sdjax.scripts.main import main

import models

FOREIGN = {
    "learned_embeds.bin, a cat": ["learned_embeds.bin"],
    "a cat, (8k)": ["(8k)"],
    "a cat ADDCOL a dog": ["ADDCOL"],
    "a (cat:1.3) on a mat": ["(cat:1.3)"],
    "a ( red cat : 0.8 ), b": ["( red cat : 0.8 )"],
    "((a))": ["((a))"],
    "(((masterpiece))), a cat": ["((masterpiece))"],
    "(masterpiece), a cat": ["(masterpiece)"],
    "a cat, (best quality)": ["(best quality)"],
    "a (red) cat": ["(red)"],
    "[a]": ["[a]"],
    "a [cat|dog] runs": ["[cat|dog]"],
    "[cat:dog:0.5]": ["[cat:dog:0.5]"],
    "[[blurry]]": ["[blurry]"],
    "a cat BREAK a dog": ["BREAK"],
    "a cat AND a dog": ["AND"],
    "a cat <lora:add_detail:0.8>": ["<lora:add_detail:0.8>"],
    "<lyco:x:1> <hypernet:y:0.5>": ["<lyco:x:1>", "<hypernet:y:0.5>"],
    "embedding:easy, a cat": ["embedding:easy"],
    "bad-hands.pt, a cat": ["bad-hands.pt"],
    "style.safetensors": ["style.safetensors"],
    "EasyNegative, blurry": ["EasyNegative"],
    "{red|blue} cat": ["{red|blue}"],
    "{{cat}}": ["{cat}"],
    "a __colour__ cat": ["__colour__"],
    "a cat++ and": ["cat++"],
    "(cat)1.2": ["(cat)1.2"],
    "(a cat)++": ["(a cat)++"],
    "blurry--": ["blurry--"],
    '("a cat", "a dog").and()': None,
    "a cat::2 a dog::1": None,
    "a cat --ar 16:9": ["--ar"],
}
PLAIN = [
    "a cat",
    "a smiley :)",
    "sad :( and happy :) people",
    "a face (^_^) there",
    "\u00af\\_(\u30c4)_/\u00af",
    "I <3 cats",
    "(c) 2020 somebody",
    "photo (c)2020",
    "a house (1984)",
    "a cat (black)",
    "Mona Lisa (oil on canvas), 1503",
    "a clock (at 10:30)",
    "a screen (16:9)",
    "as said [1], and [2020]",
    "he sayed [sic] so",
    "a \\(cat\\) and \\[dog\\]",
    "a book on C++",
    "a sign that says \"BREAK\"",
    "ROCK AND ROLL",
    "TAKE A BREAK",
    "breakfast and sandwich",
    "a well-known cat -- black",
    "a photo of <sks> dog",
    "f(x) = sin(x)",
    "24 pt letters, file.png",
    "a cat; a dog: both, 50% / 2 = 1",
    "std::vector",
    "an_underscored_word",
    "cat(s) and dog(s)",
    "a man (left) and a woman (right)",
    "a cat (felis catus) in a tree",
    "",
]  # fmt: skip


@pytest.mark.parametrize("prompt", FOREIGN)
def test_syntax_of_other_tools_is_found(prompt) -> None:
    found = foreign_syntax(prompt)
    assert found
    if FOREIGN[prompt] is not None:
        assert found == FOREIGN[prompt]


@pytest.mark.parametrize("prompt", PLAIN)
def test_text_that_only_looks_alike_is_left_alone(prompt) -> None:
    assert foreign_syntax(prompt) == []


def test_what_a_syntax_understands_is_not_foreign_to_it() -> None:
    text = "((a)), (b:1.2) [cat:dog:0.5] BREAK {x|y} __animal__, word++ <lora:z:1>"
    assert foreign_syntax(text, "weights") == ["word++", "<lora:z:1>"]
    assert foreign_syntax(text, "comfyui") == ["[cat:dog:0.5]", "BREAK", "word++", "<lora:z:1>"]


def test_it_is_said_once_of_all_prompts() -> None:
    with pytest.warns(Note) as caught:
        check_prompts(["(a cat:1.3)", "(a cat:1.3)", "[b]", "BREAK it", "{c|d}"])
    (one,) = caught
    assert '"(a cat:1.3)", "[b]", "BREAK" and 1 more' in str(one.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_prompts(["a cat :)"])


def test_what_is_cut_is_named() -> None:
    pipe = models.pipeline()
    with pytest.warns(Note) as caught:
        check_lengths(pipe.tokenizer, ["cat " * 80 + "dog", "cat"], 77)
    (one,) = caught
    assert "more than 75 tokens" in str(one.message)
    assert str(one.message).endswith('dog"')


def test_every_task_says_both_of_both_prompts() -> None:
    with pytest.warns(Note) as caught:
        sdjax.text_to_image(models.pipeline(), ["cat " * 80, "a [dog]"], negative_prompt="(blurry:1.4)", num_steps=1,
                            prompt_syntax="plain")  # fmt: skip
    texts = [str(one.message) for one in caught]
    assert len(texts) == 2
    assert sum('"(blurry:1.4)", "[dog]"' in text for text in texts) == 1
    assert sum("left out is" in text for text in texts) == 1


@pytest.mark.parametrize("part", ["(", "(a", "(a)", "[a", "(a:", "a-", "((a ", "a", ":(", "_"])
def test_no_prompt_takes_long(part) -> None:
    start = time.process_time()
    foreign_syntax(part * 50_000)
    assert time.process_time() - start < 30  # 0.01 was measured; a square takes minutes


@pytest.mark.slow
def test_the_command_line_says_it_once_of_all_batches(tmp_path, capsys) -> None:
    (tmp_path / "prompts.txt").write_text("a ((cat))\na [dog]\n")
    flags = f"--from-file {tmp_path}/prompts.txt --n_samples 1 --n_iter 1 --steps 1 --outdir {tmp_path}"
    flags += " --prompt-syntax plain"
    assert main(["txt2img", *flags.split(), "--ckpt", "builtin"]) == 0
    assert capsys.readouterr().err.count("another tool's syntax") == 1
