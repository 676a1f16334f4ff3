import math

import numpy as np
import pytest

from sdjax.train.data.filters import FilterError, select
from sdjax.train.data.table import Table

ROWS = [
    {"aesthetic": 6.0, "width": 512, "height": 768, "pwatermark": 0.1, "similarity": 0.35, "caption": "A red Cat"},
    {"aesthetic": 4.0, "width": 1024, "height": 300, "pwatermark": 0.9, "similarity": 0.2, "caption": "dog", "nsfw": 1},
    {"width": 640, "height": 640, "pwatermark": None, "similarity": 0.31, "caption": "", "nsfw": False},
    {"aesthetic": 5.0, "width": 100, "height": 0, "pwatermark": 0.5, "caption": None},
]  # fmt: skip


def python(expression):
    """What Python itself makes of it for rows that have all values; a row that lacks one is not taken."""
    names = {"min": min, "max": max, "abs": abs, "len": len, "lower": str.lower}
    taken = []
    for row in ROWS:
        try:
            taken.append(bool(eval(expression, names, {k: v for k, v in row.items() if v is not None})))
        except (NameError, ZeroDivisionError):
            taken.append(False)
    return taken


@pytest.mark.parametrize(
    "expression",
    [
        "aesthetic > 5",
        "min(width, height) >= 512",
        "pwatermark < 0.5 and similarity > 0.3",
        "512 <= width <= 1024",
        "width / height < 2",
        "width * height >= 512 * 512 - 1",
        "-width < -600",
        "abs(width - height) <= 256",
        "max(width, height, 1000) == 1000",
        "len(caption) > 3",
        "'cat' in lower(caption)",
        "caption in ('dog', 'A red Cat')",
        "width not in [512, 640]",
        "not width > 600",
        "not (similarity > 0.3)",
        "nsfw == False",
        "nsfw",
        "caption != 'dog' and width > 1",
        "1 / height > 0",
    ],
)
def test_a_filter_takes_what_python_takes_of_rows_without_gaps(expression):
    assert select(expression, Table.from_rows(ROWS)).tolist() == python(expression)


@pytest.mark.parametrize(
    ("expression", "taken"),
    [
        ("aesthetic > 4.5", [True, False, False, True]),
        ("not aesthetic > 4.5", [False, True, False, False]),  # the third stays unknown
        ("aesthetic == aesthetic", [True, True, False, True]),
        ("aesthetic is None", [False, False, True, False]),
        ("aesthetic is None or aesthetic > 4.5", [True, False, True, True]),
        ("aesthetic is not None and width > 0", [True, True, False, True]),
        ("aesthetic > 100 or width > 0", [True, True, True, True]),  # unknown or true
        ("not (aesthetic > 100 and width < 0)", [True, True, True, True]),  # not (unknown and false)
        ("0 < aesthetic < 5 or False", [False, True, False, False]),
        ("pwatermark in (0.1, 0.9)", [True, True, False, False]),
        ("pwatermark not in (0.1, 0.9)", [False, False, False, True]),
        ("len(caption) == 0", [False, False, True, False]),
        ("width < aesthetic < 0", [False, False, False, False]),
        ("not width < aesthetic < 0", [True, True, False, True]),
    ],
)
def test_missing_values_leave_an_expression_unknown_unless_the_rest_decides(expression, taken):
    assert select(expression, Table.from_rows(ROWS)).tolist() == taken


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("aestetic > 5", r"names 'aestetic' \(did you mean .aesthetic.\?\); the columns are aesthetic, caption"),
        ("caption.upper()", "holds|calls"),
        ("__import__('os')", "calls .*; the functions are min, max, abs, len, lower"),
        ("caption.__class__", "holds 'caption.__class__'"),
        ("(lambda: 1)()", "calls"),
        ("[x for x in (1, 2)]", r"holds '\[x for x in \(1, 2\)\]'"),
        ("width[0] > 1", "holds"),
        ("width ** 9", r"calculates? with \+ - \* /"),
        ("width if height else 1", "holds"),
        ("f'{width}' == '1'", "holds"),
        ("(width := 3)", "holds"),
        ("width > '5'", "compares a text with a number"),
        ("caption > 5", "compares a text with a number"),
        ("caption + 1 > 0", "calculates with a text"),
        ("caption", "is a text; compare it"),
        ("caption and width > 1", "takes the text 'caption' for true or false"),
        ("lower(width) == 1", "takes a text"),
        ("min(width)", "two or more numbers"),
        ("min(*width)", "calls"),
        ("width is 5", "only None stands after is"),
        ("width == None", "None only stands after is"),
        ("width > ", "is no expression"),
        ("", "is no expression"),
        ("width in height", "which is no text or list"),
        ("width in (height, 1)", "numbers or texts"),
        ("1" + "0" * 400 + " < width", "too large"),
        ("(" * 300 + "1" + ")" * 300, "no expression|nested"),
        ("not " * 150 + "width", "nested more than 100 deep"),
        ("w" * 20_000, "at most 10000 characters"),
        ("width > 1; height", "is no expression"),
        ("b'x' == caption", "a value is a number or a text"),
        ("~width > 1", "of signs"),
    ],
)
def test_what_is_no_filter_is_refused_in_a_sentence(expression, sentence):
    with pytest.raises(FilterError, match=sentence):
        select(expression, Table.from_rows(ROWS))


def test_tables_come_back_from_a_file_unless_their_stamp_changed(tmp_path):
    table = Table.from_rows([*ROWS, {"odd/name": 1, "mixed": 1}, {"mixed": "two"}])
    table.save(tmp_path / "t.npz", [1, ["a"]])
    again = Table.load(tmp_path / "t.npz", [1, ["a"]])
    assert again.names == table.names
    assert len(again) == 6
    for name in table.names:
        np.testing.assert_array_equal(again[name], table[name])
    assert again["mixed"].tolist() == [None] * 4 + ["1", "two"]
    assert Table.load(tmp_path / "t.npz", [2, ["a"]]) is None
    assert Table.load(tmp_path / "none.npz", 1) is None
    data = (tmp_path / "t.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(data[: len(data) // 2])
    assert Table.load(tmp_path / "t.npz", [1, ["a"]]) is None


def test_joined_tables_fill_gaps_and_turn_numbers_into_text_where_they_meet(tmp_path):
    a = Table.from_rows([{"a": 1, "b": "x", "c": 2.5}])
    b = Table.from_rows([{"a": 2, "d": 4}, {"c": "y"}])
    joined = Table.join([a, b])
    np.testing.assert_array_equal(joined["a"], [1, 2, math.nan])
    np.testing.assert_array_equal(joined["d"], [math.nan, 4, math.nan])
    assert joined["b"].tolist() == ["x", None, None]
    assert joined["c"].tolist() == ["2.5", None, "y"]
