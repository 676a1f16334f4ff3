"""JAX's settings. Results must not depend on them, so they are fixed, or recorded in pictures if they matter.

A user, a notebook or an environment variable (JAX_ENABLE_X64, ...) may have changed any of them. All computations run
inside `pinned()`, so that a seed always gives the same picture. Users may still choose the precision of products and
XLA's options, which can change the last bits; `recorded()` returns these for the metadata of pictures. Keys are made
here, because jax.random.key adds JAX_RANDOM_SEED_OFFSET and uses the user's type of generator.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdjax.checks import arguments
from sdjax.typing import Key, Keys

IMPL = "threefry2x32"

# JAX's context managers by name, and our values. The numbers that threefry draws depend on the first one
PINNED = {
    "threefry_partitionable": True,
    "default_prng_impl": IMPL,
    "enable_custom_prng": False,
    "legacy_prng_key": "allow",
    "debug_key_reuse": False,
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "allow_f16_reductions": True,
    "softmax_custom_jvp": False,
    "disable_jit": False,
    "transfer_guard": "allow",
}

# Settings for the device's precision and XLA's compilation, and their defaults
OPTIONS = {
    "jax_default_matmul_precision": None,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_compiler_enable_remat_pass": True,
    "jax_enable_pgle": False,
    "jax_use_magma": "auto",
}
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "TF_CUDNN_DETERMINISTIC", "TF_CUDNN_USE_AUTOTUNE",
             "CUBLAS_WORKSPACE_CONFIG", "ROCBLAS_DEFAULT_ATOMICS_MODE", "MIOPEN_FIND_MODE")  # fmt: skip
NO_NUMBERS = ("--xla_force_host_platform_device_count", "--xla_dump_", "--xla_hlo_profile")  # XLA_FLAGS


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Sets JAX's settings to PINNED. Use it as a context manager or a decorator."""
    with contextlib.ExitStack() as stack:
        for name, value in PINNED.items():
            if hasattr(jax, name):  # settings come and go with JAX's versions
                stack.enter_context(getattr(jax, name)(value))
        yield


def setting(name: str) -> object:
    """Returns the value of one of JAX's options, "jax_default_device" for example."""
    return getattr(jax.config, name)  # JAX makes these attributes when it starts, where type checkers do not see them


def recorded() -> dict[str, bool | int | float | str]:
    """Returns the settings and environment variables that may change the last bits, if they are not the defaults."""
    values: dict[str, Any] = {name: getattr(jax.config, name, default) for name, default in OPTIONS.items()}
    found = {name: value for name, value in values.items() if value != OPTIONS[name]}
    found = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in found.items()}
    for name in VARIABLES:
        words = [word for word in os.environ.get(name, "").split() if not word.startswith(NO_NUMBERS)]
        if words:
            found[name] = " ".join(words)
    return found


def make_key(seed: int) -> Key:
    """Returns the key of a seed: jax.random.key(seed) for up to 32 bits. Of a longer seed the last 64 bits are used."""
    return make_keys([seed % 2**64])[0]


def make_keys(seeds: Sequence[int]) -> Keys:
    """Returns one key per image, [b], from seeds of up to 64 bits. For 32 bits they are jax.random.key(seed).

    Raises ValueError unless each seed is a whole number from 0 to 2**64 - 1.
    """
    seeds = [arguments.seed(seed) for seed in seeds]
    words = np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32).reshape(len(seeds), 2)
    return jax.random.wrap_key_data(jax.device_put(words), impl=IMPL)
