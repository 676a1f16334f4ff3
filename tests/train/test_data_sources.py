import io
import json
import pickle
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import picture_sets
import pytest
from PIL import Image

from sdjax.train.data import array_records, tars
from sdjax.train.data.array_records import ArrayRecords
from sdjax.train.data.folder import Folder
from sdjax.train.data.records import SourceError
from sdjax.train.data.sources import open_source
from sdjax.train.data.table import SUFFIX
from sdjax.train.data.tars import TarShards


def check(source, count, size=(48, 40)):
    """What every source keeps: records by number, sizes in the table, the same after pickling."""
    assert len(source) == count
    again = pickle.loads(pickle.dumps(source))
    for i in range(count):
        record = source[i]
        assert again[i] == record
        with Image.open(io.BytesIO(record.image)) as picture:
            assert picture.size == size
    assert source.table["width"].tolist() == [size[0]] * count
    assert source.table["height"].tolist() == [size[1]] * count
    return [source[i] for i in range(count)]


def test_a_folder_with_metadata_gives_its_rows(tmp_path):
    picture_sets.write_folder(tmp_path, 12, aesthetic=[i / 2 if i % 3 else None for i in range(12)])
    source = Folder(tmp_path)
    records = check(source, 12)
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
    check(source, 3)
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
    records = {r.key: r for r in check(source, 3)}
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
    monkeypatch.setattr("sdjax.train.data.folder.picture_size", None)
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


def test_shards_of_img2dataset_are_read_from_where_their_files_lie(tmp_path):
    for k in range(2):
        picture_sets.write_tar(tmp_path / f"{k:05d}.tar", range(5 * k, 5 * k + 5))
    source = TarShards(str(tmp_path / "{00000..00001}.tar"))
    records = check(source, 10)
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


def test_array_records_hold_what_was_written(tmp_path):
    folder = picture_sets.write_folder(tmp_path / "in", 7, score=list(range(7)))
    Image.new("L", (48, 40), 255).save(folder / "mask.png")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[3] |= {"mask_file_name": "mask.png", "text": ["one", "two"]}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    array_records.main([str(tmp_path / "out"), "--folder", str(folder), "--shard-size", "3"])
    files = sorted(path.name for path in (tmp_path / "out").glob("*.array_record"))
    assert files == [f"pictures-{k:05d}-of-00003.array_record" for k in range(3)]
    before, source = Folder(folder), ArrayRecords(tmp_path / "out")
    records = check(source, 7)
    assert records == [before[i] for i in range(7)]
    assert records[3].mask is not None
    assert records[3].captions == ("one", "two")
    assert source.table["score"].tolist() == list(range(7))


def test_the_table_of_array_records_is_made_anew_where_it_is_missing(tmp_path):
    source = Folder(picture_sets.write_folder(tmp_path / "in", 4, score=list(range(4))))
    array_records.write(source, tmp_path / "out", shard_size=4)
    written = ArrayRecords(tmp_path / "out").table
    (index,) = tmp_path.glob(f"out/*{SUFFIX}")
    index.unlink()
    again = ArrayRecords(tmp_path / "out").table
    assert index.exists()
    assert again.names == written.names
    for name in again.names:
        assert again[name].tolist() == written[name].tolist()


def test_writing_goes_on_where_it_stopped_and_leaves_nothing_half(tmp_path):
    source = picture_sets.Numbers(9)

    class Stops:
        name, table = source.name, source.table

        def __len__(self):
            return 9

        def __getitem__(self, i):
            if i == 5:
                raise KeyboardInterrupt
            return source[i]

    with pytest.raises(KeyboardInterrupt):
        array_records.write(Stops(), tmp_path, shard_size=3)
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".npz", ".json")] == [
        "pictures-00000-of-00003.array_record"
    ]
    first = next(iter(tmp_path.glob("*.array_record"))).stat().st_mtime_ns
    array_records.write(source, tmp_path, shard_size=3)
    assert sorted(tmp_path.glob("*.array_record"))[0].stat().st_mtime_ns == first
    assert [ArrayRecords(tmp_path)[i] for i in range(9)] == [source[i] for i in range(9)]
    with pytest.raises(SourceError, match="other settings .shard_size 3, now 4.; go back"):
        array_records.write(source, tmp_path, shard_size=4)


def test_array_records_of_another_kind_or_damaged_are_refused(tmp_path):
    with array_records.writing(tmp_path / "a.array_record") as add:
        add(b"some protocol buffer or other")
    with pytest.raises(SourceError, match="a.array_record holds records of another kind"):
        ArrayRecords(tmp_path / "a.array_record")
    array_records.write(picture_sets.Numbers(3), tmp_path / "b")
    (path,) = (tmp_path / "b").glob("*.array_record")
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(SourceError, match="no whole ArrayRecord file"):
        ArrayRecords(path)
    with pytest.raises(SourceError, match="holds no ArrayRecord file"):
        ArrayRecords(tmp_path / "none")


def test_flipped_bits_of_array_records_never_load(tmp_path):
    before = picture_sets.Numbers(6)
    (path,) = array_records.write(before, tmp_path)
    data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for at in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            source = ArrayRecords(tmp_path, index_folder=tmp_path / f"{at}")
            records = [source[i] for i in range(6)]
        except (SourceError, OSError):
            refused += 1
        else:
            assert records == [before[i] for i in range(6)]  # what was flipped is padding
    assert refused > 0


def test_a_source_is_opened_by_what_a_configuration_says(tmp_path):
    picture_sets.write_folder(tmp_path, 2)
    source = open_source({"folder": str(tmp_path), "caption": "text", "default": None})
    assert isinstance(source, Folder)
    with pytest.raises(SourceError, match="names one of folder, records, tfds, tars; got path"):
        open_source({"path": "x"})
    with pytest.raises(SourceError, match="kind folder has no option split; it has caption, default, index_folder"):
        open_source({"folder": str(tmp_path), "split": "train"})


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A dataset of 6 pictures with a caption, a label and a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(None, None, 3)),
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["red_fox", "hen"]),
                    "score": np.float32,
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                picture = picture_sets.encoded(i)
                yield i, {"picture": picture, "text": f"picture {i}", "label": i % 2, "score": i / 4}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TinyPictures(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_a_tensorflow_dataset_is_read_without_tensorflow(tfds_folder, tmp_path):
    source = open_source(
        {"tfds": "tiny_pictures:1.0.0", "data_dir": str(tfds_folder), "index_folder": str(tmp_path / "i")}
    )
    records = check(source, 6)
    numbers = [int(record.captions[0].split()[1]) for record in records]
    assert sorted(numbers) == list(range(6))
    for record, number in zip(records, numbers):
        assert record.columns == {
            "text": f"picture {number}",
            "label": ("red_fox", "hen")[number % 2],
            "score": number / 4,
        }
        assert np.asarray(Image.open(io.BytesIO(record.image)))[0, 0, 0] == number
    assert source.table["score"].tolist() == [number / 4 for number in numbers]
    half = open_source(
        {"tfds": "tiny_pictures", "data_dir": tfds_folder, "split": "train[50%:]", "caption": "label",
         "template": "a picture of a {}", "index_folder": tmp_path / "i"}
    )  # fmt: skip
    assert len(half) == 3
    assert {half[i].captions[0] for i in range(3)} <= {"a picture of a red fox", "a picture of a hen"}


def test_a_tensorflow_dataset_that_cannot_be_read_is_refused_with_what_to_do(tfds_folder, tmp_path):
    shutil.copytree(tfds_folder, tmp_path, dirs_exist_ok=True)
    spec = {"tfds": "tiny_pictures", "data_dir": tmp_path, "index_folder": tmp_path / "i"}
    with pytest.raises(SourceError, match=r"has no column 'nothing'; it has picture \(Image\), text \(Text\), label"):
        open_source(spec | {"caption": "nothing"})
    with pytest.raises(SourceError, match="split 'test' of tiny_pictures/1.0.0 cannot be read .*its splits: train"):
        open_source(spec | {"split": "test"})
    with pytest.raises(SourceError, match="there is no TensorFlow Dataset 'tiny_picture'"):
        open_source(spec | {"tfds": "tiny_picture"})
    info = next(Path(tmp_path).rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(SourceError, match="lies in .* as tfrecord, which only TensorFlow reads; prepare it again with"):
        open_source(spec)
