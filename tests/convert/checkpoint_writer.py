"""Checkpoints written byte by byte in the forms that torch.save uses, without torch: for honest and hostile files.

The archive's layout is that of torch's zip writer (local headers without sizes, data descriptors, `FB` padding to 64
bytes, zip64 end records); the pickles are `pickle_writer`'s. That they are torch's own is checked against torch in
test_reading_torch.py.
"""

import dataclasses
import io
import json
import struct
import zlib
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from pickle_writer import Global, StateDict, numpy_scalar, pickled, tensors

SAFETENSORS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


@dataclasses.dataclass(frozen=True)
class Hole:
    """Zeros of a sparse file, which take no time to write; their checksum is left 0."""

    size: int

    def __len__(self) -> int:
        return self.size


def zip_archive(members: list[tuple[str, bytes]], **how: Any) -> bytes:
    """Returns the archive that `write_zip` writes."""
    out = io.BytesIO()
    write_zip(out, members, **how)
    return out.getvalue()


def write_zip(
    out: BinaryIO,
    members: list[tuple[str, bytes | Hole]],
    *,
    pad: bool = True,
    descriptors: bool = True,
    zip64: bool = True,
    change: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Writes an archive of stored members as torch does.

    `change` gives, by member name, other values for fields of its directory entry: crc, size, packed, method, flags,
    header, name (bytes), extra (bytes); `local` for a dictionary of the same kind for its local header.
    """
    central = bytearray()
    for name, data in members:
        here = out.tell()
        fields = {
            "name": name.encode(),
            "crc": 0 if isinstance(data, Hole) else zlib.crc32(data),
            "size": len(data),
            "packed": len(data),
            "method": 0,
            "flags": 0x808 if descriptors and data else 0x800,
            "header": here,
            "extra": b"",
            **((change or {}).get(name) or {}),
        }
        local = {**fields, **fields.get("local", {})}
        blank = local["flags"] & 8
        extra = b""
        if pad:
            space = -(here + 30 + len(local["name"]) + 4) % 64
            extra = b"FB" + struct.pack("<H", space) + b"Z" * space
        header = struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            0,
            local["flags"],
            local["method"],
            0,
            0,
            0 if blank else local["crc"],
            0 if blank else local["packed"],
            0 if blank else local["size"],
            len(local["name"]),
            len(extra),
        )
        out.write(header + local["name"] + extra)
        if isinstance(data, Hole):
            out.seek(len(data), 1)
        else:
            out.write(data)
        if blank:
            out.write(struct.pack("<4s3L", b"PK\x07\x08", local["crc"], local["packed"], local["size"]))
        place = fields["header"]
        wide = fields["extra"]
        if place >= 0xFFFFFFFF:
            place, wide = 0xFFFFFFFF, wide + struct.pack("<2HQ", 1, 8, place)
        central += struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            0,
            0,
            fields["flags"],
            fields["method"],
            0,
            0,
            fields["crc"],
            fields["packed"],
            fields["size"],
            len(fields["name"]),
            len(wide),
            0,
            0,
            0,
            0,
            place,
        )
        central += fields["name"] + wide
    start, count = out.tell(), len(members)
    out.write(central)
    if zip64:
        end = out.tell()
        out.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0x31E, 45, 0, 0, count, count, len(central), start))
        out.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
    short = (min(count, 0xFFFF), min(count, 0xFFFF), len(central), min(start, 0xFFFFFFFF))
    out.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *short, 0))


def torch_members(value: Any, *, root: str = "archive", old: bool = False) -> list[tuple[str, bytes]]:
    """Returns the members of the archive that torch.save writes for a value; `old` without those it did not have."""
    pickle, storages = pickled(value)
    members = [(f"{root}/data.pkl", pickle)]
    if not old:
        members += [(f"{root}/.format_version", b"1"), (f"{root}/.storage_alignment", b"64")]
        members += [(f"{root}/byteorder", b"little")]
    members += [(f"{root}/data/{key}", storage.data.tobytes()) for key, storage in storages.items()]
    members += [(f"{root}/version", b"3\n")]
    if not old:
        members += [(f"{root}/.data/serialization_id", b"0" * 40)]
    return members


def torch_zip(value: Any, *, root: str = "archive", old: bool = False, **how: Any) -> bytes:
    return zip_archive(torch_members(value, root=root, old=old), **how)


LEGACY_HEAD = (
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the magic number
    b"\x80\x02M\xe9\x03."  # protocol 1001
)


def torch_legacy(value: Any, *, little_endian: bool = True, tail: bytes = b"") -> bytes:
    """Returns the file that torch.save wrote before 1.6."""
    pickle, storages = pickled(value, legacy=True)
    sizes = {"short": 2, "int": 4, "long": 4}
    machine, _ = pickled({"protocol_version": 1001, "little_endian": little_endian, "type_sizes": sizes})
    keys = sorted(storages)
    out = LEGACY_HEAD + machine + pickle + pickled(keys)[0]
    for key in keys:
        out += struct.pack("<q", storages[key].data.size) + storages[key].data.tobytes()
    return out + tail


def safetensors_header(entries: Any, metadata: dict[str, str] | None = None) -> bytes:
    """Returns length and header; `entries` is a dictionary, or the header's own text."""
    if isinstance(entries, dict):
        entries = json.dumps({**({"__metadata__": metadata} if metadata else {}), **entries}).encode()
    return struct.pack("<Q", len(entries)) + entries


def safetensors_file(arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None, *, align: int = 8) -> bytes:
    entries: dict[str, Any] = {}
    data = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        entries[name] = {
            "dtype": SAFETENSORS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    head = safetensors_header(entries, metadata)[8:]
    head += b" " * (-len(head) % align)
    return safetensors_header(head) + data


def some_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of the dtypes and ranks that checkpoints hold: 0-d, empty and four axes among them."""
    rng = np.random.default_rng(seed)
    return {
        "model.diffusion_model.input_blocks.0.0.weight": rng.standard_normal((3, 2, 3, 3), np.float32),
        "model.diffusion_model.input_blocks.0.0.bias": rng.standard_normal(3, np.float32),
        "first_stage_model.conv.weight": rng.standard_normal((2, 5)).astype(np.float16),
        "cond_stage_model.weight": rng.standard_normal((4, 3)).astype(ml_dtypes.bfloat16),
        "cond_stage_model.position_ids": np.arange(7)[None],
        "betas": rng.standard_normal(5),
        "model_ema.num_updates": np.int32(7)[...],
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "scale": np.float32(0.18215)[...],
    }


def training_checkpoint(arrays: dict[str, np.ndarray]) -> dict:
    """Returns the value that a Lightning training run of Stable Diffusion saves around its tensors."""
    made = tensors(arrays)
    moments = {
        i: {"step": i, "exp_avg": tensor, "exp_avg_sq": tensor} for i, tensor in enumerate(list(made.values())[:3])
    }
    return {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": StateDict(made),
        "callbacks": {
            Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): {
                "monitor": "val/loss_simple_ema",
                "best_model_score": numpy_scalar("f8", "\0\0\0\0\0\0\0@"),
                "current_score": numpy_scalar("f4", "\0\0\x80?"),
                "best_model_path": "",
                "dirpath": "/data/logs",
            }
        },
        "optimizer_states": [
            {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}
        ],
        "lr_schedulers": [{"base_lrs": [1.0], "last_epoch": 470000, "lr_lambdas": [{}], "_last_lr": [1.0]}],
        "val_loss": numpy_scalar("f8", "\0\0\0\0\0\0\0@", module="numpy._core.multiarray"),
    }
