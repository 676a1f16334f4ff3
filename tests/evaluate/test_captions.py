"""Captions of files in every form: which are taken, what is refused, and that a seed follows from its caption."""

import json

import pytest

from sdjax.evaluate import captions
from sdjax.evaluate.captions import choose, digest_of, read_captions

COCO = {
    "info": {"description": "COCO 2014"},
    "images": [{"id": 9}, {"id": 4}],
    "annotations": [
        {"image_id": 9, "id": 70, "caption": "a dog runs"},
        {"image_id": 4, "id": 12, "caption": "a red bus\n"},
        {"image_id": 9, "id": 31, "caption": "a dog on grass"},
    ],
}


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", json.dumps(COCO), ["a dog on grass", "a red bus"]),
        ("a.jsonl", '{"Caption": "a cat", "text": "no"}\n\n"a bus"\n', ["a cat", "a bus"]),
        ("a.ndjson", '{"id": 1, "prompt": " a cat "}', ["a cat"]),
        ("a.csv", 'id,text\n1,"a cat, asleep"\n2,a bus\n', ["a cat, asleep", "a bus"]),
        ("a.tsv", "id\timage_id\tcaption\n1\t2\ta cat\n", ["a cat"]),  # MLPerf's val2014_30k.tsv
        ("a.txt", "\ufeffa cat\r\n\r\n a [red:0.3] (bus) \r\n", ["a cat", "a [red:0.3] (bus)"]),
        ("a", "a cat", ["a cat"]),
    ],
)
def test_captions_are_read_in_the_order_of_the_file(name, text, expected, tmp_path):
    assert read_captions(written(tmp_path, name, text)) == expected


def test_a_column_is_chosen_in_tables_only(tmp_path):
    table = written(tmp_path, "a.csv", "caption,long\nno,a cat on a mat\n")
    assert read_captions(table, "LONG") == ["a cat on a mat"]
    with pytest.raises(ValueError, match="has no 'other'; it has 'caption', 'long'"):
        read_captions(table, "other")
    with pytest.raises(ValueError, match="has no columns"):
        read_captions(written(tmp_path, "a.txt", "a cat"), "long")


def test_parquet_is_read_by_its_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"URL": ["u"] * 2, "TEXT": ["a cat", "a bus"]}), path)
    assert read_captions(path) == ["a cat", "a bus"]
    parquet.write_table(pyarrow.table({"text": ["a cat", None]}), path)
    with pytest.raises(ValueError, match="row 2 of the file of captions .* has no caption"):
        read_captions(path)
    parquet.write_table(pyarrow.table({"text": [b"a cat"]}), path)
    with pytest.raises(ValueError, match="row 1 .* expected a text"):
        read_captions(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_captions(path)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", '["a cat"]', "is not COCO's"),
        ("a.json", '{"annotations": [{"caption": "a cat"}]}', "annotation 1 .* has no image_id"),
        ("a.json", '{"annotations": [{"image_id": 1, "id": 2}]}', "annotation 1 .* has no caption"),
        ("a.json", '{"annotations": [{"image_id": 1, "caption": "\\ud800"}]}', "half of a UTF-16 character"),
        ("a.json", '{"annotations": []}', "holds no caption"),
        ("a.json", f'{{"a": {"9" * 5000}}}', "is not JSON"),
        ("a.jsonl", '{"caption": "a"}\n{"caption": 5}', "line 2 .* expected a text; got 5"),
        ("a.jsonl", '{"caption": ""}', "line 1 .* has no caption"),
        ("a.jsonl", '{"url": "a"}', "line 1 .* has no caption or prompt or text; it has 'url'"),
        ("a.jsonl", "{", "line 1 .* is not JSON"),
        ("a.csv", "", "it has nothing"),
        ("a.csv", "caption,id\n,1\n", "line 2 .* has no caption"),
        ("a.csv", "id,caption\n1\n", "line 2 .* has no caption"),
        ("a.txt", b"a cat\n\xff\xfe\n", "line 2 .* is not UTF-8"),
        ("a.txt", "\n \n", "holds no caption"),
        ("a.txt", "a" * 10_001, "has 10001 characters"),
    ],
)
def test_what_is_no_caption_is_refused_in_one_sentence(name, text, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_captions(written(tmp_path, name, text))
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_file_without_end_is_read_to_the_limit_only(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="too many bytes"):
        read_captions("/dev/zero")
    with pytest.raises(ValueError, match="cannot be read"):
        read_captions(tmp_path / "none.json")


def test_the_seed_of_a_caption_follows_from_its_text_and_the_count_of_the_same_before_it():
    texts = ["a cat", "a bus", "a cat"]
    cat, bus, again = choose(texts)
    assert [one.number for one in (cat, bus, again)] == [0, 1, 2]
    assert len({cat.seed, bus.seed, again.seed}) == 3
    assert all(0 <= one.seed < 2**48 for one in (cat, bus, again))
    assert [one.seed for one in choose(["a bus", "a cat", "a dog"])[:2]] == [bus.seed, cat.seed]
    assert choose(texts, seed=1)[0].seed != cat.seed
    assert digest_of(choose(texts)) != digest_of(choose(texts, seed=1))


def test_a_smaller_choice_is_a_part_of_a_larger_one_and_spread_over_the_file():
    texts = [f"caption {i}" for i in range(1000)]
    chosen = [choose(texts, count) for count in (10, 100, 1000)]
    assert [len(one) for one in chosen] == [10, 100, 1000]
    assert set(chosen[0]) < set(chosen[1]) < set(chosen[2])
    assert chosen[1] == sorted(chosen[1])
    halves = sum(one.number < 500 for one in chosen[1])
    assert 30 < halves < 70  # binomial of 100 draws: five standard deviations are 25
    assert choose(texts, 10, seed=1) != chosen[0]
    with pytest.raises(ValueError, match="from 1 to 1000, as many as there are; got 1001"):
        choose(texts, 1001)
