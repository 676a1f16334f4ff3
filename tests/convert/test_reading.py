"""Honest checkpoints in every form that released files take, written without torch by checkpoint_writer."""

import os
import sys

import checkpoint_writer as writer
import numpy as np
import pickle_writer as pickles
import pytest

from sdjax.convert.containers import reading
from sdjax.convert.errors import CheckpointError

ARRAYS = writer.some_arrays()


def save(path, data):
    path.write_bytes(data)
    return path


def assert_same(tensors, arrays):
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert tensors[name].dtype == array.dtype, name
        assert tensors[name].shape == array.shape, name
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


FORMS = {
    "zip": ("ckpt-zip", writer.torch_zip, {}),
    "zip-without-newer-members": ("ckpt-zip", writer.torch_zip, {"old": True}),
    "zip-unpadded": ("ckpt-zip", writer.torch_zip, {"pad": False}),
    "zip-without-descriptors": ("ckpt-zip", writer.torch_zip, {"descriptors": False}),
    "zip-without-zip64": ("ckpt-zip", writer.torch_zip, {"zip64": False}),
    "zip-other-root": ("ckpt-zip", writer.torch_zip, {"root": "sd-v1-4 模型"}),
    "legacy": ("ckpt-legacy", writer.torch_legacy, {}),
    "legacy-called-big-endian": ("ckpt-legacy", writer.torch_legacy, {"little_endian": False}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrap", ["training", "top level", "state_dict"])
def test_torch_checkpoints_give_the_arrays_that_were_written(tmp_path, form, wrap):
    kind, write, how = FORMS[form]
    tensors = pickles.tensors(ARRAYS)
    value = {
        "training": writer.training_checkpoint(ARRAYS),
        "top level": {**tensors, "global_step": 7},
        "state_dict": {"state_dict": tensors, "global_step": 7},
    }[wrap]
    with reading.read(save(tmp_path / "any.name", write(value, **how))) as file:
        assert file.format == kind
        assert file.shapes == {name: array.shape for name, array in ARRAYS.items()}
        assert file.dtypes == {name: array.dtype for name, array in ARRAYS.items()}
        assert_same(dict(file), ARRAYS)
    expected = {"global_step": "470000" if wrap == "training" else "7"}
    if wrap == "training":  # the double whose bytes are 0 0 0 0 0 0 0 40 is 2
        expected |= {"epoch": "3", "pytorch-lightning_version": "1.4.2", "val_loss": "2.0"}
    assert file.metadata == expected


@pytest.mark.parametrize("align", [1, 8])
def test_safetensors_gives_the_arrays_that_were_written(tmp_path, align):
    # align 1 leaves the data where the header ends, as old writers did: unaligned arrays are copied, not refused
    notes = {"format": "pt", "modelspec.title": "ein Modell\n\u00fcber \U0001f9ea"}
    path = save(tmp_path / "model.ckpt", writer.safetensors_file(ARRAYS, notes, align=align))
    with reading.read(path) as file:
        assert (file.format, file.metadata) == ("safetensors", notes)
        assert file.shapes == {name: array.shape for name, array in ARRAYS.items()}
        assert_same(dict(file), ARRAYS)
        assert all(array.flags.aligned for array in file.values())


def test_safetensors_written_by_the_library_are_read(tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}.{i}": rng.integers(0, 2, (i, 3)).astype(kind)
        for i in range(3)
        for kind in ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool")
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"a": 'quotes " and \\ {braces}'})
    with reading.read(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"a": 'quotes " and \\ {braces}'}
        assert_same(dict(file), arrays)


def test_float8_is_read_as_ml_dtypes_has_it(tmp_path):
    import ml_dtypes

    values = np.array([0.5, -1.75, 448.0], np.float32)
    arrays = {kind: values.astype(getattr(ml_dtypes, kind)) for kind in ("float8_e4m3fn", "float8_e5m2")}
    with reading.read(save(tmp_path / "x.safetensors", writer.safetensors_file(arrays))) as file:
        assert_same(dict(file), arrays)
        np.testing.assert_array_equal(file["float8_e4m3fn"].astype(np.float32), values)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_views_of_one_storage_are_read_with_their_offsets_and_strides(tmp_path, form):
    base = np.arange(24, dtype=np.float32)
    storage = pickles.Storage("0", base)
    value = {
        "whole": pickles.Tensor(storage, (24,)),
        "part": pickles.Tensor(storage, (2, 3), offset=5),
        "transposed": pickles.Tensor(storage, (3, 2), offset=5, strides=(1, 3)),
        "every third": pickles.Tensor(storage, (8,), strides=(3,)),
        "scalar": pickles.Tensor(storage, (), offset=23),
        "empty at the end": pickles.Tensor(storage, (0, 4), offset=24),
        "expanded": pickles.Tensor(storage, (1, 24), strides=(0, 1)),  # position_ids, stride of an axis of 1
        "parameter": pickles.Tensor(storage, (4,), offset=2, parameter=True),
    }
    part = base[5:11].reshape(2, 3)
    expected = {
        "whole": base,
        "part": part,
        "transposed": part.T,
        "every third": base[::3],
        "scalar": base[23],
        "empty at the end": np.zeros((0, 4), np.float32),
        "expanded": base[None],
        "parameter": base[2:6],
    }
    with reading.read(save(tmp_path / "x.ckpt", FORMS[form][1](value))) as file:
        assert_same(dict(file), expected)
        # a legacy file's tensors lie where its pickles end, mostly unaligned, and are copied then
        assert np.shares_memory(file["whole"], file["part"]) == (form == "zip")


def test_legacy_view_metadata_selects_a_part_of_the_root_storage(tmp_path):
    base = np.arange(10, dtype=np.int64)
    value = {"x": pickles.Tensor(pickles.Storage("17", base, view=("18", 4, 5)), (2, 2), offset=1)}
    with reading.read(save(tmp_path / "x.ckpt", writer.torch_legacy(value))) as file:
        np.testing.assert_array_equal(file["x"], base[5:9].reshape(2, 2))


def test_one_storage_may_have_many_names(tmp_path):
    tensor = pickles.Tensor(pickles.Storage("0", np.ones(4, np.float32)), (4,))
    with reading.read(save(tmp_path / "x.ckpt", writer.torch_zip({"a": tensor, "b": tensor}))) as file:
        assert_same(dict(file), {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)})


@pytest.mark.parametrize("data", [writer.torch_zip(pickles.tensors(ARRAYS)), writer.safetensors_file(ARRAYS)])
def test_arrays_are_read_only_views_that_outlive_the_file(tmp_path, data):
    file = reading.read(save(tmp_path / "x.ckpt", data))
    name = "model.diffusion_model.input_blocks.0.0.weight"
    array = file[name]
    assert array.base is not None
    assert not array.flags.writeable
    file.close()
    np.testing.assert_array_equal(array, ARRAYS[name])  # ends the process if the map went away under it
    with pytest.raises(CheckpointError, match=r"x\.ckpt: the file was closed; read it again"):
        file[name]


def test_legacy_arrays_outlive_the_file_too(tmp_path):
    with reading.read(save(tmp_path / "x.ckpt", writer.torch_legacy(pickles.tensors(ARRAYS)))) as file:
        arrays = dict(file)
    assert_same(arrays, ARRAYS)


def test_released_tensors_are_read_again_from_the_file(tmp_path):
    values = np.arange(2**20, dtype=np.float32)
    for write in (writer.torch_zip, writer.torch_legacy):
        with reading.read(save(tmp_path / "x.ckpt", write(pickles.tensors({"x": values})))) as file:
            array = file["x"]
            file.release("x")
            np.testing.assert_array_equal(array, values)
            np.testing.assert_array_equal(file["x"], values)


def test_only_the_tensors_asked_for_are_read(tmp_path):
    # One storage is damaged: names, shapes and all other tensors are there, that one is refused when it is read.
    data = bytearray(writer.torch_zip(pickles.tensors({"good": np.arange(50.0), "bad": np.full(50, 7.0)})))
    at = data.index(np.full(50, 7.0).tobytes())
    data[at] ^= 1
    with reading.read(save(tmp_path / "x.ckpt", bytes(data))) as file:
        assert file.shapes == {"good": (50,), "bad": (50,)}
        assert "bad" in file
        np.testing.assert_array_equal(file["good"], np.arange(50.0))
        for _ in range(2):  # and stays refused
            with pytest.raises(CheckpointError, match=r"x\.ckpt: the checksum of 'archive/data/1' is wrong"):
                file["bad"]


FULL_SIZE = 4 * 2**30


def sparse_zip(path, tensors):
    each = FULL_SIZE // tensors // 4
    values = {
        f"model.diffusion_model.some.block.{i}.of.usual.depth.weight": pickles.Tensor(
            pickles.Storage(str(i), np.broadcast_to(np.float32(0), each)), (each,)
        )
        for i in range(tensors)
    }
    moments = {
        i: {"step": i, "exp_avg": t, "exp_avg_sq": pickles.Tensor(t.storage, (each,), strides=(1,))}
        for i, t in enumerate(values.values())
    }
    pickle, _ = pickles.pickled({"state_dict": pickles.StateDict(values), "optimizer_states": [{"state": moments}]})
    members = [("full/data.pkl", pickle), *((f"full/data/{i}", writer.Hole(4 * each)) for i in range(tensors))]
    with open(path, "wb") as out:
        writer.write_zip(out, members)


def sparse_safetensors(path, tensors):
    each = FULL_SIZE // tensors // 4 * 4
    entries = {
        f"model.block.{i}.weight": {"dtype": "F32", "shape": [each // 4], "data_offsets": [i * each, (i + 1) * each]}
        for i in range(tensors)
    }
    with open(path, "wb") as out:
        out.write(writer.safetensors_header(entries))
        out.truncate(out.tell() + tensors * each)


def calls_to_open(path, tensors):
    """Returns the number of calls of functions that opening a file of so many tensors takes."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        file = reading.read(path)
    finally:
        sys.setprofile(None)
    with file:
        assert len(file) == tensors
        assert file.nbytes > 2**32 - 2**20
    return calls


@pytest.mark.parametrize("write", [sparse_zip, sparse_safetensors])
def test_full_size_training_checkpoints_open_in_work_that_grows_with_their_tensors_alone(tmp_path, write):
    # 1,900: as many tensors as SD 1 has with EMA weights, and as many again in an optimizer's two moments.
    for tensors in 475, 1900:
        write(tmp_path / f"{tensors}", tensors)
        assert os.path.getsize(tmp_path / f"{tensors}") > 2**32 - 2**20
    assert calls_to_open(tmp_path / "1900", 1900) < 5 * calls_to_open(tmp_path / "475", 475)


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
def test_links_are_followed_as_the_hub_cache_needs(tmp_path):
    save(tmp_path / "blob", writer.torch_zip(pickles.tensors(ARRAYS)))
    (tmp_path / "model.ckpt").symlink_to("blob")
    with reading.read(tmp_path / "model.ckpt") as file:
        assert_same(dict(file), ARRAYS)


def test_single_files_have_no_variants(tmp_path):
    path = save(tmp_path / "x.ckpt", writer.torch_zip(pickles.tensors(ARRAYS)))
    with pytest.raises(CheckpointError, match="only folders have variants"):
        reading.read(path, variant="fp16")
