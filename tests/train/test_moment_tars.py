"""Latents in tar shards: moments as NumPy writes them, captions beside them."""

import io
import tarfile

import numpy as np
import pytest
from models_to_train import MODEL

from sdjax.train.config import DataConfig
from sdjax.train.data.loader import Loader
from sdjax.train.data.moment_tars import MomentTars
from sdjax.train.data.records import SourceError
from sdjax.train.data.statistics import set_statistics
from sdjax.train.training_set import make_examples, make_loader, open_parts, text_in


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def moments(i, channels=8, side=4, dtype=np.float16):
    return (np.arange(channels * side * side).reshape(channels, side, side) / 100 + i).astype(dtype)


def shards(folder, count=3, each=4, **options):
    for k in range(count):
        files = {}
        for i in range(k * each, (k + 1) * each):
            files[f"{i:09d}.npy"] = npy(moments(i, **options))
            files[f"{i:09d}.txt"] = f"caption {i}".encode()
        write_tar(folder / f"{k:05d}.tar", files)
    return (str(folder / f"{{00000..{count - 1:05d}}}.tar"),)


def test_batches_hold_the_moments_channels_last_and_their_captions(tmp_path):
    examples = MomentTars(shards(tmp_path), least=4, index_folder=tmp_path / "index")
    seen = {}
    for batch in Loader(examples, batch_size=4, seed=1, threads=1).iterate(0, 3):  # one epoch
        assert batch["moments"].shape == (4, 4, 4, 8)
        assert batch["moments"].dtype == np.float16
        for row, caption, key in zip(batch["moments"], batch["caption"], batch["key"]):
            i = int(key.partition("/")[2])
            assert caption == f"caption {i}"
            np.testing.assert_array_equal(row, np.moveaxis(moments(i), 0, -1))
            seen[i] = key
    assert sorted(seen) == list(range(12))
    assert seen[5] == "00001/000000005"


@pytest.mark.parametrize(
    "array",
    [moments(0)[None], np.asfortranarray(moments(0)), moments(0).astype(">f4")],
    ids=["batch of one", "F", "big"],
)
def test_the_numbers_do_not_depend_on_how_numpy_stores_them(tmp_path, array):
    path = write_tar(tmp_path / "a.tar", {"1.npy": npy(array), "1.txt": b"a"})
    found = MomentTars([path], index_folder=tmp_path).load(0, 0, (4, 4), 0, 0)["moments"]
    np.testing.assert_array_equal(found, np.moveaxis(moments(0), 0, -1))


def head(shape, dtype="<f2"):
    return npy(np.zeros(0, np.float16)).replace(b"(0,), }     ", f"{shape}, }}".encode().ljust(12)[:99], 1)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1.npy": npy(moments(0))}, "1.npy in .*a.tar has no caption"),
        ({"1.txt": b"a"}, "holds no latents"),
        ({"1.npy": npy(np.array([{}], object)), "1.txt": b"a"}, "float16 or float32 .*object"),
        ({"1.npy": b"not numpy", "1.txt": b"a"}, "1.npy in .*a.tar: it is no .npy file"),
        ({"1.npy": npy(moments(0))[:-2], "1.txt": b"a"}, "bytes are not"),
        ({"1.npy": npy(moments(0, channels=7)), "1.txt": b"a"}, r"\[2 c, h, w\]"),
        ({"1.npy": npy(np.zeros((4, 4))), "1.txt": b"a"}, "float64"),
        ({"1.npy": head((8, 2**20, 2**20)), "1.txt": b"a"}, "bytes are not"),
        ({"1.npy": npy(moments(0)), "1.txt": b"\xff\xfe\xff"}, "1.txt in"),
        ({"1.npy": npy(moments(0)), "1.txt": b"a" * 2**17}, "is no caption"),
        (
            {"1.npy": npy(moments(0)), "1.txt": b"a", "2.npy": npy(moments(0, channels=4)), "2.txt": b"a"},
            "2 in .*a.tar has 4 channels and the first 8",
        ),
    ],
)
def test_what_is_no_latent_is_refused_by_its_name(tmp_path, files, said):
    with pytest.raises(SourceError, match=said):
        MomentTars([write_tar(tmp_path / "a.tar", files)], index_folder=tmp_path)


def test_a_training_set_of_tars_is_of_the_models_latents(tmp_path):
    data = DataConfig(cached=shards(tmp_path, side=8))
    parts = open_parts(data, 4, captions=True)
    examples = make_examples(data, parts, MODEL, 4)
    assert text_in(data) == "ids"
    assert [stream.size for stream in examples.streams] == [(64, 64)]
    assert set_statistics(examples, 4)["sizes"] == [[64, 64, 12]]
    loader = make_loader(data, MODEL, tokens, batch_size=4, seed=0, examples=examples)
    assert loader.batch(0)["ids"].shape == (4, MODEL.text.max_length)
    with pytest.raises(SourceError, match="another autoencoder"):
        parts.of_model(16, 8)
    with pytest.raises(SourceError, match="not both"):
        MomentTars([*data.cached, str(tmp_path)])


def tokens(captions, *, length, pad_token_id):
    return np.full((len(captions), length), pad_token_id)
