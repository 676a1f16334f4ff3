"""Folders of pictures: captions, metadata, masks, sizes, refusals."""

import numpy as np
import picture_sets
import pytest
from data_checks import check_source
from PIL import Image

from sdjax.train.data.image_folder import Folder
from sdjax.train.data.records import SourceError
from sdjax.train.data.table import SUFFIX


def test_a_folder_with_metadata_gives_its_rows(tmp_path):
    picture_sets.write_folder(tmp_path, 12, aesthetic=[i / 2 if i % 3 else None for i in range(12)])
    source = Folder(tmp_path)
    records = check_source(source, 12)
    assert [r.key for r in records] == [f"{i}.png" for i in range(12)]  # 2 before 10
    assert records[4].captions == ("picture 4",)
    assert records[4].columns["aesthetic"] == 2.0
    assert source.table.names == ("aesthetic", "caption", "file_name", "height", "text", "width")
    np.testing.assert_array_equal(source.table["aesthetic"], [np.nan if i % 3 == 0 else i / 2 for i in range(12)])


def test_csv_columns_of_numbers_are_numbers_and_byte_order_marks_do_no_harm(tmp_path):
    (tmp_path / "sub").mkdir()
    for i in range(3):
        (tmp_path / "sub" / f"{i}.png").write_bytes(picture_sets.encoded(i))
    rows = ["file_name,prompt,score,tag", 'sub/0.png,"a, b",1.5,7', "sub/1.png,c,,x", "sub/2.png,d,-2e3,"]
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    source = Folder(tmp_path, caption="prompt")
    check_source(source, 3)
    assert source[0].captions == ("a, b",)
    np.testing.assert_array_equal(source.table["score"], [1.5, np.nan, -2000])
    assert source.table["tag"].tolist() == ["7", "x", None]


def test_texts_and_masks_beside_pictures_are_found_in_subfolders_too(tmp_path):
    (tmp_path / "cats").mkdir()
    for name in ("a.png", "cats/b.jpg", "cats/b_mask.png", "lone_mask.png"):
        data = picture_sets.encoded(1, format="PNG" if name.endswith("png") else "JPEG")
        (tmp_path / name).write_bytes(data)
    (tmp_path / "a.txt").write_text("first\n\n  second \n")
    (tmp_path / "cats" / "b.txt").write_text("a cat")
    (tmp_path / "notes.md").write_text("no picture")
    source = Folder(tmp_path, default="something")
    records = {r.key: r for r in check_source(source, 3)}
    assert records["a.png"].captions == ("first", "second")
    assert records["cats/b.jpg"].captions == ("a cat",)
    assert records["cats/b.jpg"].mask == (tmp_path / "cats" / "b_mask.png").read_bytes()
    assert records["lone_mask.png"].captions == ("something",)  # there is no picture "lone"
    assert records["a.png"].mask is None


def test_captions_may_be_lists_and_subfolders_have_metadata_of_their_own(tmp_path):
    picture_sets.write_folder(tmp_path / "one", 2, captions=[["a", "b"], "c"])
    picture_sets.write_folder(tmp_path / "two", 1)
    source = Folder(tmp_path)
    assert [source[i].captions for i in range(3)] == [("a", "b"), ("c",), ("picture 0",)]
    assert [source[i].key for i in range(3)] == ["one/0.png", "one/1.png", "two/0.png"]


def test_a_turned_picture_is_measured_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(picture_sets.encoded(0, 48, 40, "JPEG", exif=exif))
    source = Folder(tmp_path, default="x")
    assert (source.table["width"][0], source.table["height"][0]) == (40, 48)


def test_pictures_whose_heads_cannot_be_read_have_no_size(tmp_path):
    picture_sets.write_folder(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "2.png").unlink()
    assert Folder(tmp_path).table["width"].tolist() == [48, 0, 0]


def test_sizes_are_kept_and_measured_again_when_a_picture_changed(tmp_path, monkeypatch):
    picture_sets.write_folder(tmp_path, 3)
    Folder(tmp_path)
    assert (tmp_path / SUFFIX).exists()
    (tmp_path / "0.png").write_bytes(picture_sets.encoded(0, 64, 32))
    assert Folder(tmp_path).table["width"].tolist() == [64, 48, 48]
    monkeypatch.setattr("sdjax.train.data.image_folder.picture_size", None)
    assert Folder(tmp_path).table["width"].tolist() == [64, 48, 48]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("metadata.jsonl", '{"file_name": "0.png"}', "1 of 1 pictures .* have no caption .0.png.: give them"),
        ("metadata.jsonl", '{"text": "x"}', "line 1 of .* has no file_name"),
        ("metadata.jsonl", '\n{"file_name"', "line 2 of .* is no JSON"),
        ("metadata.jsonl", "[1]", "no JSON object"),
        ("metadata.jsonl", '{"file_name": "../0.png", "text": "x"}', "does not lie in the folder"),
        ("metadata.jsonl", '{"file_name": "/etc/passwd", "text": "x"}', "does not lie in the folder"),
        ("metadata.csv", "file_name,text\n0.png,a,b\n", "line 2 of .* more fields"),
        ("metadata.csv", b"file_name,text\n0.png,\xff\n", "is not UTF-8"),
        ("metadata.csv", "file_name,text\n", "holds no pictures"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(tmp_path, name, text, sentence):
    (tmp_path / "0.png").write_bytes(picture_sets.encoded(0))
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SourceError, match=sentence):
        Folder(tmp_path)


def test_a_folder_without_pictures_or_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no pictures"):
        Folder(tmp_path)
    with pytest.raises(SourceError, match="no folder of that name"):
        Folder(tmp_path / "none")
