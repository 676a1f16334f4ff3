"""Makes the pictures of an evaluation: each once, whatever was interrupted, spread over devices and over hosts.

The folder of an evaluation:

    manifest.json          what the pictures are made with: the model, captions, seed, size, every setting
    pictures/SETTING/      000012.png: the picture of caption 12 of the file
    features/SETTING/      NETWORK.npz: the network's features of these pictures
    result.json, result.csv, figure.png, figure.svg

A file is written under a temporary name and renamed, so a picture that is there is whole. Host i of n makes the
pictures i, i + n, ... that are not there. Hosts see one folder and exchange nothing else.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks.arguments import shown
from sdjax.evaluate.captions import Caption
from sdjax.evaluate.settings import Setting
from sdjax.pictures.image import encode_png, to_uint8
from sdjax.pictures.opening import open_picture
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.storage import files, manifest
from sdjax.tasks.generate import generate
from sdjax.tasks.request import Request
from sdjax.tasks.results import ImageError

MANIFEST = "manifest.json"
WRITING = "writing the evaluation into"


@dataclasses.dataclass(frozen=True)
class Host:
    """Which host this process is, from 0, and how many there are."""

    index: int = 0
    count: int = 1

    def share(self, captions: Sequence[Caption]) -> Sequence[Caption]:
        """Returns the captions whose pictures this host makes."""
        return captions[self.index :: self.count]


class Folder(NamedTuple):
    """The folder of an evaluation."""

    path: Path

    def picture(self, setting: Setting, caption: Caption) -> Path:
        """Returns the path of a picture."""
        return self.path / "pictures" / setting.folder / f"{caption.number:06d}.png"

    def features(self, name: str, network: str, host: Host | None = None) -> Path:
        """Returns the path of a network's features of the pictures of a setting's folder: all, or a host's share."""
        part = "" if host is None else f".part-{host.index}-of-{host.count}"
        return self.path / "features" / name / f"{network}{part}.npz"

    def claim(self, made_with: Mapping[str, Any], settings: Sequence[Setting]) -> None:
        """Writes the manifest, or checks that the one that is there says the same; new settings are added.

        Raises ValueError, naming what differs, if the folder holds pictures that are made with something else.
        """
        files.check_folder(self.path, WRITING)
        wanted = json.loads(json.dumps({**made_with, "settings": {one.folder: dict(one.values) for one in settings}}))
        path = self.path / MANIFEST
        found = None
        if files.lexists(path):
            try:
                found = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
                raise ValueError(f"{path} is no manifest of an evaluation: choose another folder")
        elif files.lexists(self.path) and any(not one.name.startswith(".") for one in self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no evaluation: choose another folder")
        for name in made_with:
            if found is not None and found.get(name) != wanted[name]:
                raise ValueError(
                    f"{self.path} holds an evaluation with another {name} ({shown(found.get(name))}, now "
                    f"{shown(wanted[name])}): choose another folder, or remove this one"
                )
        wanted["settings"] = {**({} if found is None else found["settings"]), **wanted["settings"]}
        if wanted != found:
            self.path.mkdir(parents=True, exist_ok=True)
            manifest.write_json(path, wanted)

    def missing(self, setting: Setting, captions: Sequence[Caption]) -> list[Caption]:
        """Returns the captions whose pictures are not there."""
        folder = self.picture(setting, Caption(0, "", 0)).parent
        there = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
        return [one for one in captions if f"{one.number:06d}.png" not in there]

    def open(self, setting: Setting, captions: Sequence[Caption]) -> Iterator[np.ndarray]:
        """Yields the pictures, uint8 [h, w, 3]."""
        for caption in captions:
            yield open_picture(self.picture(setting, caption)).pixels

    def remove_unfinished(self) -> None:
        """Removes what interrupted runs left half written. Call it when nobody is writing into the folder."""
        for one in self.path.rglob(files.PASSING):
            one.unlink(missing_ok=True)


def make_missing(
    pipe: Pipeline, folder: Folder, setting: Setting, captions: Sequence[Caption], *, batch: int = 8,
    devices: Sequence[jax.Device] | None = None, report: Callable[[int], None] = lambda count: None,
) -> None:  # fmt: skip
    """Makes and writes the pictures of a setting that are not there, `batch` at a time over the devices.

    `report` is called with the number of pictures after each batch. Raises what `sdjax.generate` raises.
    """
    missing = folder.missing(setting, captions)
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        made = make(pipe, [setting.request(one) for one in part], batch=batch, devices=devices)
        for caption, picture in zip(part, made, strict=True):
            path = folder.picture(setting, caption)
            files.write_file(path, encode_png(picture), overwrite=True, what="writing the picture")
        report(len(part))


def make(
    pipe: Pipeline, requests: Sequence[Request], *, batch: int, devices: Sequence[jax.Device] | None = None
) -> list[np.ndarray]:
    """Returns the pictures of at most `batch` requests, uint8 [h, w, 3]. Always computes `batch` of them.

    So a single program is compiled. A picture of one flat colour counts as a picture, because a model that is judged
    may make it. Raises ImageError if a picture holds values that are not numbers.
    """
    mesh = placement.make_mesh(devices)
    filled = placement.fill(list(requests), placement.padded(batch, mesh.size))
    session = generate.session(pipe, filled, devices=devices, output="latent")
    latents, first = jnp.stack([jnp.asarray(latent) for latent in session.result()]), session.requests[0]
    images = np.asarray(pipe.decode(latents, seamless=first.seamless, mesh=mesh))[: len(requests)]
    if not np.isfinite(images).all():
        raise ImageError(f"a picture holds values that are not numbers (computed in {pipe.dtype})")
    return [to_uint8(image, rounding=first.rounding) for image in images]
