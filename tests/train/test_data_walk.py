"""The folders and files of a training set: each once, none of other programs; and kohya's folder names."""

import os

import numpy as np
import picture_sets
import pytest

from sdjax.train.data.array_records import ArrayRecords, write
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.pictures import Part, Pictures
from sdjax.train.data.records import SourceError
from sdjax.train.data.tars import TarShards

CAPTIONED = {"default": "x"}


def write_pictures(root, *names, captions=True):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_sets.encoded(i))
        if captions:
            path.with_suffix(".txt").write_text(f"caption {name}")
    return root


def keys(source):
    return [source[i].key for i in range(len(source))]


def shown(parts):
    """How often an epoch shows each record of each part."""
    pictures = Pictures(parts, Buckets.square(32))
    counts = [np.zeros(len(part.source)) for part in parts]
    for stream in pictures.streams:
        counts[stream.part][stream.members] += stream.rate
    return [count.tolist() for count in counts], pictures


@pytest.mark.parametrize(
    "foreign",
    [
        ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "__MACOSX/._a.png", "._a.png", ".a.png",
        ".thumbnails/a.png", ".Trash-1000/files/a.png", "lost+found/a.png", "sub/@eaDir/a.png", "$RECYCLE.BIN/a.png",
        "sub/.cache/a.png",
    ],
)  # fmt: skip
def test_what_other_programs_keep_is_not_trained_on(tmp_path, foreign):
    write_pictures(tmp_path, "a.png", "sub/b.png", foreign)
    assert keys(Folder(tmp_path)) == ["a.png", "sub/b.png"]


def test_runs_and_caches_of_sdjax_are_not_trained_on(tmp_path):
    write_pictures(tmp_path, "a.png", "run/pictures/samples/00000010.png", "cache/b.png", captions=False)
    (tmp_path / "run" / "settings.json").write_text("{}")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "cache" / "manifest.json").write_text("{}")
    (tmp_path / "cache" / "latents-00000-of-00001.npz").write_bytes(b"")
    source = Folder(tmp_path, **CAPTIONED)
    assert keys(source) == ["a.png"]
    assert "2 folders are passed over" in source.notices[0]
    assert keys(Folder(tmp_path / "run", **CAPTIONED)) == ["pictures/samples/00000010.png"]  # asked for by name


def test_folders_and_files_reached_twice_count_once(tmp_path):
    write_pictures(tmp_path, "b/1.png", "b/2.png")
    (tmp_path / "a_link").symlink_to("b", target_is_directory=True)
    (tmp_path / "b" / "loop").symlink_to("..", target_is_directory=True)
    (tmp_path / "b" / "itself").symlink_to("itself")
    (tmp_path / "0.png").symlink_to("b/1.png")  # without a caption: the other name has one
    os.link(tmp_path / "b" / "2.png", tmp_path / "b" / "hard.png")
    source = Folder(tmp_path, **CAPTIONED)
    assert keys(source) == ["b/1.png", "b/2.png"]
    assert source[0].captions == ("caption b/1.png",)
    assert any("further names of the same pictures" in notice and "0.png" in notice for notice in source.notices)


def test_rows_of_a_table_may_repeat_a_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(picture_sets.encoded(0))
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\na.png,two\n")
    assert len(Folder(tmp_path)) == 2


@pytest.mark.parametrize("first", ["a", "a/", "a/../a", "a_link"])
def test_pictures_of_two_parts_count_once(tmp_path, monkeypatch, first):
    write_pictures(tmp_path, "a/1.png", "a/b/2.png")
    (tmp_path / "a_link").symlink_to("a", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    (outer, inner), pictures = shown([Part(Folder(first)), Part(Folder("a/b"))])
    assert (outer, inner) == ([1, 0], [1])
    assert any("1 pictures are in" in notice and "count once" in notice for notice in pictures.notices)
    same, again = shown([Part(Folder(first)), Part(Folder("./a"))])[0]
    assert sum(same) + sum(again) == 2


def test_a_mixture_on_purpose_stays(tmp_path):
    write_pictures(tmp_path, "1.png", "2.png")
    counts, pictures = shown([Part(Folder(tmp_path)), Part(Folder(tmp_path), repeats=3)])
    assert counts == [[1, 1], [3, 3]]
    assert any("count in both" in notice for notice in pictures.notices)


def test_shards_and_record_files_named_twice_count_once(tmp_path):
    path = picture_sets.write_tar(tmp_path / "a.tar", range(3))
    (tmp_path / "._a.tar").write_bytes(b"AppleDouble")
    (tmp_path / "link.tar").symlink_to(path)
    assert len(TarShards([str(path), f"{tmp_path}/./a.tar", str(tmp_path)])) == 3
    (file,) = write(TarShards(path), tmp_path / "records")
    assert len(ArrayRecords([file, tmp_path / "records" / ".." / "records" / file.name])) == 3
    counts, _ = shown([Part(TarShards(path)), Part(TarShards(tmp_path / "link.tar"))])
    assert counts == [[1, 1, 1], [0, 0, 0]]
    counts, _ = shown([Part(ArrayRecords(file)), Part(ArrayRecords(tmp_path / "records"))])
    assert np.sum(counts) == 3


def test_kohyas_folder_names_are_repeats_and_classes(tmp_path):
    names = ["10_sks dog/a.png", "3_cat/b.png", "0_not/c.png", "10_/d.png", "10name/e.png", "plain/f.png"]
    write_pictures(tmp_path, *names, "20240131_trip/g.png", captions=False)
    (tmp_path / "3_cat" / "b.txt").write_text("a cat")
    source = Folder(tmp_path, default="else")
    counts, _ = shown([Part(source)])
    told = {source[i].key: (source[i].captions, counts[0][i]) for i in range(len(source))}
    assert told == {
        "10_sks dog/a.png": (("sks dog",), 10), "3_cat/b.png": (("a cat",), 3), "10_/d.png": (("else",), 1),
        "10name/e.png": (("else",), 1), "plain/f.png": (("else",), 1), "20240131_trip/g.png": (("else",), 1),
    }  # fmt: skip
    assert any("10_sks dog: 1 pictures, shown 10 times an epoch" in notice for notice in source.notices)
    assert any("0_not: 1 pictures, left out" in notice for notice in source.notices)
    # they travel into record files, and multiply with the part's own
    write(source, tmp_path / "records")
    counts, _ = shown([Part(ArrayRecords(tmp_path / "records"), repeats=2)])
    assert sorted(counts[0]) == [2, 2, 2, 2, 6, 20]


def test_weights_are_shares_of_an_epoch_whatever_the_repeats(tmp_path):
    write_pictures(tmp_path, "one/5_a/1.png", "two/1.png", "two/2.png")
    counts, _ = shown([Part(Folder(tmp_path / "one"), weight=1.0), Part(Folder(tmp_path / "two"), weight=1.0)])
    assert sum(counts[0]) == pytest.approx(sum(counts[1]))


def test_kohyas_folder_itself_and_a_blank_class_say_what_is_missing(tmp_path):
    write_pictures(tmp_path / "10_sks dog", "a.png", captions=False)
    with pytest.raises(SourceError, match="own name says no repeats: name the folder above it"):
        Folder(tmp_path / "10_sks dog")
    write_pictures(tmp_path / "set", "10_ /a.png", captions=False)
    with pytest.raises(SourceError, match="have no caption"):
        Folder(tmp_path / "set")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_pictures(tmp_path, "a.png", "sub/b.png")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="sub cannot be listed .Permission denied"):
        Folder(tmp_path)
