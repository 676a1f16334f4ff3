"""Checkpoints whose pickle is well-formed and lies about its tensors: values for checkpoint_writer, with the reason."""

import dataclasses

import numpy as np
import pickle_writer as pickles

NUMBERS = np.arange(12, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Promised:
    """The data of a storage that says it has more elements than bytes."""

    size: int
    data: bytes = b"\0" * 64
    dtype: np.dtype = np.dtype(np.float32)

    def tobytes(self) -> bytes:
        return self.data


def tensor(shape, *, offset=0, strides=None, storage=None):
    return pickles.Tensor(storage or pickles.Storage("0", NUMBERS), shape, offset, strides or ())


def named(value, name="x"):
    return {"state_dict": {name: value}}


def stored_as(*identity, legacy):
    """A tensor whose storage has this persistent id."""
    if legacy:
        identity += (None,)
    args = (pickles.Persistent(identity), 0, (1,), (1,), False, pickles.ordered())
    return pickles.Call(pickles.Global("torch._utils", "_rebuild_tensor_v2"), args)


OUTSIDE, MALFORMED = "lies outside its storage of 12", "malformed shape or strides"
GIANT = 2**20
FLOATS = pickles.Global("torch", "FloatStorage")

# Tensors of a storage of twelve elements.
SHAPES = {
    "one element too many": (tensor((13,), strides=(1,)), OUTSIDE),
    "one element too far": (tensor((12,), offset=1, strides=(1,)), OUTSIDE),
    "offset at the end": (tensor((), offset=12), OUTSIDE),
    "empty beyond the end": (tensor((0,), offset=13, strides=(1,)), OUTSIDE),
    "offset of 2**62": (tensor((1,), offset=2**62, strides=(1,)), OUTSIDE),
    "offset of 2**64": (tensor((1,), offset=2**64, strides=(1,)), "malformed arguments"),
    "negative offset": (tensor((1,), offset=-1, strides=(1,)), "malformed arguments"),
    "offset that is a fraction": (tensor((1,), offset=0.5, strides=(1,)), "malformed arguments"),
    "stride beyond the end": (tensor((3, 4), strides=(5, 1)), OUTSIDE),
    "stride of 2**62": (tensor((2,), strides=(2**62,)), OUTSIDE),
    "negative stride": (tensor((2,), offset=4, strides=(-1,)), MALFORMED),
    "negative size": (tensor((-1,), strides=(1,)), MALFORMED),
    "two negative sizes": (tensor((-2, -3), strides=(3, 1)), MALFORMED),
    "size that is a fraction": (tensor((2.0,), strides=(1,)), MALFORMED),
    "size that is a truth value": (tensor((True,), strides=(1,)), MALFORMED),
    "sizes in a list": (tensor([3, 4], strides=(4, 1)), MALFORMED),
    "sizes that are None": (tensor(None, strides=(4, 1)), MALFORMED),
    "more sizes than strides": (tensor((3, 4), strides=(1,)), MALFORMED),
    "17 axes": (tensor((1,) * 17, strides=(1,) * 17), MALFORMED),
    "100,000 axes": (tensor((1,) * 100_000, strides=(1,) * 100_000), MALFORMED),
    "stride 0 of a million": (tensor((10**6,), strides=(0,)), OUTSIDE),
    "stride 0 of 2**46": (tensor((2**23, 2**23), strides=(0, 0)), OUTSIDE),
    "stride 0 of 2**63": (tensor((2**62, 2), strides=(0, 0)), "more than 140737488355328 elements"),
    "product beyond 64 bits": (tensor((2**32, 2**32, 2**32), strides=(0, 0, 0)), "more than 140737488355328"),
    "product beyond 64 bits times 0": (tensor((0, 2**62, 2**62), strides=(1, 1, 1)), "more than 140737488355328"),
}

# What stands where "storage", a class, a key, a device and a number of elements should.
STORAGES = {
    "storage of objects": (("storage", pickles.Global("torch", "Storage"), "0", "cpu", 1), "of type torch.Storage"),
    "quantized storage": (("storage", pickles.Global("torch", "QInt8Storage"), "0", "cpu", 1), "QInt8Storage; known"),
    "untyped storage": (
        ("storage", pickles.Global("torch.storage", "UntypedStorage"), "0", "cpu", 1),
        "UntypedStorage; known",
    ),
    "storage class of another module": (("storage", pickles.Global("x", "FloatStorage"), "0", "cpu", 1), "type x"),
    "storage without a class": (("storage", "FloatStorage", "0", "cpu", 1), "a storage of type none"),
    "key that is a number": (("storage", FLOATS, 0, "cpu", 1), "key, device or size is malformed"),
    "device that is a number": (("storage", FLOATS, "0", 0, 1), "key, device or size is malformed"),
    "negative elements": (("storage", FLOATS, "0", "cpu", -1), "key, device or size is malformed"),
    "2**70 elements": (("storage", FLOATS, "0", "cpu", 2**70), "key, device or size is malformed"),
    "key of another folder": (("storage", FLOATS, "../data.pkl", "cpu", 1), "storage that is not in the arch|list of"),
    "key that is nowhere": (("storage", FLOATS, "7", "cpu", 1), "storage that is not in the archive|list of storages"),
}

VALUES = {
    **{name: (named(value), reason) for name, (value, reason) in SHAPES.items()},
    "storage of 4 TB": (
        named(tensor((1,), strides=(1,), storage=pickles.Storage("0", Promised(2**40)))),
        "has 64 bytes where 1099511627776 elements|would end at byte",
    ),
    "storage of 2**62 elements": (
        named(tensor((1,), strides=(1,), storage=pickles.Storage("0", Promised(2**62)))),
        "has 64 bytes where|would end at byte",
    ),
    "storage one element short": (
        named(tensor((17,), strides=(1,), storage=pickles.Storage("0", Promised(17)))),
        "has 64 bytes where 17 elements|would end at byte",
    ),
    "two descriptions of one storage": (
        {
            "a": tensor((1,), strides=(1,)),
            "b": tensor((1,), strides=(1,), storage=pickles.Storage("0", NUMBERS.astype(np.float16))),
        },
        "one storage in two ways",
    ),
    "a thousand tensors of one storage": (
        {
            str(i): tensor((GIANT,), strides=(1,), storage=pickles.Storage("0", np.zeros(GIANT, np.uint8)))
            for i in range(1000)
        },
        "they share their data",
    ),
    "20,000 tensors": (
        {"x": [tensor((1,), strides=(1,)) for _ in range(20_000)]},
        "more than 10000 tensors|more than 300000 instructions",
    ),
    "hooks": (
        named(
            pickles.Call(
                pickles.Global("torch._utils", "_rebuild_parameter"), (tensor((1,), strides=(1,)), True, {1: 2})
            )
        ),
        "with hooks, which are code",
    ),
    "a name with a line feed": (named(tensor((1,), strides=(1,)), "a\nb"), r"'a\\nb' names a tensor"),
    "a name that hides": (named(tensor((1,), strides=(1,)), "a\u202eb\x1b[2J"), r"names a tensor; names are 1 to 500"),
    "no name": (named(tensor((1,), strides=(1,)), ""), "'' names a tensor"),
    "a name of 100,000 letters": (named(tensor((1,), strides=(1,)), "x" * 100_000), r"'x+\.\.\.' names a tensor"),
    "a number for a name": (named(tensor((1,), strides=(1,)), 7), "7 names a tensor"),
    "a class for a name": (named(tensor((1,), strides=(1,)), pickles.Global("a", "b")), "names a tensor"),
    "a class beside the tensors": (
        {"state_dict": {"x": tensor((1,), strides=(1,)), "y": pickles.Global("os", "system")}},
        "entry y of its state_dict is no tensor",
    ),
    "state_dict that is a list": ({"state_dict": [tensor((1,), strides=(1,))]}, "its state_dict is not a dictionary"),
    "state_dict that is a tensor": ({"state_dict": tensor((1,), strides=(1,))}, "its state_dict is not a dictionary"),
    "a tensor alone": (tensor((1,), strides=(1,)), "no dictionary of tensors"),
    "no tensors": ({"state_dict": {}, "epoch": 1}, "there are no tensors"),
    "metadata with a name that hides": (
        {"state_dict": {"x": tensor((1,), strides=(1,))}, "a\x1b[2J": 1},
        r"names are 1 to 500 printable",
    ),
}
