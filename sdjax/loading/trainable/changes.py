"""Training of changes of kernels: which kernels, of which rank and scale, and how the changes get into the networks."""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from sdjax.adapters.delta import Delta, changed
from sdjax.config import ConfigError
from sdjax.loading.trainable.protocol import Addition, by_path
from sdjax.typing import Key, Params

Factors = Mapping[str, Array]  # of one kernel, by their names

# Names for `targets`
TARGETS = {
    "attention": r"/(to_q|to_k|to_v|to_out_0|q_proj|k_proj|v_proj|out_proj)/kernel$",
    "linear": r"/(attentions_\d+|self_attn|mlp)/.*kernel$",  # every layer of the transformers
    "all": r"/kernel$",
}
BLOCKS = r"/(resnets|downsamplers|upsamplers)_\d+/.*kernel$"  # what `conv_rank` adds


@dataclasses.dataclass(frozen=True)
class Changes(Addition):
    """Changes of the kernels that `targets` names: a name of TARGETS, or a regular expression over their paths.

    A path looks like "unet/up_blocks_0/attentions_0/transformer_blocks_0/attn2/to_k/kernel". "attention" means queries,
    keys, values and outputs of all attention layers; "linear" all layers of the transformers and of the text encoder;
    "all" every linear layer and convolution.
    """

    targets: str = "attention"

    def __post_init__(self) -> None:
        check_pattern("targets", TARGETS.get(self.targets, self.targets))

    def is_target(self, path: str) -> bool:
        """Returns whether the kernel at this path is changed."""
        return re.search(TARGETS.get(self.targets, self.targets), path) is not None

    def init(self, base: Params, key: Key) -> Params:
        """Returns the changes' factors, below the paths of the kernels. At first they change nothing.

        Raises ConfigError if no kernel is a target.
        """
        kernels = {path: leaf for path, leaf in by_path(base).items() if path.endswith("/kernel")}
        found = {path: leaf for path, leaf in kernels.items() if self.is_target(path)}
        if not found:
            raise ConfigError(
                f"trainable.targets {self.targets!r} matches no kernel's path, such as {min(kernels, default='none')}; "
                f"it is one of {', '.join(TARGETS)}, or a regular expression"
            )
        # Each from a key of its own path, so that another choice of targets does not change its start
        keys = {path: jax.random.fold_in(key, zlib.crc32(path.encode())) for path in found}
        made = {tuple(path.split("/")): self.start(path, leaf, keys[path]) for path, leaf in found.items()}
        return unflatten_dict(made)

    def start(self, path: str, kernel: Array, key: Key) -> dict[str, Array]:
        """Returns the factors of one kernel before the first step, float32."""
        raise NotImplementedError

    def delta(self, path: str, factors: Factors) -> Delta:
        """Returns the change that the factors of the kernel at `path` describe."""
        raise NotImplementedError

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns `frozen` with the changes merged into its kernels."""
        return at_leaves(trained, frozen, lambda path, leaf, factors: changed(leaf, [(self.delta(path, factors), 1.0)]))

    def changes(self, trained: Params) -> dict[str, Delta]:
        """Returns the changes by the paths of the kernels."""
        found: dict[str, dict[str, Array]] = {}
        for path, leaf in by_path(trained).items():
            kernel, _, name = path.rpartition("/")
            if kernel.endswith("/kernel"):
                found.setdefault(kernel, {})[name] = leaf
        return {path: self.delta(path, factors) for path, factors in found.items()}


@dataclasses.dataclass(frozen=True)
class RankedChanges(Changes):
    """Changes of a rank, multiplied by alpha / rank.

    - `rank` is the most that a kernel's change has; `alpha` None is the rank, which gives the scale 1.
    - `conv_rank` is the rank for kernels larger than 1x1. With it, the targets are also all layers of the residual
      blocks and of the layers that change the size, as in LoCon; without it, `rank` serves for all targets.
      `conv_alpha` is the alpha for these kernels.
    - `ranks` and `alphas`: (regular expression, value) pairs. The first that matches in a kernel's path replaces them.
    """

    rank: int = 16
    alpha: float | None = None
    conv_rank: int | None = None
    conv_alpha: float | None = None
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, ranks in (
            ("rank", (self.rank,)),
            ("conv_rank", (self.conv_rank,)),
            ("ranks", dict(self.ranks).values()),
        ):
            if any(rank is not None and rank < 1 for rank in ranks):
                raise ValueError(f"{name} is a whole number from 1 up; got {', '.join(map(str, ranks))}")
        for alpha in (self.alpha, self.conv_alpha, *dict(self.alphas).values()):
            if alpha is not None and not 0 < alpha < math.inf:
                raise ValueError(f"alpha, conv_alpha and alphas are above 0; got {alpha}")
        if self.conv_alpha is not None and self.conv_rank is None:
            raise ValueError("conv_alpha needs conv_rank")
        for name in ("ranks", "alphas"):
            for pattern, _ in getattr(self, name):
                check_pattern(name, pattern)

    def is_target(self, path: str) -> bool:
        """Returns whether the kernel at this path is changed."""
        return super().is_target(path) or (self.conv_rank is not None and re.search(BLOCKS, path) is not None)

    def rank_of(self, path: str, shape: tuple[int, ...]) -> int:
        """Returns the rank that the settings give a kernel of this path and shape [c, d] or [h, w, c, d]."""
        own = self.rank if self.conv_rank is None or not is_wide(shape) else self.conv_rank
        return _first(self.ranks, path, own)

    def alpha_of(self, path: str, shape: tuple[int, ...]) -> float:
        """Returns alpha for a kernel of this path and shape."""
        own = self.alpha if self.conv_rank is None or not is_wide(shape) else self.conv_alpha
        return _first(self.alphas, path, float(self.rank_of(path, shape)) if own is None else own)

    def scale_of(self, path: str, shape: tuple[int, ...]) -> float:
        """Returns what multiplies the product of the factors of a kernel of this path and shape."""
        return self.alpha_of(path, shape) / self.rank_of(path, shape)


def at_leaves(
    trained: Params, frozen: Params, change: Callable[[str, Array, Any], Array], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns `frozen`, with `change(path, leaf, node)` for each leaf in whose place `trained` has a node.

    What only `trained` has is passed through.
    """
    out = dict(frozen)
    for name, node in trained.items():
        here, below = (*path, name), frozen.get(name)
        if below is None:
            out[name] = node
        elif isinstance(below, Mapping):
            out[name] = at_leaves(node, below, change, here)
        else:
            out[name] = change("/".join(here), below, node)
    return out


def is_wide(shape: tuple[int, ...]) -> bool:
    """Returns whether a kernel of this shape is that of a convolution larger than 1x1."""
    return len(shape) == 4 and tuple(shape[:2]) != (1, 1)


def check_pattern(name: str, pattern: str) -> None:
    """Raises ValueError unless the setting is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} takes regular expressions; {pattern!r} is none ({error})") from None


def _first(table: tuple[tuple[str, Any], ...], path: str, default: Any) -> Any:
    return next((value for pattern, value in table if re.search(pattern, path)), default)


def uniform(key: Key, shape: tuple[int, ...], rows: int) -> Array:
    """Returns uniform numbers within 1 / sqrt(rows), as torch's kaiming_uniform_ with a = sqrt(5)."""
    bound = 1 / math.sqrt(rows)
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
