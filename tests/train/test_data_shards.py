"""Tar shards: where pictures lie in them, captions, lists that are kept, damage, other file systems."""

import io
import tarfile

import picture_sets
import pytest
from data_checks import check_source

from sdjax.train.data import tars
from sdjax.train.data.records import SourceError
from sdjax.train.data.table import SUFFIX
from sdjax.train.data.tars import TarShards


def test_shards_of_img2dataset_are_read_from_where_their_files_lie(tmp_path):
    for k in range(2):
        picture_sets.write_tar(tmp_path / f"{k:05d}.tar", range(5 * k, 5 * k + 5))
    source = TarShards(str(tmp_path / "{00000..00001}.tar"))
    records = check_source(source, 10)
    assert [r.key for r in records] == [f"{i // 5:05d}/{i:09d}" for i in range(10)]
    assert records[7].captions == ("picture 7",)
    assert records[7].columns["similarity"] == 0.07
    assert source.table["similarity"].tolist() == [i / 100 for i in range(10)]
    assert "_picture" not in source.table.names
    for path in (tmp_path, str(tmp_path / "*.tar"), [tmp_path / "00001.tar", tmp_path / "00000.tar"]):
        assert [TarShards(path)[i] for i in range(10)] == records


def test_captions_of_shards_come_from_a_column_if_one_is_named(tmp_path):
    picture_sets.write_tar(tmp_path / "a.tar", range(2), alt=[["x", "y"], "z"])
    source = TarShards(tmp_path / "a.tar", caption="alt")
    assert [source[i].captions for i in range(2)] == [("x", "y"), ("z",)]
    with pytest.raises(SourceError, match="2 of 2 pictures in .* have no caption, .* in none of a .json"):
        TarShards(tmp_path / "a.tar", caption="none")


def test_a_list_of_a_shard_is_kept_until_the_shard_changes(tmp_path, monkeypatch):
    path = picture_sets.write_tar(tmp_path / "a.tar", range(3))
    TarShards(path)
    with monkeypatch.context() as patch:
        patch.setattr(tars.tarfile, "open", None)
        assert TarShards(path)[2].captions == ("picture 2",)
    picture_sets.write_tar(path, range(1, 6))
    assert len(TarShards(path)) == 5


def test_lists_are_kept_where_asked(tmp_path):
    path = picture_sets.write_tar(tmp_path / "a.tar", range(3))
    TarShards(path, index_folder=tmp_path / "indices")
    assert len(list((tmp_path / "indices").iterdir())) == 1
    assert list(tmp_path.glob(f"*{SUFFIX}")) == []


def test_what_is_no_picture_in_a_shard_is_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        files = {"x/a.png": picture_sets.encoded(1), "x/a.txt": b"A", "b.txt": b"no picture", "x/a.mp3": b"sound"}
        files |= {"c.jpg": b"damaged", "c.txt": b"C", "c.json": b"[", ".hidden": b""}
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("d.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = TarShards(tmp_path / "a.tar")
    assert [source[i].key for i in range(2)] == ["a/x/a", "a/c"]
    assert source.table["width"].tolist() == [48, 0]


def test_shards_that_are_cut_compressed_or_not_there_are_refused(tmp_path):
    path = picture_sets.write_tar(tmp_path / "a.tar", range(3))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SourceError, match="a.tar is no whole tar file"):
        TarShards(path)
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(SourceError, match="b.tar is no whole tar file.*unpack it"):
        TarShards(tmp_path / "b.tar")
    with pytest.raises(SourceError, match="00001.tar is no tar shard"):
        TarShards(str(tmp_path / "{00001..00002}.tar"))
    (tmp_path / "c.tar").write_bytes(bytes(10240))
    with pytest.raises(SourceError, match="holds no pictures"):
        TarShards(tmp_path / "c.tar")


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = picture_sets.write_tar(tmp_path / "a.tar", range(3))
    source = TarShards(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(OSError, match="changed while it is read"):
        source[2]


def test_shards_elsewhere_are_read_through_fsspec(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for k in range(2):
        path = picture_sets.write_tar(tmp_path / f"{k}.tar", range(3 * k, 3 * k + 3))
        memory.pipe_file(f"/shards/{k}.tar", path.read_bytes())
    local = TarShards(tmp_path)
    for name in ("memory://shards/{0..1}.tar", "memory://shards/*.tar", "memory://shards"):
        remote = TarShards(name, index_folder=tmp_path / "indices")
        assert [remote[i] for i in range(6)] == [local[i] for i in range(6)]
    with pytest.raises(SourceError, match="memory://shards/7.tar is no tar shard"):
        TarShards("memory://shards/7.tar")
