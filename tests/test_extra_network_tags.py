"""Tags of extra networks in prompts."""

import pytest

from sdjax.prompts.extra_networks import read_tags


@pytest.mark.parametrize(
    ("text", "without", "tags"),
    [
        ("a cat", "a cat", []),
        ("a <lora:b:0.8> cat", "a  cat", [("lora", "b", ("0.8",), {})]),
        (
            "<lora:b:1:0.5:lbw=1,0,1><lyco:c>",
            "",
            [("lora", "b", ("1", "0.5"), {"lbw": "1,0,1"}), ("lyco", "c", (), {})],
        ),
        ("[<hypernet:h x:.5>::0.6]", "[::0.6]", [("hypernet", "h x", (".5",), {})]),
        ("<cat>, <3 <lora:> <other:a:1> <lora:a", "<cat>, <3 <lora:> <other:a:1> <lora:a", []),
        ("<<lora:a:1>>", "<>", [("lora", "a", ("1",), {})]),
    ],
)
def test_tags_are_read_and_removed(text, without, tags):
    read = read_tags(text)
    assert read.text == without
    assert [tag[:4] for tag in read.tags] == tags
    assert all(text[tag.start] == "<" and text[tag.end - 1] == ">" for tag in read.tags)


def test_numbers_of_tags():
    (tag,) = read_tags("<lora:a:0.5::x:nan>").tags
    assert (tag.number(0, 1.0), tag.number(1, 2.0), tag.number(9, 3.0)) == (0.5, 2.0, 3.0)
    for at in 2, 3:
        with pytest.raises(ValueError, match="number as weight"):
            tag.number(at, 1.0)


def test_reading_tags_takes_linear_time():
    assert read_tags("<lora:" * 100_000).tags == ()
    assert read_tags("<a" * 100_000).tags == ()
