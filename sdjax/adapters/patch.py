"""Patches: functions that replace the layers of a network, chosen by the layers' names.

    with patched([FreeU()], own=[numbers]):
        prediction = UNet(config).apply({"params": params}, x, t, context)

A network does not know its patches, and its parameters do not change. `docs/design.md` lists the layers that can be
patched, and their names.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn
from flax.linen.module import InterceptorContext as Context
from jaxtyping import Array, Bool, Int, PyTree

from sdjax.scoped import scoped
from sdjax.typing import Timestep

# (method, its positional arguments, its keyword arguments, which layer and method it is) -> the result
Interceptor: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Context], Any]


class Patch(Protocol):
    """An addition to a network. It is hashable and static; its arrays are arguments of the compiled program.

    Equal patches share a compiled program. So a number that differs from picture to picture must be an array.
    """

    def __hash__(self) -> int: ...

    def intercept(self, shared: PyTree, own: PyTree) -> Interceptor:
        """Returns the function that is called instead of every layer's `__call__`.

        `shared` are the patch's arrays for the whole batch, such as an adapter's weights. `own` are its arrays for each
        image, with the batch as their first axis. Either is None for a patch that has no such arrays.

        The function gets the method, its arguments, and a context whose `module` is the layer. It returns the layer's
        new output, or `method(*args, **kwargs)` for a layer that it does not change.
        """
        ...


@runtime_checkable
class Timed(Patch, Protocol):
    """A patch that changes the network only at some timesteps. Images of one batch may differ in this.

    The program then holds the network twice, with and without the patch, and runs what the batch needs.
    """

    def active(self, t: Timestep, own: PyTree) -> Bool[Array, "b"]:
        """Returns in which images the patch is active at the timesteps t [b]. `own` are its per-image arrays."""
        ...


@runtime_checkable
class Placed(Patch, Protocol):
    """A patch with per-image arrays that belong to places of the latent, such as hints."""

    def cut(self, own: PyTree, rows: Int[Array, "m"], columns: Int[Array, "n"]) -> PyTree:
        """Returns the per-image arrays of the part of the latent with these rows and columns."""
        ...


_depth: contextvars.ContextVar[int] = contextvars.ContextVar("depth", default=0)


def unpatched() -> contextlib.AbstractContextManager[int]:
    """Returns a context for another network inside a patch: surrounding patches do not see its layers.

    Patches that are entered in it work, and those that were entered with `everywhere`.
    """
    return scoped(_depth, _depth.get() + 1)


_patched: contextvars.ContextVar[bool] = contextvars.ContextVar("patched", default=False)


def is_patched() -> bool:
    """Returns whether networks run with patches here: a program that is traced now belongs to them."""
    return _patched.get()


_bare: contextvars.ContextVar[bool] = contextvars.ContextVar("bare", default=False)


def bare() -> contextlib.AbstractContextManager[bool]:
    """Returns a context for a layer alone inside a patch: no surrounding patch sees it."""
    return scoped(_bare, True)


_aside: contextvars.ContextVar[bool] = contextvars.ContextVar("aside", default=False)


def aside() -> contextlib.AbstractContextManager[bool]:
    """Returns a context for a call of the network for another picture, inside a patch (`is_aside`)."""
    return scoped(_aside, True)


def is_aside() -> bool:
    """Returns whether the network is called for another picture: what belongs to places has no meaning there."""
    return _aside.get()


@contextlib.contextmanager
def patched(
    patches: Sequence[Patch], shared: Sequence[PyTree] | None = None, own: Sequence[PyTree] | None = None, *,
    everywhere: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Returns a context in which networks run with these patches.

    The first patch is nearest to the network. Later patches wrap the earlier ones: the last patch sees a layer's inputs
    first and its output last. `shared` and `own` have one entry per patch, for `Patch.intercept`; without them, no
    patch has arrays. `everywhere`: they change other networks inside a patch too (`unpatched`).

    Raises ValueError unless there is one entry for each patch.
    """
    none = [None] * len(patches)
    shared, own = none if shared is None else shared, none if own is None else own
    if not len(patches) == len(shared) == len(own):
        raise ValueError(
            f"{len(patches)} patches need as many entries of shared and of per-image arrays; "
            f"got {len(shared)} and {len(own)}"
        )
    depth = None if everywhere else _depth.get()
    interceptors = [_calls_alone(patch.intercept(*arrays), depth) for patch, *arrays in zip(patches, shared, own)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(scoped(_patched, True))
        for interceptor in reversed(interceptors):  # Flax calls the one that was entered first before the others
            stack.enter_context(nn.intercept_methods(interceptor))
        stack.enter_context(_with_innermost())
        yield


_innermost: contextvars.ContextVar[Interceptor | None] = contextvars.ContextVar("innermost", default=None)
_entered: contextvars.ContextVar[int] = contextvars.ContextVar("entered", default=0)


@contextlib.contextmanager
def innermost(patch: Patch) -> Iterator[None]:
    """Returns a context in which a patch is nearer to all networks than those that are entered later."""
    with scoped(_innermost, _calls_alone(patch.intercept(None, None), None)), patched([]):
        yield


@contextlib.contextmanager
def _with_innermost() -> Iterator[None]:
    """Returns a context that enters the innermost patch again, behind others, in place of where it was before."""
    found = _innermost.get()
    if found is None:
        yield
        return
    number = _entered.get() + 1

    def intercept(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> Any:
        if _entered.get() != number:  # it was entered again, nearer to the network
            return method(*args, **kwargs)
        return found(method, args, kwargs, context)

    with scoped(_entered, number), nn.intercept_methods(intercept):
        yield


def _calls_alone(interceptor: Interceptor, depth: int | None) -> Interceptor:
    """Returns the interceptor restricted to `__call__`: Flax also calls internal methods without name and path.

    It is also restricted to the networks at this depth of `unpatched`; None: to none.
    """

    def intercept(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> Any:
        if context.method_name != "__call__" or _bare.get() or depth not in (None, _depth.get()):
            return method(*args, **kwargs)
        return interceptor(method, args, kwargs, context)

    return intercept


_reports: contextvars.ContextVar[dict[str, Array] | None] = contextvars.ContextVar("reports", default=None)


@contextlib.contextmanager
def reporting() -> Iterator[dict[str, Array]]:
    """Returns a context with a dictionary of what patches `report` in it. Network and reader must share one trace."""
    reports: dict[str, Array] = {}
    with scoped(_reports, reports):
        yield reports


def report(name: str, value: Array) -> None:
    """Gives an array from inside a network to the surrounding `reporting`, if there is one."""
    reports = _reports.get()
    if reports is not None:
        reports[name] = value


def path_of(context: Context) -> str:
    """Returns the path of the layer that is called, "down_blocks_0/attentions_0/proj_in"; "" for the network itself."""
    return "/".join(context.module.path)
