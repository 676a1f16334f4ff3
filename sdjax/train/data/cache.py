"""A cache of latents: the outputs of the autoencoder and the text encoder for a training set, computed once and kept.

A cache is a folder of ArrayRecord shards. Each record is a complete safetensors file with `moments`, float16
[h, w, 2 c]: the mean and log variance that the autoencoder gives, so that training can draw from the posterior as it
does from pictures. It also has `ids`, int32 [captions, n], or `context`, float16 [captions, n, d]. Its metadata are
`key`, `captions` and `columns`. Each picture has `variants` consecutive records, each with another random crop and
flip. Each shard has a table and statistics beside it.

The contents of each shard are fixed before anything is computed. So shards can be made in any order, on many machines,
and again after an interruption. manifest.json records the model, data and settings; others are refused.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from sdjax.config import VAEConfig
from sdjax.nn.jax_settings import pinned
from sdjax.nn.vae import autoencoder
from sdjax.pictures.image import to_float
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.programs import one_by_one
from sdjax.storage.files import check_room, write_file
from sdjax.train.data.array_records import ENDINGS, agree, pack, writing
from sdjax.train.data.loader import check_bad
from sdjax.train.data.pictures import BadPicture, Pictures, draws, read
from sdjax.train.data.records import SourceError, scalars
from sdjax.train.data.signatures import encoder_of, fingerprint, probe, signature, token_ids
from sdjax.train.data.table import Table
from sdjax.typing import Moments, Params, Pixels

TEXTS = ("ids", "context")
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """Settings of a cache.

    `variants` is the number of random crops and flips of each picture, drawn from `seed`. The captions are kept as
    tokens ("ids") or as the text encoder's output ("context", for training with a fixed text encoder). `shard_size` is
    the number of pictures in a shard.
    """

    text: str = "ids"
    variants: int = 1
    seed: int = 0
    shard_size: int = 1024

    def __post_init__(self) -> None:
        if self.text not in TEXTS or self.variants < 1 or self.shard_size < 1:
            raise ValueError(
                f"a cache keeps {' or '.join(TEXTS)}, at least one variant and one picture a shard; got {self}"
            )


class LatentWriter:
    """Makes the shards of a cache in a folder.

    At most the share `bad_limit` of a shard's pictures may be bad; 10 are always allowed. `say` gets a line for each.

    Raises SourceError if the folder holds shards of another model, other data or other settings.
    """

    def __init__(
        self, pipe: Pipeline, pictures: Pictures, folder: str | os.PathLike, settings: CacheSettings, *,
        batch_size: int = 8, threads: int = 8, bad_limit: float = 0.01, say: Callable[[str], None] = lambda text: None,
    ):  # fmt: skip
        self.pipe, self.pictures, self.folder, self.settings = pipe, pictures, Path(folder), settings
        self.mesh = placement.make_mesh()
        self.batch_size, self.threads = placement.padded(batch_size, self.mesh.size), threads
        self.bad_limit, self.say = bad_limit, say
        streams = sorted(pictures.streams, key=lambda s: (s.size, s.part))
        self.plan = [(s.part, int(i), s.size) for s in streams for i in s.members]  # of one size together
        self.shards = -(-len(self.plan) // settings.shard_size)
        agree(self.folder, self.manifest(), MANIFEST)

    def manifest(self) -> dict[str, Any]:
        """Returns everything that the cache depends on, in terms of JSON."""
        pictures, parts = self.pictures, self.pictures.parts
        model = {"vae": self.pipe.params["vae"]}
        signatures = {"autoencoder": signature(encoder_of(self.pipe.params))}
        if self.settings.text == "context":
            model["text"] = self.pipe.params["text"]
            signatures["text_encoder"] = signature(model["text"])
        plan = hashlib.sha256(json.dumps(self.plan).encode()).hexdigest()
        return {
            "format": 1,
            "model": fingerprint(model),
            **signatures,
            "tokens": probe(self.pipe.tokenizer, self.pipe.config.text),
            "dtype": self.pipe.dtype,
            **dataclasses.asdict(self.settings),
            "pictures": len(self.plan),
            "plan": plan,
            "sources": [[Path(part.source.name).name, len(part.source)] for part in parts],
            "crop": pictures.crop,
            "flip": pictures.flip,
            "resample": pictures.resample,
            "background": list(pictures.background),
            "shards": self.shards,
            "scale_factor": self.pipe.config.vae.scale_factor,
        }

    def path(self, k: int) -> Path:
        """Returns the path of the finished shard k."""
        return shard_path(self.folder, k, self.shards)

    def done(self, k: int) -> bool:
        """Returns whether shard k is finished."""
        return self.path(k).exists()

    def bytes_of(self, k: int) -> int:
        """Returns how many bytes the latents of shard k take."""
        size, vae = self.settings.shard_size, self.pipe.config.vae
        pixels = sum(w * h for _, _, (w, h) in self.plan[k * size : (k + 1) * size])
        return pixels // vae.factor**2 * 2 * vae.latent_channels * 2 * self.settings.variants

    @pinned()
    def make(self, k: int) -> None:
        """Makes shard k, unless it exists."""
        if self.done(k):
            return
        size = self.settings.shard_size
        plan = self.plan[k * size : (k + 1) * size]
        bad: Counter[str] = Counter()
        rows: list[dict[str, Any]] = []
        sums = np.zeros((3, self.pipe.config.vae.latent_channels))  # of mean, mean^2 and variance
        count = 0
        with writing(self.path(k)) as add, ThreadPoolExecutor(self.threads) as pool:
            for examples in self._batches(plan, pool, bad):
                moments = self._moments(np.stack([example["image"] for example in examples]))
                texts = self._texts([example["captions"] for example in examples])
                for example, moment, text in zip(examples, moments, texts):
                    add(pack({"moments": moment, self.settings.text: text}, _texts_of(example)))
                    height, width = example["image"].shape[:2]
                    columns = {**scalars(example["columns"]), "caption": example["captions"][0]}
                    rows.append({**columns, "width": width, "height": height, "_variant": example["variant"]})
                    mean, logvar = np.split(moment.astype(np.float64), 2, axis=-1)
                    variance = np.exp(np.clip(logvar, -30, 20))
                    sums += [part.sum((0, 1)) for part in (mean, mean**2, variance)]
                    count += mean.shape[0] * mean.shape[1]
            check_bad(bad, len(plan), self.bad_limit, f"shard {k}'s {len(plan)} pictures")
            # The shard gets its name last: if it exists, these files exist too
            stem = self.path(k)
            Table.from_rows(rows).save(stem.with_suffix(".npz"), len(rows))
            statistics = {"records": len(rows), "values": count, "sums": sums.tolist(), "bad": dict(bad)}
            _write_statistics(stem.with_suffix(".json"), statistics)

    def _batches(self, plan: Sequence[tuple], pool: ThreadPoolExecutor, bad: Counter[str]) -> Iterator[list[dict]]:
        """Yields lists of examples of one size, at most a batch each, while threads decode the next."""
        batches = []
        for _, same in itertools.groupby(plan, key=lambda entry: entry[2]):
            batches += list(_chunks(list(same), max(1, self.batch_size // self.settings.variants)))
        under_way: list[list] = []
        for batch in [*batches, None, None]:
            if batch is not None:
                under_way.append([pool.submit(self._load, *entry) for entry in batch])
            if under_way and (batch is None or len(under_way) > 2):
                loaded = [future.result() for future in under_way.pop(0)]
                bad.update(re.sub(r"\d+", "N", reason) for reason, _ in loaded if reason)
                examples = [example for _, several in loaded for example in several]
                yield from _chunks(examples, self.batch_size)

    def _load(self, part: int, index: int, size: tuple[int, int]) -> tuple[str | None, list[dict]]:
        try:
            record = read(self.pictures.parts[part].source, index)
            texts = {"key": record.key, "captions": record.captions or ("",), "columns": dict(record.columns)}
            examples = []
            for variant in range(self.settings.variants):
                made = self.pictures.prepare(record, size, draws(self.settings.seed, record.key, variant))
                examples.append({"image": made["image"], "variant": variant, **texts})
            return None, examples
        except BadPicture as error:
            self.say(f"passed over: {self.pictures.place(part, index)}: {error}")
            return str(error), []

    def _moments(self, images: Pixels) -> np.ndarray:
        """Returns the moments as float16. Raises FloatingPointError if some are not finite."""
        run = placement.compiled(_encode, (self.pipe.config.vae, self.pipe.dtype), self.mesh, (False, True), "jit")
        padded = _pad(images, self.batch_size)
        moments = np.asarray(run(self.pipe.on(self.mesh)["vae"], placement.split(padded, self.mesh)))[: len(images)]
        kept = moments.astype(np.float16)
        if not np.isfinite(kept).all():
            raise FloatingPointError("the autoencoder made latents that float16 does not hold; try --dtype float32")
        return kept

    def _texts(self, captions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Returns ids [captions, n] or context [captions, n, d] of each entry's captions."""
        flat = [caption for several in captions for caption in several]
        if self.settings.text == "ids":
            made = self._ids(flat)
        else:
            parts = []
            for some in _chunks(flat, self.batch_size):
                padded = list(some) + [""] * (self.batch_size - len(some))
                parts.append(np.asarray(self.pipe.encode_prompt(padded, mesh=self.mesh))[: len(some)])
            made = np.concatenate(parts).astype(np.float16)
        ends = np.cumsum([len(several) for several in captions])[:-1]
        return np.split(made, ends)

    def _ids(self, captions: Sequence[str]) -> np.ndarray:
        return token_ids(self.pipe.tokenizer, self.pipe.config.text, captions)


def shard_path(folder: Path, k: int, shards: int) -> Path:
    """Returns the path of shard k of a cache."""
    return folder / f"latents-{k:05d}-of-{shards:05d}{ENDINGS[0]}"


def cache_statistics(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns the statistics of a cache's finished shards.

    They are the number of finished shards, the number of records, the bad pictures by reason, and of all unscaled
    latents the `mean` and `std` by channel and the `scale_factor`: one over the standard deviation of all values drawn
    from the posteriors. The model's own scale factor should be near it.
    """
    folder = Path(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    done = [path for k in range(manifest["shards"]) if (path := shard_path(folder, k, manifest["shards"])).exists()]
    parts = [json.loads(path.with_suffix(".json").read_text()) for path in done]
    bad: Counter[str] = Counter()
    for part in parts:
        bad.update(part["bad"])
    found = {"shards": len(done), "of": manifest["shards"], "records": sum(part["records"] for part in parts)}
    found["bad"] = dict(bad)
    values = sum(part["values"] for part in parts)
    if values:
        mean, square, variance = np.sum([part["sums"] for part in parts], 0) / values
        found |= {"mean": mean.tolist(), "std": np.sqrt(square + variance - mean**2).tolist()}
        whole = (square + variance).mean() - mean.mean() ** 2
        found["scale_factor"] = float(1 / np.sqrt(whole)) if whole > 0 else None
    return found


def write_shards(writer: LatentWriter, share: tuple[int, int] = (0, 1)) -> None:
    """Makes every n-th shard, starting with shard i, for `share` (i, n). Shows a progress bar.

    Raises SourceError unless i is from 0 to n - 1.
    """
    from tqdm.auto import tqdm

    i, n = share
    if not 0 <= i < n:
        raise SourceError(f"a share is i/n with i from 0 to n - 1; got {i}/{n}")
    mine = range(i, writer.shards, n)
    check_room(writer.folder, sum(writer.bytes_of(k) for k in mine if not writer.done(k)), "writing latents into")
    for k in tqdm(mine, "encoding", unit=" shards"):
        writer.make(k)


def _encode(static: tuple[VAEConfig, str], params: Params, pixels: UInt8[Array, "b h w 3"]) -> Moments:
    config, dtype = static
    vae = autoencoder(config, jnp.dtype(dtype))
    image = to_float(pixels)
    # One at a time, so that a picture's latents do not depend on its neighbours
    return one_by_one(lambda image: vae.bind({"params": params}).encode(image), image)


def _texts_of(example: Mapping[str, Any]) -> dict[str, Any]:
    return {name: example[name] for name in ("key", "captions", "columns")}


def _pad(images: np.ndarray, count: int) -> np.ndarray:
    """Returns images padded to `count` by repetition, so that one compiled program serves all batches of a size."""
    return images[np.arange(count) % len(images)]


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[i : i + size] for i in range(0, len(values), size))


def _write_statistics(path: Path, value: Any) -> None:
    write_file(path, (json.dumps(value, indent=1) + "\n").encode(), overwrite=True, what="writing the statistics")
