"""What patches of self-attention share: which calls they change, and maps cut into parts."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Float

from sdjax.adapters.patch import Context, Interceptor
from sdjax.adapters.spans import Inside

Attend: TypeAlias = Callable[..., Array]  # of queries, keys and values [b, n, h, d], all of one map
Changed: TypeAlias = Callable[[Attend, tuple[Array, Array, Array], Inside, str], Array]


def self_attention(changed: Changed, levels: int | None = None) -> Interceptor:
    """Returns the interceptor of `.../attn1/attend` where a map attends to itself, in the first `levels` levels.

    `changed(attend, (q, k, v), inside, path)` returns what takes the place of attend(q, k, v). None: in all levels.
    """
    inside = Inside()

    def intercept(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> Any:
        path = inside.see(args, context)
        attention, _, layer = path.rpartition("/")
        if layer != "attend" or not inside.attends_to_itself(attention):
            return method(*args, **kwargs)
        if levels is not None and not inside.at_level(path, levels):
            return method(*args, **kwargs)
        q, k, v = args[:3]
        return changed(method, (q, k, v), inside, path)

    return intercept


def cut(x: Float[Array, "b h w c"], parts: tuple[int, ...]) -> Float[Array, "k m n c"]:
    """Returns maps cut into parts[0] x parts[1] parts, those of a map one after the other."""
    b, h, w, c = x.shape
    m, n = parts
    return x.reshape(b, m, h // m, n, w // n, c).swapaxes(2, 3).reshape(b * m * n, h // m, w // n, c)


def joined(x: Float[Array, "k m n c"], parts: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """Returns the maps whose parts `cut` returned."""
    b, h, w, c = x.shape
    m, n = parts
    return x.reshape(-1, m, n, h, w, c).swapaxes(2, 3).reshape(b // (m * n), m * h, n * w, c)
