"""How a batch is computed, independent of its content: devices, exactness, callbacks, output."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

import jax

from sdjax.checks import arguments
from sdjax.checks.arguments import flag, whole
from sdjax.convert.parts.taesd import LoadedTAESD, load_taesd
from sdjax.pipeline import placement
from sdjax.samplers.sampler import choose
from sdjax.tasks.extra_files import read_once

if TYPE_CHECKING:
    from sdjax.tasks.session import Step

TAESD: TypeAlias = LoadedTAESD | str | os.PathLike[str]
OUTPUTS = ("pixels", "latent")


class ComputingOptions(TypedDict, total=False):
    """The fields of `Computing`, as arguments of the tasks."""

    parallel: placement.Parallel
    split_picture: int
    devices: Sequence[jax.Device] | None
    exact: bool
    at_once: int | None
    progress: Callable[[int, int], None] | None
    on_step: "Callable[[Step], None] | None"
    output: Literal["pixels", "latent"]
    taesd: TAESD | None


@dataclasses.dataclass(frozen=True, eq=False)
class Computing:
    """How a batch is computed.

    The batch is spread over `devices` (default: all of this process) by `parallel`: "jit" or "pmap". If `split_picture`
    is above 1, each picture is computed by so many devices, which have parts of its rows. `exact` computes
    pictures one by one, so that they are bit-identical alone and in a batch. `at_once` is the largest number of
    pictures that are computed at once; None means all that fit together (`Batch.groups`). `progress(done,
    total)` counts calls of the network. `on_step(step)` gets a `sdjax.tasks.session.Step`, which has a preview. Both
    are called after every few calls of the network. `output` "latent" returns float32 latents instead of pictures; they
    are not cropped and not put back into a picture.

    Raises ValueError for values of the wrong kind.
    """

    parallel: placement.Parallel = "jit"
    split_picture: int = 1
    devices: Sequence[jax.Device] | None = None
    exact: bool = False
    at_once: int | None = None
    progress: Callable[[int, int], None] | None = None
    on_step: "Callable[[Step], None] | None" = None
    output: Literal["pixels", "latent"] = "pixels"
    taesd: TAESD | None = None

    def __post_init__(self) -> None:
        for name, takes in ("progress", "(done, total)"), ("on_step", "a step"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ValueError(f"{name} is a function of {takes}; got {arguments.shown(value)}")
        object.__setattr__(self, "exact", flag("exact", self.exact))
        object.__setattr__(self, "split_picture", whole("split_picture", self.split_picture, 1))
        if self.parallel == "pmap" and self.split_picture > 1:
            raise ValueError("pmap cannot divide one picture: leave parallel or split_picture out")
        if self.at_once is not None:
            object.__setattr__(self, "at_once", whole("at_once", self.at_once, 1))
        choose("output", self.output, OUTPUTS)
        object.__setattr__(self, "taesd", self.preview_decoder)
        self.mesh  # noqa: B018  # raises if `devices` are not devices

    @property
    def preview_decoder(self) -> LoadedTAESD | None:
        """The TAESD that makes previews."""
        return None if self.taesd is None else read_taesd(self.taesd)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices."""
        return placement.make_mesh(self.devices, self.split_picture)


def read_taesd(given: TAESD) -> LoadedTAESD:
    """Returns the TAESD of a file, which is read once as long as it does not change.

    Raises ValueError for a value of another kind and for one without a decoder.
    """
    loaded = _read(os.fspath(given)) if isinstance(given, str | os.PathLike) else given
    if not isinstance(loaded, LoadedTAESD):
        raise ValueError(f"taesd is a file or what sdjax.convert.load_taesd returns; got {arguments.shown(given)}")
    if "decoder" not in loaded.params:
        raise ValueError("this TAESD has no decoder, which makes previews: name the file of the decoder")
    return loaded


@read_once(2)
def _read(path: str) -> LoadedTAESD:
    return load_taesd(path)
