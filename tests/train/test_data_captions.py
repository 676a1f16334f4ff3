"""Captions: where they are found, how their lines are cut, and what is no text."""

import json
import os
import tarfile

import picture_sets
import pytest

from sdjax.scripts.shared.prompts import read_prompts
from sdjax.storage.text_files import decode, lines
from sdjax.train.data import array_records
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.records import SourceError
from sdjax.train.data.tars import TarShards

NO_ENDS = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"  # where str.splitlines cuts and no line ends


def captions_of(folder):
    source = Folder(folder)
    return [source[i].captions for i in range(len(source))]


def picture(folder, name="photo.jpg"):
    (folder / name).write_bytes(picture_sets.encoded(0, format="JPEG"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_where_lines_end(tmp_path, end):
    text = f"{NO_ENDS}{end}second"
    assert lines(text) == [NO_ENDS, "second"]
    picture(tmp_path)
    (tmp_path / "photo.txt").write_bytes(text.encode())
    assert captions_of(tmp_path) == [(NO_ENDS, "second")]
    assert read_prompts(str(tmp_path / "photo.txt")) == [NO_ENDS, "second"]


def test_tables_and_shards_do_not_cut_captions_either(tmp_path):
    picture(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"file_name,text\nphoto.jpg,{NO_ENDS}\n", newline="")
    assert captions_of(tmp_path) == [(NO_ENDS,)]
    (tmp_path / "metadata.csv").unlink()
    row = {"file_name": "photo.jpg", "text": NO_ENDS}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert captions_of(tmp_path) == [(NO_ENDS,)]
    for name, data in {"0.jpg": picture_sets.encoded(0), "0.txt": NO_ENDS.encode()}.items():
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.jpg", "0.txt"):
            tar.add(tmp_path / name, name)
    assert TarShards(tmp_path / "a.tar")[0].captions == (NO_ENDS,)


@pytest.mark.parametrize(
    "name",
    [
        "photo.txt", "photo.TXT", "PHOTO.txt", "photo.caption", "photo.caption.txt", "photo.jpg.txt", "photo.JPG.txt",
        "photo.cap", "photo.tags", "photo.jpg.caption",
    ],
)  # fmt: skip
def test_caption_files_have_many_spellings(tmp_path, name):
    picture(tmp_path)
    (tmp_path / name).write_text("a photo")
    assert captions_of(tmp_path) == [("a photo",)]


@pytest.mark.parametrize("name", ["p.caption", "p.TAGS", "p.jpg.txt", "p.caption.txt"])
def test_caption_files_in_shards_have_the_same_spellings(tmp_path, name):
    picture(tmp_path)
    (tmp_path / "text").write_text("a photo")
    (tmp_path / "empty").write_text("\n")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for member, file in {"p.jpg": "photo.jpg", name: "text", "p.txt": "empty", "p.cap.txt": "text"}.items():
            tar.add(tmp_path / file, member)
    assert TarShards(tmp_path / "a.tar", default="else")[0].captions == ("a photo",)


def test_a_shard_s_txt_comes_before_other_spellings_in_any_order(tmp_path):
    picture(tmp_path)
    (tmp_path / "tags").write_text("tags")
    (tmp_path / "txt").write_text("text")
    for order in (("txt", "tags"), ("tags", "txt")):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for ending, file in (("jpg", "photo.jpg"), *((ending, ending) for ending in order)):
                tar.add(tmp_path / file, f"p.{ending}")
        assert TarShards(tmp_path / "a.tar")[0].captions == ("text",)


@pytest.mark.parametrize("name", ["photo.txt", "metadata.csv"])
def test_a_pipe_in_place_of_a_text_is_named_and_not_waited_for(tmp_path, name):
    picture(tmp_path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match=f"{name} is no file but a pipe"):
        Folder(tmp_path, default="x")


def test_an_empty_caption_file_leaves_the_word_to_the_next(tmp_path):
    picture(tmp_path)
    (tmp_path / "photo.txt").write_text("\n")
    (tmp_path / "photo.caption").write_text("two")
    assert captions_of(tmp_path) == [("two",)]


def test_of_several_caption_files_the_txt_is_taken_and_that_is_said(tmp_path):
    picture(tmp_path)
    (tmp_path / "photo.caption").write_text("one")
    (tmp_path / "photo.txt").write_text("two")
    source = Folder(tmp_path)
    assert source[0].captions == ("two",)
    assert any("1 pictures have several caption files" in notice for notice in source.notices)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_say_the_encoding(tmp_path, encoding):
    picture(tmp_path)
    (tmp_path / "photo.txt").write_bytes("Café".encode(encoding))
    assert captions_of(tmp_path) == [("Café",)]


def test_bytes_that_are_no_text_name_the_file_and_the_line(tmp_path):
    picture(tmp_path)
    (tmp_path / "photo.txt").write_bytes(b"one\nCaf\xe9\n")
    with pytest.raises(SourceError, match="line 2 of .*photo.txt is not UTF-8"):
        Folder(tmp_path)
    with pytest.raises(ValueError, match="x is not UTF-8 text .it has zero bytes"):
        decode("no mark".encode("utf-16-le"), "x")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("metadata.csv", "file_name,prompt\nphoto.jpg,a photo\n"),
        ("metadata.csv", "File_Name;Caption\r\nphoto.jpg;a photo\r\n"),
        ("metadata.csv", "image\ttext\nphoto.jpg\ta photo\n"),
        ("Metadata.CSV", '"file_name","text"\n"photo.jpg","a photo"\n'),
        ("metadata.jsonl", '{"image": "photo.jpg", "prompt": "a photo"}'),
        ("metadata.JSONL", '{"filename": "photo.jpg", "Text": "a photo", "size": 1' + "0" * 400 + "}"),
    ],
)
def test_tables_have_many_spellings(tmp_path, table, text):
    picture(tmp_path)
    (tmp_path / table).write_text(text, newline="")
    assert captions_of(tmp_path) == [("a photo",)]


def test_tables_of_parquet_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture(tmp_path)
    parquet.write_table(pyarrow.table({"file_name": ["photo.jpg"], "text": ["a photo"]}), tmp_path / "metadata.parquet")
    assert captions_of(tmp_path) == [("a photo",)]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="metadata.parquet cannot be read as Parquet"):
        Folder(tmp_path)


@pytest.mark.parametrize("value", ["7", "NaN", "true", "[1, 2]", '["a", ["b"]]', '{"en": "a"}', '"\\ud800"', "1e999"])
def test_json_that_is_no_text_names_file_and_line(tmp_path, value):
    picture(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "photo.jpg", "text": {value}}}\n')
    with pytest.raises(SourceError, match="line 1 of .*metadata.jsonl has a caption"):
        Folder(tmp_path)


@pytest.mark.parametrize("value", ["null", '""', "[]", "[null]", '"  "'])
def test_json_without_a_caption_names_file_and_line(tmp_path, value):
    picture(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(f'\n{{"file_name": "photo.jpg", "text": {value}}}\n')
    with pytest.raises(SourceError, match="no caption .photo.jpg.: .*line 2 of .*metadata.jsonl"):
        Folder(tmp_path)
    assert Folder(tmp_path, default="x")[0].captions == ("x",)


def test_a_csv_of_numbers_names_file_and_line(tmp_path):
    picture(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\nphoto.jpg,3\n")
    with pytest.raises(SourceError, match="line 2 of .*metadata.csv has a caption that is no text but 3.0"):
        Folder(tmp_path)


@pytest.mark.parametrize("name", [".", "a\\u0000b.jpg", "", " "])
def test_file_names_that_cannot_be_are_refused(tmp_path, name):
    picture(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "{name}", "text": "x"}}\n')
    with pytest.raises(SourceError, match="line 1 of .*metadata.jsonl"):
        Folder(tmp_path)


@pytest.mark.parametrize("bad", [{"txt": b"Caf\xe9"}, {"json": b'{"caption": 5}'}, {"json": b'{"caption": {"a": 1}}'}])
def test_captions_of_shards_that_are_no_text_name_member_and_shard(tmp_path, bad):
    (tmp_path / "p.jpg").write_bytes(picture_sets.encoded(0))
    (ending,) = bad
    (tmp_path / "p").write_bytes(bad[ending])
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "p.jpg", "000.jpg")
        tar.add(tmp_path / "p", f"000.{ending}")
    with pytest.raises(SourceError, match=r"000\.\w+ in .*a.tar"):
        TarShards(tmp_path / "a.tar", default="x")


@pytest.mark.parametrize(
    "texts", [{"captions": 5, "columns": {}}, {"captions": [1], "columns": {}}, {"captions": [], "columns": 3}]
)
def test_records_that_are_no_text_name_record_and_file(tmp_path, texts):
    import numpy as np

    tensors = {"image": np.frombuffer(picture_sets.encoded(0), np.uint8)}
    with array_records.writing(tmp_path / "a.array_record") as add:
        add(array_records.pack(tensors, {"key": "k", **texts}))
    with pytest.raises(SourceError, match="record 0 of .*a.array_record has"):
        array_records.ArrayRecords(tmp_path)
