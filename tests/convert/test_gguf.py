"""GGUF files: stable-diffusion.cpp's are read, ours hold the same blocks, and hostile ones are refused."""

import pathlib
import re
import struct

import numpy as np
import pytest
import small_models
from flax.traverse_util import flatten_dict

import sdjax
from sdjax import convert
from sdjax.convert import CheckpointError
from sdjax.nn.quantised.blocks import blocks_of, bytes_of_blocks
from sdjax.nn.quantised.kinds import KINDS
from sdjax.nn.quantised.leaf import is_quantised
from sdjax.scripts.main import main

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def tensor(name="a", sizes=(4, 2), number=0, offset=0):
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, number, offset)


def gguf(values=(), tensors=None, data=bytes(64), *, version=3, counts=None):
    """Returns a file: by default one float32 tensor [2, 4]."""
    tensors = (tensor(),) if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(values))))
    head += b"".join([*values, *tensors])
    return head + bytes(-len(head) % 32) + data


def refusal(tmp_path, data):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        convert.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_stable_diffusion_cpps_file_is_read():
    """The files were made by its convert mode: a.safetensors, and --type q4_K of it."""
    ours = convert.read(GOLDEN / "stable_diffusion_cpp.safetensors")
    theirs = convert.read(GOLDEN / "stable_diffusion_cpp_q4_k.gguf")
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert theirs[name].shape == array.shape
        error = np.abs(theirs[name] - array.astype(np.float32)).max()
        assert error <= (0.3 if name.endswith("a.weight") else 0.001)  # the norm's weights are quantised too
    kinds = {one.name.rpartition("diffusion_model.")[2]: one.type_name for one in theirs.lazy()}
    assert kinds == {"a.bias": "float16", "a.weight": "q4_k", "b.weight": "float16", "norm.weight": "q4_k"}


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "v1.safetensors"
    config, tensors = small_models.model("v1")
    return config, small_models.write(path, tensors)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
def test_a_model_is_written_in_blocks_and_loaded_so(kind, v1, tmp_path):
    config, source = v1
    target = tmp_path / "a.gguf"
    convert.convert(source, target, config=config, quantise=kind)
    found = {one.name: one for one in convert.read(target).lazy()}
    before = convert.read(source)
    assert set(found) == set(before)
    matrices = [name for name, one in found.items() if one.type_name == kind]
    assert matrices
    assert {len(found[name].shape) for name in matrices} == {2}
    for name, one in found.items():
        step = 1 / 60 if kind == "q8_0" else 2 / 15  # of the largest number, at most
        limit = step * np.abs(before[name]).max() if name in matrices else 1e-3 * np.abs(before[name]).max()
        np.testing.assert_allclose(one.read(), before[name], atol=limit, rtol=1e-3, err_msg=name)
    pipe = sdjax.load(target, config=config)
    leaves = {path: leaf for path, leaf in flatten_dict(pipe.params, sep="/").items() if is_quantised(leaf)}
    assert {leaf.kind for leaf in leaves.values()} == {kind}
    path = "unet/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert np.array_equal(np.asarray(leaves[path]), found[name].read().T)  # bit by bit what the file says
    pipe.save(tmp_path / "again.gguf")
    again = convert.read(tmp_path / "again.gguf")
    assert all(np.array_equal(again[name], found[name].read()) for name in matrices)
    plain = sdjax.load(target, config=config, quantise="no")
    assert not any(map(is_quantised, flatten_dict(plain.params).values()))
    assert np.array_equal(flatten_dict(plain.params, sep="/")[path], np.asarray(leaves[path]))


def test_loading_quantises_as_converting_does(v1, tmp_path):
    config, source = v1
    convert.convert(source, tmp_path / "a.gguf", config=config, quantise="q5_0")
    there, here = (
        flatten_dict(sdjax.load(path, config=config, quantise=kind).params, sep="/")
        for path, kind in ((tmp_path / "a.gguf", "auto"), (source, "q5_0"))
    )
    same = [path for path, leaf in there.items() if is_quantised(leaf)]
    for path in same:
        mine, other = (bytes_of_blocks(KINDS["q5_0"], blocks_of(leaf)) for leaf in (there[path], here[path]))
        assert np.array_equal(mine, other), path
    kept = [path for path, leaf in here.items() if is_quantised(leaf) and path not in same]
    assert all("conv" in path or "proj_" in path for path in kept)  # float16 in a file
    assert kept


def test_the_command_quantises_and_shows_it(v1, tmp_path, capsys):
    _, source = v1
    out = tmp_path / "a.gguf"
    assert main(["convert", str(source), str(tmp_path / "b.gguf"), "--quantise", "int8"]) == 2
    assert "int8 is for a file in .safetensors; the gguf format was asked for" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "folder"), "--quantise", "q8_0"]) == 2
    said = capsys.readouterr().err
    assert "q8_0 is for a file in .gguf; the native format was asked for: name a file that ends so\n" in said
    assert main(["convert", str(source), str(tmp_path / "b.safetensors"), "--quantise", "q4_0"]) == 2
    assert "name a file that ends so, or quantise to int8 or fp8\n" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
    convert.convert(GOLDEN.parents[1] / "sdjax" / "assets" / "builtin", out, quantise="q8_0")
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    assert "gguf, ldm layout" in said
    assert "78 q8_0" in said


def test_shapes_that_a_tool_changed_come_back(tmp_path):
    key = text("comfy.gguf.orig_shape.a") + struct.pack("<IIQ4i", 9, 5, 4, 8, 1, 2, 2)
    blocks = np.zeros((1, 34), np.uint8)
    blocks[0, :2] = np.array([0.5], "<f2").view(np.uint8)
    blocks[0, 2:] = np.arange(32)
    (tmp_path / "a.gguf").write_bytes(gguf([key], [tensor(sizes=(32, 1), number=8)], blocks.tobytes()))
    array = convert.read(tmp_path / "a.gguf")["a"]
    assert array.shape == (8, 1, 2, 2)
    assert np.array_equal(array.reshape(-1), np.arange(32) / 2)


HOSTILE = {
    "an old version": (gguf(version=1), r"version 1, or big-endian; known are 2 and 3"),
    "big-endian": (gguf(version=3 << 24), r"or big-endian"),
    "no tensors": (gguf(tensors=()), r"0 tensors"),
    "too many tensors": (gguf(counts=(2**60, 0)), r"1152921504606846976 tensors and 0 values; a model has up to 10000"),
    "too many values": (gguf(counts=(1, 2**60)), r"up to 10000 values"),
    "tensors that are not there": (gguf(counts=(9, 0)), r"names are 1 to 500 printable characters"),
    "a long key": (gguf([struct.pack("<Q", 2**62)]), r"a key says it has 4611686018427387904 bytes; it may"),
    "a long text": (gguf([text("k") + struct.pack("<IQ", 8, 2**40)]), r"the value of 'k' says it has 10995"),
    "a value twice": (gguf([text("k") + struct.pack("<IB", 0, 1)] * 2), r"has 'k' twice"),
    "an unknown type": (gguf([text("k") + struct.pack("<I", 77)]), r"of the unknown type 77"),
    "text that is none": (gguf([text("k") + struct.pack("<I", 8) + text(b"\xff\xfe")]), r"not text in UTF-8"),
    "a long array": (gguf([text("k") + struct.pack("<IIQ", 9, 12, 2**61)]), r"cut short|bytes of GGUF headers"),
    "an array of many texts": (gguf([text("k") + struct.pack("<IIQ", 9, 8, 2**40)]), r"values of GGUF headers"),
    "arrays in arrays": (gguf([text("k") + struct.pack("<IIQ", 9, 9, 2)]), r"array of arrays"),
    "an alignment of 0": (gguf([text("general.alignment") + struct.pack("<II", 4, 0)]), r"up to 65536; got '0'"),
    "an alignment of 33": (gguf([text("general.alignment") + struct.pack("<II", 4, 33)]), r"power of two"),
    "a text for an alignment": (gguf([text("general.alignment") + struct.pack("<I", 8) + text("x")]), r"power of two"),
    "five axes": (gguf(tensors=[tensor(sizes=(1,) * 5)]), r"has 5 axes; ggml's tensors have up to 4"),
    "a huge axis": (gguf(tensors=[tensor(sizes=(2**63, 2))]), r"more than \d+ elements"),
    "axes that overflow": (gguf(tensors=[tensor(sizes=(2**40, 2**40))]), r"more than \d+ elements"),
    "a type that is gone": (gguf(tensors=[tensor(number=4)]), r"ggml's type 4; known are f32, f16, bf16, q8_0"),
    "rows that blocks do not divide": (gguf(tensors=[tensor(number=8)]), r"rows of 4, which blocks of 32 \(q8_0\)"),
    "a place beyond the end": (gguf(tensors=[tensor(offset=2**40)]), r"cut short"),
    "a place that is not aligned": (gguf(tensors=[tensor(offset=4)]), r"is not aligned"),
    "tensors that overlap": (gguf(tensors=[tensor("a"), tensor("b")]), r"'b' overlaps"),
    "a name twice": (gguf(tensors=[tensor("a"), tensor("a", offset=32)]), r"names 'a' twice"),
    "a name of control characters": (gguf(tensors=[tensor("a\n")]), r"printable"),
    "a shape of other size": (
        gguf([text("comfy.gguf.orig_shape.a") + struct.pack("<IIQ2i", 9, 5, 2, 3, 3)]), r"has 8 elements, and its shape"
    ),
    "a negative shape": (
        gguf([text("comfy.gguf.orig_shape.a") + struct.pack("<IIQ2i", 9, 5, 2, -2, -4)]), r"no shape"
    ),
    "cut in its header": (gguf()[:30], r"refused at byte 24: the file ends there"),
    "cut in its data": (gguf()[:-40], r"would end at byte"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(what, tmp_path):
    data, reason = HOSTILE[what]
    assert re.search(reason, refusal(tmp_path, data))


def test_every_cut_of_a_file_is_refused(tmp_path):
    data = (GOLDEN / "stable_diffusion_cpp_q4_k.gguf").read_bytes()
    for length in (*range(0, 260, 7), len(data) - 40):
        refusal(tmp_path, data[:length])


def test_every_changed_byte_of_a_header_is_read_or_refused(tmp_path):
    data = bytearray((GOLDEN / "stable_diffusion_cpp_q4_k.gguf").read_bytes())
    path = tmp_path / "a.gguf"
    for place in range(4, 300, 5):
        for value in (0, 255):
            changed = bytearray(data)
            changed[place] = value
            path.write_bytes(changed)
            try:
                file = convert.read(path)
            except CheckpointError:
                continue
            for one in file.lazy():
                assert one.read().shape == one.shape
