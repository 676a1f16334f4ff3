"""A pipeline for little memory: parameters stay in their file, and one part of the model is in memory at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from sdjax.pipeline import placement, programs
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.streaming import in_memory, streamed
from sdjax.typing import Params

BAND = 2**22  # numbers of a map in one band of the autoencoder: 16 MiB in float32


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LowMemoryPipeline(Pipeline):
    """A pipeline whose parameters are read when they are needed, again for each call of a network.

    Text encoder and UNet run layer by layer (`sdjax.pipeline.streaming`). The autoencoder is read whole and works in
    bands (`sdjax.pipeline.tiling`). Other networks are read when a task asks for them, and let go when it asks for
    another one. Pictures are those of the same model in memory, up to the rounding of sums.

    It computes on one device. Methods raise ValueError for a mesh of several.
    """

    def on(self, mesh: Mesh) -> Params:
        """Returns the networks by name: text encoder and UNet as they are stored, one of the others on the device."""
        if mesh.size > 1:
            raise ValueError(
                f"a model that is loaded with low_memory computes on one device; got {mesh.size}: choose one by devices"
            )
        placed: Params = self._placed.get(self.params, mesh, lambda params: _OneAtATime(params, mesh))
        return placed

    def _compiled(
        self, function: Callable, static: Any, mesh: Mesh, batched: tuple[bool, ...], parallel: str
    ) -> Callable:  # fmt: skip
        run = super()._compiled(function, static, mesh, batched, "jit")

        def call(*args: Any) -> Any:
            with jax.default_device(mesh.devices.flat[0]), streamed():
                return run(*args)

        return call

    def _autoencoder(self, seamless: str | None) -> programs.VAEProgram:
        return dataclasses.replace(super()._autoencoder(seamless), band=BAND)


class _OneAtATime(Mapping[str, Any]):
    """Networks by name. Those that are not `STREAMED` are on the devices of a mesh, the last one that was asked for."""

    STREAMED = ("text", "unet")

    def __init__(self, params: Params, mesh: Mesh) -> None:
        self._params, self._mesh = params, mesh
        self._name: str = ""
        self._placed: Any = None

    def __getitem__(self, name: str) -> Any:
        if name in self.STREAMED:
            self._name, self._placed = "", None
            return self._params[name]
        if name != self._name:
            self._name, self._placed = "", None
            self._placed = placement.replicate(in_memory(self._params[name]), self._mesh)
            self._name = name
        return self._placed

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)
