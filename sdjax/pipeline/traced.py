"""Keeps traced programs from run to run: then a program's first call runs no code of a network.

JAX's own cache keeps compiled programs, but finds them only after a function was traced and lowered, which takes most
of the time until a small model's first picture. Here the traced program is kept beside it, as StableHLO in the format
of `jax.export`. It is found by all that it depends on: the function, its static description, the shapes of its
arguments, settings, versions, and the source files of sdjax. A file is data: it is read without pickle, and its
SHA-256 is checked, so a damaged one is traced again.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from jax import export
from jaxtyping import Array

from sdjax._version import __version__
from sdjax.adapters.patch import is_patched
from sdjax.checks.computer import processor
from sdjax.nn.jax_settings import IMPL, recorded, setting
from sdjax.nn.layers.products import processor_multiplies_bfloat16
from sdjax.pipeline import cache
from sdjax.storage.files import write_file
from sdjax.storage.kept import Unkept, described, file_stem, sources, type_name

FORMAT = b"sdjax traced 1\n"
ENDING = ".traced"
MAX_BYTES = 2**28  # of all files; a full-size UNet has some 10 MB
LARGEST = 2**27  # bytes of one file
DIGEST = 32


class Traced:
    """A function (static, *args) as a compiled program, traced once for all processes if `cache.folder` is one.

    It is like the result of `jax.jit`. Functions that are described by more than plain values are traced in every
    process.
    """

    def __init__(self, function: Callable, static: Any) -> None:
        self._function, self._static = function, static
        self._plain = jax.jit(functools.partial(function, static))
        self._known: dict[Any, Callable | None] = {}

    def __call__(self, *args: Any) -> Any:
        """Returns function(static, *args)."""
        run = self._find(args)
        return self._plain(*args) if run is None else run(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Returns the lowered program for arrays or their shapes. It is compiled to what a call compiles."""
        run = self._find(args)
        return self._plain.lower(*args) if run is None else run.lower(*args)

    def _find(self, args: tuple[Any, ...]) -> Any:
        """Returns the compiled program of a kept trace, None if this function is traced in the usual way."""
        folder = cache.folder()
        if folder is None or setting("jax_disable_jit") or is_patched():
            return None
        leaves, tree = jax.tree.flatten(args)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return None
        device = _device(leaves)
        # Every call comes here with all leaves of the parameters, so what is compared is cheap to make
        known = (
            tree,
            tuple((leaf.shape, leaf.dtype) for leaf in leaves),
            device,
            setting("jax_default_matmul_precision"),
        )
        if known not in self._known:
            self._known[known] = self._read_or_trace(folder, tree, tuple(map(_shape, leaves)), device)
        return self._known[known]

    def _read_or_trace(self, folder: Path, tree: Any, shapes: tuple[Any, ...], device: jax.Device) -> Any:
        try:
            name = _name(self._function, self._static, tree, shapes, device)
        except Unkept:
            return None
        path = folder / f"{name}{ENDING}"
        found = _read(path)
        if found is None:
            found = self._trace(tree, shapes, device)
            if found is None:
                return None
            _write(path, *found)
        place, exported = found
        out = None if place < 0 else jax.tree.unflatten(tree, shapes)[place]

        def run(*args: Any) -> Any:
            made = exported.call(*map(_words, jax.tree.leaves(args)))
            return (
                made[0]
                if out is None
                else jax.tree.map(_key_like, out, jax.tree.unflatten(jax.tree.structure(out), made))
            )

        return jax.jit(run)

    def _trace(self, tree: Any, shapes: tuple[Any, ...], device: jax.Device) -> "tuple[int, export.Exported] | None":
        """Returns which argument the result is like (-1: it is one array), and the program; None for other results."""
        args = jax.tree.unflatten(tree, shapes)
        outs = []

        def flat(*leaves: Array) -> list[Array]:
            made = self._function(self._static, *jax.tree.unflatten(tree, map(_key_like, shapes, leaves)))
            outs.append(jax.tree.structure(made))
            return list(map(_words, jax.tree.leaves(made)))

        try:
            exported = export.export(jax.jit(flat), platforms=[_platform(device)])(*map(_word_shape, shapes))
        except ValueError:  # it calls functions of other libraries whose names may change
            return None
        likes = [jax.tree.structure(0), *map(jax.tree.structure, args)]
        return (likes.index(outs[0]) - 1, exported) if outs[0] in likes else None


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def _word_shape(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*shape.shape, 2), np.uint32) if _is_key(shape) else shape


def _words(leaf: Any) -> Any:
    """Returns the words of keys, which programs in files take instead of them; other arrays as they are."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _key_like(like: Any, leaf: Array) -> Array:
    return jax.random.wrap_key_data(leaf, impl=IMPL) if _is_key(like) else leaf


def _device(leaves: list[Any]) -> jax.Device:
    """Returns the device that arrays are on, JAX's default device for arrays of NumPy and shapes."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and leaf.committed:
            return next(iter(leaf.devices()))
    default = setting("jax_default_device")
    return default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0]


def _platform(device: jax.Device) -> str:
    """Returns the name of a device's platform as `jax.export` has it."""
    rocm = "rocm" in device.client.platform_version.lower()
    return {"gpu": "rocm" if rocm else "cuda"}.get(device.platform, device.platform)


def _name(function: Callable, static: Any, tree: Any, shapes: tuple[Any, ...], device: jax.Device) -> str:
    """Returns the name of a program: a digest of all that it depends on. Raises Unkept if that cannot be said."""
    about = [
        f"{function.__module__}.{function.__qualname__}", described(static), _described_tree(tree),
        [[list(one.shape), str(one.dtype)] for one in shapes], recorded(), processor_multiplies_bfloat16(),
        [__version__, jax.__version__, jaxlib.__version__, device.platform, device.device_kind],
        [device.client.platform_version, processor(), sources()],
    ]  # fmt: skip
    return file_stem(about)


def _described_tree(tree: Any) -> Any:
    """Returns the structure of arguments as JSON."""
    node = tree.node_data()
    if node is None:
        return ["leaf", tree.num_leaves]
    kind, about = node
    return [type_name(kind), described(about), *map(_described_tree, tree.children())]


def _read(path: Path) -> "tuple[int, export.Exported] | None":
    """Returns what `_write` wrote, None if there is no such file, or a damaged one."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, rest = data[len(FORMAT) : len(FORMAT) + DIGEST], data[len(FORMAT) + DIGEST :]
    if not data.startswith(FORMAT) or hashlib.sha256(rest).digest() != digest:
        return None
    return int.from_bytes(rest[:2], "big", signed=True), export.deserialize(bytearray(rest[2:]))


def _write(path: Path, place: int, exported: "export.Exported") -> None:
    """Writes a program, and removes those that were not used for longest. A full disk is no error: nothing is kept."""
    rest = place.to_bytes(2, "big", signed=True) + bytes(exported.serialize())
    if len(rest) > LARGEST // 2:
        return
    try:
        write_file(path, FORMAT + hashlib.sha256(rest).digest() + rest, overwrite=True, what="keeping a program")
        found = sorted((one.stat().st_mtime, one.stat().st_size, one) for one in path.parent.glob(f"*{ENDING}"))
        total = sum(size for _, size, _ in found)
        for _, size, one in found:
            if total <= MAX_BYTES:
                break
            one.unlink(missing_ok=True)
            total -= size
    except OSError:
        return
