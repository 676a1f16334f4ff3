"""Small training sets for the tests: pictures that say which they are, in the layouts that are read."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def pixels(number, width, height):
    """A picture whose red is its number, whose green grows to the right and whose blue grows downwards."""
    red = np.full((height, width), number)
    green = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    blue = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def encoded(number, width=48, height=40, format="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels(number, width, height)).save(out, format, **options)
    return out.getvalue()


def ids(captions):
    """Token ids of a kind, of captions "NAME NUMBER"."""
    return np.array([[int(caption.split()[1]), len(caption)] for caption in captions], np.int32)


def write_folder(folder, count, *, sizes=((48, 40),), captions=None, **columns):
    """A folder with metadata.jsonl; picture i is called i.png, its caption "picture i" unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        (folder / f"{i}.png").write_bytes(encoded(i, *sizes[i % len(sizes)]))
        row = {"file_name": f"{i}.png", "text": captions[i] if captions else f"picture {i}"}
        lines.append(json.dumps(row | {name: values[i] for name, values in columns.items() if values[i] is not None}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_tar(path, numbers, *, picture=encoded, **columns):
    """A shard as img2dataset writes it."""
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            meta = {"key": f"{i:09d}", "caption": f"picture {i}", "similarity": i / 100, "exif": "{}", "error": None}
            meta |= {name: values[i] for name, values in columns.items()}
            files = {"jpg": picture(i), "txt": f"picture {i}".encode(), "json": json.dumps(meta).encode()}
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{i:09d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


class Numbers:
    """A source of records that are their numbers, with sizes in turn; nothing is on the disk."""

    def __init__(self, count, sizes=((48, 48),), name="numbers", broken=()):
        from sdjax.train.data.table import Table

        self.name, self.count, self.sizes, self.broken = name, count, sizes, frozenset(broken)
        rows = [{"width": w, "height": h, "number": i} for i in range(count) for w, h in [sizes[i % len(sizes)]]]
        self.table = Table.from_rows(rows)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        from sdjax.train.data.records import Record

        data = b"nothing" if i in self.broken else encoded(i % 256, *self.sizes[i % len(self.sizes)])
        return Record(f"{self.name}/{i}", data, (f"{self.name} {i}",), {"number": i})
