"""Training of a model's own parameters: all of them, or those that match a regular expression."""

import dataclasses
import re
from typing import Literal

from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from sdjax.config import ConfigError
from sdjax.loading.trainable.protocol import by_path, lay_over
from sdjax.typing import Key, Params


@dataclasses.dataclass(frozen=True)
class Parts:
    """All parameters of the parts."""

    kind: Literal["parts"] = "parts"

    def init(self, base: Params, key: Key) -> Params:
        """Returns the base."""
        return dict(base)

    def fixed(self, base: Params) -> Params:
        """Returns nothing."""
        return {}

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns both."""
        return lay_over(trained, frozen)

    def export(self, trained: Params) -> dict[str, Array]:
        """Returns every parameter by its path."""
        return by_path(trained)


@dataclasses.dataclass(frozen=True)
class Leaves:
    """Only the parameters whose path matches the regular expression `pattern` somewhere.

    A path looks like "unet/up_blocks_0/attentions_0/transformer_blocks_0/attn2/to_k/kernel".
    """

    pattern: str
    kind: Literal["leaves"] = "leaves"

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern must be a regular expression; got {self.pattern!r} ({error})") from None

    def init(self, base: Params, key: Key) -> Params:
        """Returns the parameters that match."""
        found = self._select(base, True)
        if not found:
            raise ConfigError(
                f"trainable.pattern {self.pattern!r} matches no parameter's path, such as {min(by_path(base))}"
            )
        return found

    def fixed(self, base: Params) -> Params:
        """Returns the parameters that do not match."""
        return self._select(base, False)

    def assemble(self, trained: Params, frozen: Params) -> Params:
        """Returns `frozen` with the trained parameters in their places."""
        return lay_over(trained, frozen)

    def export(self, trained: Params) -> dict[str, Array]:
        """Returns every trained parameter by its path."""
        return by_path(trained)

    def _select(self, base: Params, matching: bool) -> Params:
        kept = {path: leaf for path, leaf in by_path(base).items() if bool(re.search(self.pattern, path)) == matching}
        return unflatten_dict({tuple(path.split("/")): leaf for path, leaf in kept.items()})
