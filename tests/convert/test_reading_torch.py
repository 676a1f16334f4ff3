"""Our reader agrees with torch.load, and the tests' own writer agrees with torch.save."""

import collections
import io
import zipfile

import checkpoint_writer as writer
import numpy as np
import pickle_writer as pickles
import pytest

from sdjax.convert.containers import reading
from sdjax.convert.errors import CheckpointError

pytestmark = pytest.mark.torch

DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def bits(tensor, torch):
    """The elements of a torch tensor as numpy bytes, row-major."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_saved_is_read_bit_for_bit(tmp_path, torch, zipped):
    base = torch.arange(24, dtype=torch.float32)
    tensors = {name: (torch.randn(3, 5) * 9).to(getattr(torch, name)) for name in DTYPES}
    tensors |= {
        "transposed": base.view(4, 6).T,
        "part": base[5:11],
        "strided": base[1::5],
        "0-d": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "tied": base,
    }
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    tensors |= model.state_dict()
    state = collections.OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata
    value = {"state_dict": state, "epoch": 3, "score": np.float64(0.5), "best": np.float32(2), "lr": [1e-4, (1, 2)]}
    torch.save(value, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    with reading.read(tmp_path / "x.ckpt") as file:
        assert list(file) == list(tensors)
        for name, tensor in tensors.items():
            assert file[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
            assert file[name].shape == tuple(tensor.shape)
            assert np.ascontiguousarray(file[name]).tobytes() == bits(tensor, torch), name
        assert file.metadata == {"epoch": "3", "score": "0.5", "best": "2.0"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_can_be_asked_for_is_read(tmp_path, torch, protocol):
    torch.save({"x": torch.arange(3)}, tmp_path / "x.ckpt", pickle_protocol=protocol)
    with reading.read(tmp_path / "x.ckpt") as file:
        np.testing.assert_array_equal(file["x"], [0, 1, 2])


def test_optimizer_and_scheduler_states_are_passed_over(tmp_path, torch):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    value = {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
    }
    torch.save(value, tmp_path / "x.ckpt")
    with reading.read(tmp_path / "x.ckpt") as file:
        assert set(file) == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse")
def test_what_is_no_plain_tensor_is_refused(tmp_path, torch):
    quantized = torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)
    for value, reason in {
        quantized: r"_rebuild_qtensor|QInt8Storage",
        torch.randn(3).to_sparse(): r"_get_layout|_rebuild_sparse_tensor",
        torch.randn(3, dtype=torch.complex64): r"ComplexFloatStorage",
        torch.nn.Linear(2, 2): r"may only rebuild tensors and plain values",
    }.items():
        torch.save({"x": value}, tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match=reason):
            reading.read(tmp_path / "x.ckpt")


def test_the_writer_of_these_tests_writes_what_torch_reads(torch):
    arrays = writer.some_arrays()
    for data in (writer.torch_zip(pickles.tensors(arrays)), writer.torch_legacy(pickles.tensors(arrays))):
        loaded = torch.load(io.BytesIO(data), weights_only=True)
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            assert bits(loaded[name], torch) == array.tobytes(), name


def test_the_writers_archive_has_torchs_layout(torch):
    out = io.BytesIO()
    torch.save({"x": torch.zeros(5)}, out)
    theirs = zipfile.ZipFile(out)
    ours = zipfile.ZipFile(io.BytesIO(writer.torch_zip(pickles.tensors({"x": np.zeros(5, np.float32)}))))
    names = {info.filename for info in theirs.infolist()}
    assert {info.filename for info in ours.infolist()} == names
    for name in names:
        a, b = theirs.getinfo(name), ours.getinfo(name)
        assert (a.compress_type, a.flag_bits & 0x800) == (b.compress_type, b.flag_bits & 0x800), name
        # torch aligns each member's data to 64 bytes by an extra field of the letters FB
        for archive, info in ((theirs, a), (ours, b)):
            header = info.header_offset
            archive.fp.seek(header + 26)
            lengths = archive.fp.read(4)
            start = header + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            assert start % 64 == 0, name
