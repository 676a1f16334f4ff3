"""Styles and wildcards: additions to prompts and random choices from files, which are hostile."""

import os
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.checks.notes import Note
from sdjax.prompts import wildcards as module
from sdjax.prompts.styles import Style, apply_styles, choose_styles, read_styles
from sdjax.prompts.wildcards import Wildcards, expand
from sdjax.tasks.prompting import Typed, final_texts


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "cards"
    (inside / "animals").mkdir(parents=True)
    (inside / "colour.txt").write_text("red\n\n# a remark\nblue\n")
    (inside / "animals" / "cats.txt").write_text("a {small|big} cat\na __colour__ cat\n")
    (inside / "loop.txt").write_text("x __loop__ __loop__\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    return inside


def test_choices_depend_on_the_seed_alone(folder) -> None:
    cards = Wildcards(folder)
    text = "{a|b|c} __animals/cats__ in {one|{two|three}} __col*__"
    made = [expand(text, seed, cards) for seed in range(40)]
    assert made == [expand(text, seed, cards) for seed in range(40)]
    assert len(set(made)) > 10
    assert not any(mark in one for one in made for mark in "{}|_#")
    assert {one.split()[0] for one in made} == {"a", "b", "c"}
    assert {word for one in made for word in one.split()} >= {"three", "small", "red", "blue"}


def test_text_without_choices_stays_as_it_is() -> None:
    for text in "a {word} b", "a | b", "[a|b]", "{", "}", "{a|b", "a}b|c{", "snake__case__name", r"\__name__":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert expand(text, 1) == text
    assert expand(r"\{a|b\}", 1) == "{a|b}"


def test_names_never_leave_the_folder(folder) -> None:
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    cards = Wildcards(folder)
    for name in "../secret", "link", "/etc/passwd", "animals/../../secret", "..\\secret", str(folder.parent / "secret"):
        with pytest.warns(Note) if "\\" not in name and not name.startswith((".", "/")) else warnings.catch_warnings():
            assert "secret\n" not in expand(f"a __{name}__", 0, cards)
            assert expand(f"a __{name}__", 0, cards) == f"a __{name}__"


def test_wildcards_that_name_themselves_come_to_an_end(folder) -> None:
    with pytest.warns(Note, match="more than 1000 random choices"):
        made = expand("__loop__", 0, Wildcards(folder))
    assert len(made) < module.MAX_LENGTH
    with pytest.warns(Note, match="more than 1000 random choices"):
        expand("{a|b}" * 1001, 0)


def test_files_are_bounded(folder, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 5)
    with pytest.raises(ValueError, match="the most is 5"):
        expand("__colour__", 0, Wildcards(folder))
    monkeypatch.setattr(module, "MAX_FILES", 1)
    with pytest.raises(ValueError, match="has more than 1 files"):
        Wildcards(folder)
    with pytest.raises(ValueError, match="does not exist"):
        Wildcards(folder / "none")


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab{}|_\\ ") | st.characters(), max_size=60), st.integers(0, 2**65))
def test_nothing_raises(text: str, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert isinstance(expand(text, seed), str)


def test_styles_are_added_as_a1111_adds_them(tmp_path) -> None:
    path = tmp_path / "styles.csv"
    path.write_text(
        '\ufeffname,prompt,negative_prompt\nink,"ink drawing, {prompt}, lines",blurry\nold,"an old, torn photo",\n'
    )
    assert list(read_styles(path)) == ["ink", "old"]
    styles = choose_styles(["ink", "old"], path)
    assert apply_styles("a cat", "red ", styles) == ("ink drawing, a cat, lines, an old, torn photo", "red, blurry")
    assert apply_styles("", "", [Style("x", "")]) == ("x", "")
    with pytest.raises(ValueError, match=r"no style 'inc'; it has ink"):
        choose_styles(["inc"], path)


def test_files_that_are_no_styles_are_refused_by_a_sentence(tmp_path) -> None:
    path = tmp_path / "styles.csv"
    with pytest.raises(ValueError, match="cannot be read"):
        read_styles(path)
    for data in b"", b"a,b\n1,2\n", b"name,prompt\n", b"\xff\xfe\xff", b"\0" * 50, b'name,prompt\n"' + b"x" * 200_000:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="styles file"):
            read_styles(path)
    os.truncate(path, 5 * 2**20)
    with pytest.raises(ValueError, match="the most is"):
        read_styles(path)


def test_styles_come_before_choices_and_plain_prompts_have_none(tmp_path) -> None:
    path = tmp_path / "styles.csv"
    path.write_text("name,prompt,negative_prompt\nmany,{prompt} {x|x},{y|y}\n")
    typed = Typed("a {b|b}", styles=("many",), styles_file=str(path))
    assert final_texts([typed, typed._replace(prompt_syntax="plain")]) == [("a b x", "y"), ("a {b|b} {x|x}", "{y|y}")]
    one, two = final_texts(
        [typed._replace(prompt="{1|2|3|4|5|6|7|8|9}" * 9, seed=seed, wildcard_seed=3) for seed in (1, 2)]
    )
    assert one == two


def test_styles_that_multiply_a_prompt_and_files_without_end_are_refused() -> None:
    many = Style("{prompt} " * 1000, "")
    assert len(apply_styles("a", "", [many])[0]) == 2000
    with pytest.raises(ValueError, match="with its styles the prompt has more than 100000 characters"):
        apply_styles("a", "", [many] * 9)
    with pytest.raises(ValueError, match="cannot be read: embedded null byte"):
        read_styles("a\0b")
    if os.path.exists("/dev/zero"):
        with pytest.raises(ValueError, match="the styles file /dev/zero has too many bytes"):
            read_styles("/dev/zero")
