"""The time of the loader for a picture, beside the time of Pillow alone to decode and resize it.

    python benchmarks/data.py --json benchmarks/results/data_cpu.json

Pictures of 768 x 512 pixels, smooth with grain, as JPEG of quality 90 (about 130 kB), brought to 512 x 512. `cpu_ms` is
the process's time on all its threads for one picture, which other programs on the machine hardly change: 1000 / cpu_ms
is what one core makes a second. `wall_per_second` is what came out here, beside whatever ran at `load`. Each way is
measured several times in turn, and its best time taken; all files are in the system's cache.
"""

import argparse
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
from PIL import Image

from sdjax.train.data import array_records
from sdjax.train.data.array_records import pack
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.loader import Loader
from sdjax.train.data.pictures import Part, Pictures, decode
from sdjax.train.data.records import Source
from sdjax.train.data.sources import open_source

BATCH, SIDE = 16, 512


def write_pictures(folder: Path, count: int) -> None:
    """Writes pictures that look like photographs to a JPEG decoder."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).resize((768, 512), Image.BICUBIC)
        pixels = np.asarray(coarse, np.float32) + rng.normal(0, 6, (512, 768, 1))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=90)
        rows.append(json.dumps({"file_name": f"{i:04d}.jpg", "text": f"picture {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Returns what one of the pictures that `work` says it made took."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_ms": round(1000 * cpu / count, 3), "wall_per_second": round(count / wall, 1)}


def plain(files: list[bytes], resize: bool) -> int:
    """Decodes files with Pillow alone."""
    for data in files:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        if resize:
            picture = picture.resize((SIDE, SIDE), Image.LANCZOS, (100, 0, 580, 480))
        np.asarray(picture)
    return len(files)


def ours(files: list[bytes]) -> int:
    """Decodes files with sdjax.pictures.open_picture, which checks each."""
    for data in files:
        decode(data, (255, 255, 255))
    return len(files)


def loading(source: Source, batches: int, threads: int) -> int:
    """Makes batches."""
    pictures = Pictures([Part(source)], Buckets.square(SIDE))
    loader = Loader(pictures, batch_size=BATCH, seed=0, process=(0, 1), threads=threads)
    return sum(len(batch["key"]) for batch in loader.iterate(0, batches))


def write_latents(folder: Path, count: int) -> object:
    """Returns records of 64 x 64 latents with tokens, as a cache holds them."""
    moments = np.random.default_rng(0).normal(size=(64, 64, 8)).astype(np.float16)
    path = folder / "latents.array_record"
    with array_records.writing(path) as add:
        for i in range(count):
            tensors = {"moments": moments, "ids": np.zeros((1, 77), np.int32)}
            add(pack(tensors, {"key": str(i), "captions": ["x"], "columns": {}}))
    return array_records.open_reader([str(path)])


def latents(reader: object) -> int:
    """Reads them all."""
    dataset = grain.MapDataset.range(len(reader)).map(lambda i: array_records.unpack(reader[i], "x")[0])
    for _ in dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)):
        pass
    return len(reader)


def main() -> None:
    """Measures, and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the result there")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        write_pictures(folder / "pictures", args.pictures)
        files = [path.read_bytes() for path in sorted((folder / "pictures").glob("*.jpg"))]
        array_records.write(Folder(folder / "pictures"), folder / "records")
        records = open_source({"records": str(folder / "records")})
        pictures = open_source({"folder": str(folder / "pictures")})
        reader = write_latents(folder, 1000)
        ways = {
            "Pillow decodes": lambda: plain(files, False),
            "Pillow decodes and resizes": lambda: plain(files, True),
            "open_picture": lambda: ours(files),
            "loader, folder, 1 thread": lambda: loading(pictures, args.batches, 1),
            "loader, folder, 2 threads": lambda: loading(pictures, args.batches, 2),
            "loader, ArrayRecord, 2 threads": lambda: loading(records, args.batches, 2),
            "latents of 64 x 64, 2 threads": lambda: latents(reader),
        }
        measured: dict[str, list] = {way: [] for way in ways}
        for _ in range(args.repeats):
            for way, work in ways.items():
                measured[way].append(timed(work))
    best = {way: min(values, key=lambda value: value["cpu_ms"]) for way, values in measured.items()}
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
        "pictures": {"size": [768, 512], "side": SIDE, "bytes": round(np.mean([len(data) for data in files]))},
        "ways": best,
    }
    print(json.dumps(result, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
