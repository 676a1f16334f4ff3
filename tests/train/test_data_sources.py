"""ArrayRecord files and TensorFlow datasets: what is written and read, damage, refusals; opening by configuration."""

import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import picture_sets
import pytest
from data_checks import check_source
from PIL import Image

from sdjax.train.data import array_records
from sdjax.train.data.array_records import ArrayRecords
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.records import SourceError
from sdjax.train.data.sources import open_source
from sdjax.train.data.table import SUFFIX


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
    records = check_source(source, 7)
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
    with pytest.raises(SourceError, match="other settings .shard_size 3, now 4.; use the old"):
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
    records = check_source(source, 6)
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


def test_captions_of_a_tensorflow_dataset_that_are_no_text_are_named(tfds_folder, tmp_path):
    source = open_source({"tfds": "tiny_pictures", "data_dir": tfds_folder, "index_folder": tmp_path / "i"})
    example = {**source.data[0], "text": b"caf\xe9"}  # Latin-1
    source.data = [example]
    with pytest.raises(SourceError, match="record 0 of tiny_pictures/train has a caption that is not UTF-8 text"):
        source[0]
    source.data = [{**example, "text": "caf\u00e9".encode()}]
    assert source[0].captions == ("caf\u00e9",)
    assert source[0].columns["text"] == "caf\u00e9"


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
