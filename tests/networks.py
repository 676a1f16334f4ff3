"""Functions in place of networks."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class FunctionNetwork:
    """The network function(x, t, conditioning), without parameters and memory."""

    function: Callable

    def init(self, params, x):
        return ()

    def __call__(self, params, x, t, conditioning, memory):
        return self.function(x, t, conditioning), memory
