"""Fuzzes the checkpoint readers: mutants of small honest files of each form must be read or refused, cheaply.

    python benchmarks/fuzz_readers.py --mutants 50000 --seed 0 --out benchmarks/results/fuzz_readers.json

A mutant that raises anything but CheckpointError, takes more than a second of processor time or more than 64 MB of
private memory is a finding: its form, number and seed are reported, and its bytes are kept in --findings. Checksums of
zip members are made right again in half of the mutants, or no change of a pickle would get past them.
"""

import argparse
import json
import pathlib
import platform
import random
import struct
import sys
import tempfile
import time
import tracemalloc
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "convert"))

import checkpoint_writer as writer  # noqa: E402

from sdjax.convert.containers.reading import read  # noqa: E402
from sdjax.convert.errors import CheckpointError  # noqa: E402

SECONDS, BYTES = 1.0, 64 * 2**20
NUMBERS = (0, 1, 2, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
OPCODES = bytes(range(0x80, 0x99)) + b"()012BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}."


def seeds() -> dict[str, bytes | dict[str, bytes]]:
    """Returns an honest file of each form; a folder as its files."""
    arrays = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.ones(3, np.float16)}
    training = writer.training_checkpoint({**arrays, "position_ids": np.arange(4)[None]})
    shared = writer.Storage("0", np.arange(24, dtype=np.float32))
    views = {
        "whole": writer.Tensor(shared, (24,)),
        "transposed": writer.Tensor(shared, (3, 2), offset=5, strides=(1, 3)),
        "parameter": writer.Tensor(shared, (4,), offset=2, parameter=True),
    }
    first, second = (writer.safetensors_file({name: array}) for name, array in arrays.items())
    shards = [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
    ]
    return {
        "zip": writer.torch_zip(training),
        "zip, small": writer.torch_zip(views, old=True, pad=False, zip64=False),
        "legacy": writer.torch_legacy(training),
        "legacy, small": writer.torch_legacy(
            {"x": writer.Tensor(writer.Storage("0", np.arange(9), ("1", 2, 5)), (4,))}
        ),
        "safetensors": writer.safetensors_file(writer.some_arrays(), {"format": "pt", "modelspec.title": "a"}),
        "folder": {
            "diffusion_pytorch_model.safetensors.index.json": json.dumps(
                {"metadata": {"total_size": 30}, "weight_map": dict(zip(arrays, shards))}
            ).encode(),
            "config.json": b'{"_class_name": "UNet2DConditionModel", "sample_size": 64, "eps": 1e-05, "act": null}',
            shards[0]: first,
            shards[1]: second,
        },
    }


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Returns `data` after one to four changes; `other` is what is spliced in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(out) + 1)
        near = out[at : at + 1]
        kind = rng.randrange(9)
        if kind == 0 and near:  # a bit
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and near:  # a byte
            out[at] = rng.randrange(256)
        elif kind == 2 and near:  # another instruction
            places = [i for i in range(at, min(at + 64, len(out))) if out[i] in OPCODES]
            if places:
                out[rng.choice(places)] = rng.choice(OPCODES)
        elif kind == 3:  # a number, over what is there
            form = rng.choice(["<B", "<H", "<I", "<Q"])
            size = struct.calcsize(form)
            number = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randrange(len(data))
            out[at : at + size] = struct.pack(form, number % 256**size)
        elif kind == 4:  # a number of decimal digits, over the digits that are there
            digits = [i for i in range(len(out)) if 48 <= out[i] <= 57]
            if digits:
                place = rng.choice(digits)
                out[place : place + 1] = str(rng.choice((*NUMBERS, -1, 0.5, "1e99"))).encode()
        elif kind == 5:  # a piece taken out
            del out[at : at + rng.choice((1, 2, 8, 64, 500))]
        elif kind == 6:  # a piece put in: of itself, or of another form
            source = bytes(out) if rng.random() < 0.6 else other
            start = rng.randrange(len(source) or 1)
            out[at:at] = source[start : start + rng.choice((1, 4, 16, 100, 1000))]
        elif kind == 7:  # cut short
            if rng.random() < 0.3:
                del out[at:]
        else:  # a piece over another
            start, length = rng.randrange(len(out) or 1), rng.choice((1, 4, 16, 46, 64))
            piece = out[start : start + length]
            out[at : at + len(piece)] = piece
        if not out:
            out = bytearray(b"\0")
    return bytes(out)


def mend(data: bytes) -> bytes:
    """Returns a zip whose directory has the checksums of what its members hold now."""
    out = bytearray(data)
    at = out.find(b"PK\x01\x02")
    while at >= 0 and at + 46 <= len(out):
        size, name_length, extra_length = struct.unpack_from("<L2H", out, at + 24)
        (header,) = struct.unpack_from("<L", out, at + 42)
        if header + 30 <= len(out):
            start = header + 30 + sum(struct.unpack_from("<2H", out, header + 26))
            struct.pack_into("<L", out, at + 16, zlib.crc32(out[start : start + size]))
        at = out.find(b"PK\x01\x02", at + 46 + name_length + extra_length)
    return bytes(out)


def mutant(form: str, number: int, seed: int, honest: dict) -> bytes | dict[str, bytes]:
    """Returns the mutant of that number, the same on every machine."""
    rng = random.Random(f"{seed} {form} {number}")
    other = rng.choice([data for data in honest.values() if isinstance(data, bytes)])
    data = honest[form]
    if isinstance(data, dict):
        name = rng.choice(sorted(data))
        return {**data, name: mutate(data[name], other, rng)}
    changed = mutate(data, other, rng)
    return mend(changed) if form.startswith("zip") and rng.random() < 0.6 else changed


def attempt(path: pathlib.Path) -> bool:
    """Reads every tensor; returns whether that was possible, or the file was refused."""
    try:
        with read(path) as file:
            for name in file:
                file[name].tobytes()
    except CheckpointError:
        return False
    return True


def limit_memory(limit: int) -> bool:
    """Lets the process have this many bytes of private memory more than now, where the system can do that."""
    try:
        import resource

        with open("/proc/self/status") as status:
            now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + limit, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trace",
        type=int,
        default=50,
        help="measure Python's memory for one mutant in so many (tracemalloc keeps some itself)",
    )
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--findings", type=pathlib.Path, default=pathlib.Path("findings"))
    args = parser.parse_args()

    honest = seeds()
    counts = {form: {"read": 0, "refused": 0, "findings": 0, "worst_seconds": 0.0, "worst_bytes": 0} for form in honest}
    findings = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        single, several = pathlib.Path(folder, "x"), pathlib.Path(folder, "d")
        several.mkdir()

        def write(data: bytes | dict[str, bytes]) -> pathlib.Path:
            if isinstance(data, bytes):
                single.write_bytes(data)
                return single
            for name, content in data.items():
                (several / name).write_bytes(content)
            return several

        for data in honest.values():
            assert attempt(write(data)), "an honest file is refused"
        limited = limit_memory(BYTES)
        forms = list(honest)
        for i in range(args.mutants):
            form, count = forms[i % len(forms)], counts[forms[i % len(forms)]]
            data = mutant(form, i, args.seed, honest)
            path = write(data)
            traced = i // len(forms) % args.trace == 0
            if traced:
                tracemalloc.start()
            before = time.process_time()
            problem = None
            try:
                count["read" if attempt(path) else "refused"] += 1
            except BaseException as error:  # MemoryError, RecursionError and the like are what is looked for
                if isinstance(error, KeyboardInterrupt):
                    raise
                problem = f"{type(error).__name__}: {error}"
            seconds = time.process_time() - before
            if traced:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                count["worst_bytes"] = max(count["worst_bytes"], peak)
                if peak > BYTES:
                    problem = problem or f"{peak} bytes"
            else:
                count["worst_seconds"] = max(count["worst_seconds"], round(seconds, 4))
            if seconds > SECONDS:
                problem = problem or f"{seconds:.1f} seconds"
            if problem:
                count["findings"] += 1
                findings.append({"form": form, "number": i, "problem": problem[:300]})
                args.findings.mkdir(exist_ok=True)
                if isinstance(data, bytes):
                    (args.findings / f"{i}").write_bytes(data)
    result = {
        "mutants": args.mutants,
        "seed": args.seed,
        "python": platform.python_version(),
        "memory_limit_enforced_by_the_system": limited,
        "seconds": round(time.monotonic() - started, 1),
        "forms": counts,
        "findings": findings,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
