"""Keeps programs from run to run, traced and compiled: then a program's first call runs no code of a network.

JAX's own cache keeps compiled programs, but finds them only after a function was traced and lowered, which takes most
of the time until a small model's first picture. Here a program is kept twice beside it, and found by all that it
depends on: the function, its static description, the shapes of its arguments, settings, versions, and the source files
of sdjax.

- The traced program, as StableHLO in the format of `jax.export`. It is data: it is read without pickle, and its
  SHA-256 is checked, so a damaged file is traced again. Other computers may use it too.
- The compiled program. It is used only by the user that wrote it, on the same computer (`sdjax.storage.executables`).
  It spares lowering the traced one, and JAX's search for the compiled one.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
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
from sdjax.storage import executables
from sdjax.storage.files import write_file
from sdjax.storage.kept import Unkept, described, file_stem, sources, type_name

FORMAT = b"sdjax traced 1\n"
ENDING = ".traced"
MAX_BYTES = {ENDING: 2**28, executables.ENDING: 2**30}  # of all files; a full-size UNet's have some 10 and 20 MB
LARGEST = 2**27  # bytes of one file
DIGEST = 32
ARRAY, OTHER = -1, -2  # results that are one array; those whose structure `jax.eval_shape` finds in every process


class Traced:
    """A function (static, *args) as a compiled program, traced once for all processes if `cache.folder` is one.

    It is like the result of `jax.jit`. Functions that are described by more than plain values are traced in every
    process.
    """

    def __init__(self, function: Callable, static: Any) -> None:
        self._function, self._static = function, static
        self._plain = jax.jit(functools.partial(function, static))
        self._known: dict[Any, _Program | None] = {}

    def __call__(self, *args: Any) -> Any:
        """Returns function(static, *args)."""
        leaves, tree = jax.tree.flatten(args)
        run = self._find(leaves, tree)
        return self._plain(*args) if run is None else run(leaves)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Returns the lowered program for arrays or their shapes. It is compiled to what a call compiles."""
        leaves, tree = jax.tree.flatten(args)
        run = self._find(leaves, tree)
        return self._plain.lower(*args) if run is None else run.lower()

    def _find(self, leaves: list[Any], tree: Any) -> "_Program | None":
        """Returns the kept program, None if this function is traced in the usual way."""
        folder = cache.folder()
        if folder is None or setting("jax_disable_jit") or is_patched():
            return None
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
            shapes = tuple(map(_shape, leaves))
            try:
                name = _name(self._function, self._static, tree, shapes, device)
                self._known[known] = _Program(self._function, self._static, tree, shapes, device, folder / name)
            except Unkept:
                self._known[known] = None
        return self._known[known]


class _Program:
    """A kept program for arguments of these shapes. Raises Unkept if it cannot be kept."""

    def __init__(
        self, function: Callable, static: Any, tree: Any, shapes: Sequence[Any], device: jax.Device, path: Path
    ) -> None:
        self._function, self._static = function, static
        self._args = jax.tree.unflatten(tree, shapes)
        self._shapes, self._device, self._path = shapes, device, path.with_name(f"{path.name}{ENDING}")
        self._keys = [i for i, shape in enumerate(shapes) if _is_key(shape)]
        self._place, self._program = _read(self._path) or self._trace()
        self._out = None if self._place < 0 else self._args[self._place]
        if self._place == OTHER:
            self._out = jax.eval_shape(functools.partial(function, static), *self._args)

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """Returns the function's result for the leaves of its arguments."""
        words = list(leaves)
        for i in self._keys:
            words[i] = _words(words[i])
        made = self._run(*words)
        if self._out is None:
            return made[0]
        return jax.tree.map(_key_like, self._out, jax.tree.unflatten(jax.tree.structure(self._out), made))

    def lower(self) -> jax.stages.Lowered:
        """Returns the lowered program."""
        called = jax.jit(export.deserialize(bytearray(self._program)).call)
        where = jax.sharding.SingleDeviceSharding(self._device)
        return called.lower(*(_word_shape(one, where) for one in self._shapes))

    @functools.cached_property
    def _run(self) -> Callable[..., list[Array]]:
        """Returns the compiled program: a kept one, or one that is compiled now, and kept for later processes."""
        name = f"{self._path.stem} {self._device.id}"
        path = self._path.with_name(executables.file_name(name, self._device))
        taken = jax.tree.structure((tuple(self._shapes), {}))
        given = jax.tree.structure([0] if self._out is None else jax.tree.leaves(self._out))
        with contextlib.suppress(OSError, RuntimeError):  # XLA refuses it
            found = executables.load(path, name, self._device, taken, given)
            if found is not None:
                os.utime(path)
                return found
        compiled = self.lower().compile()
        # Nothing is kept without space, and of a device that cannot write its programs
        with contextlib.suppress(OSError, RuntimeError, ValueError, NotImplementedError):
            executables.save(path, compiled, name, self._device)
            _make_room(path)
        return compiled

    def _trace(self) -> tuple[int, bytes]:
        """Returns which argument the result is like, ARRAY or OTHER, and the program. Writes it. Raises Unkept."""
        tree, outs = jax.tree.structure(self._args), []

        def flat(*leaves: Array) -> list[Array]:
            made = self._function(self._static, *jax.tree.unflatten(tree, map(_key_like, self._shapes, leaves)))
            outs.append(jax.tree.structure(made))
            return list(map(_words, jax.tree.leaves(made)))

        try:
            exporting = export.export(jax.jit(flat), platforms=[_platform(self._device)])
            program = bytes(exporting(*map(_word_shape, self._shapes)).serialize())
        except ValueError as error:  # it calls functions of other libraries whose names may change
            raise Unkept(str(error)) from None
        likes = [jax.tree.structure(0), *map(jax.tree.structure, self._args)]
        place = likes.index(outs[0]) - 1 if outs[0] in likes else OTHER
        _write(self._path, place, program)
        return place, program


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def _word_shape(shape: jax.ShapeDtypeStruct, where: Any = None) -> jax.ShapeDtypeStruct:
    if _is_key(shape):
        return jax.ShapeDtypeStruct((*shape.shape, 2), np.uint32, sharding=where)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


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


def _read(path: Path) -> tuple[int, bytes] | None:
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
    return int.from_bytes(rest[:2], "big", signed=True), rest[2:]


def _write(path: Path, place: int, program: bytes) -> None:
    """Writes a traced program. A full disk is no error: nothing is kept."""
    rest = place.to_bytes(2, "big", signed=True) + program
    if len(rest) > LARGEST // 2:
        return
    try:
        write_file(path, FORMAT + hashlib.sha256(rest).digest() + rest, overwrite=True, what="keeping a program")
    except OSError:
        return
    _make_room(path)


def _make_room(written: Path) -> None:
    """Removes the files of a kind that were not used for longest, until all take at most MAX_BYTES."""
    ending = written.suffix
    try:
        found = sorted((one.stat().st_mtime, one.stat().st_size, one) for one in written.parent.glob(f"*{ending}"))
        total = sum(size for _, size, _ in found)
        for _, size, one in found:
            if total <= MAX_BYTES[ending]:
                break
            one.unlink(missing_ok=True)
            total -= size
    except OSError:
        return
