"""JAX's settings, so that results depend on none of them: held at fixed values, or recorded where they have to matter.

A user, a notebook or an environment variable (JAX_ENABLE_X64, ...) may have set any of them. Whatever computes runs
within `pinned()`, so that one seed gives one picture. What is left to the user is how exactly products are computed and
how XLA compiles, which may change the last bits: `recorded()` says so in every picture. Keys are made here and not by
jax.random.key, which adds JAX_RANDOM_SEED_OFFSET and takes the user's kind of generator.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checks import arguments
from sdjax.typing import Key, Keys

IMPL = "threefry2x32"

# Contexts of jax by name, and the values that hold within. The numbers that threefry draws depend on the first
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

# Settings that say how exactly the device computes or how XLA compiles, and their defaults
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
    "jax_scan3": False,  # of JAX 0.12, where it changes more than last bits
}
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "TF_CUDNN_DETERMINISTIC", "TF_CUDNN_USE_AUTOTUNE",
             "CUBLAS_WORKSPACE_CONFIG", "ROCBLAS_DEFAULT_ATOMICS_MODE", "MIOPEN_FIND_MODE")  # fmt: skip
NO_NUMBERS = ("--xla_force_host_platform_device_count", "--xla_dump_", "--xla_hlo_profile")  # XLA_FLAGS


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Returns the context, and decorator, within which JAX's settings are PINNED."""
    with contextlib.ExitStack() as stack:
        for name, value in PINNED.items():
            if hasattr(jax, name):  # settings come and go with JAX's versions
                stack.enter_context(getattr(jax, name)(value))
        yield


def setting(name: str) -> object:
    """Returns the value of one of JAX's options, "jax_default_device" for example."""
    return getattr(jax.config, name)  # JAX makes these attributes when it starts, where type checkers do not see them


def recorded() -> dict[str, bool | int | float | str]:
    """Returns the settings and environment variables that may change the last bits, where they are not the defaults."""
    values: dict[str, Any] = {name: getattr(jax.config, name, default) for name, default in OPTIONS.items()}
    found = {name: value for name, value in values.items() if value != OPTIONS[name]}
    found = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in found.items()}
    for name in VARIABLES:
        words = [word for word in os.environ.get(name, "").split() if not word.startswith(NO_NUMBERS)]
        if words:
            found[name] = " ".join(words)
    return found


def make_key(seed: int) -> Key:
    """Returns the key of a seed, jax.random.key(seed) for one of 32 bits; of a longer one the last 64 bits count."""
    return make_keys([seed % 2**64])[0]


def make_keys(seeds: Sequence[int]) -> Keys:
    """Returns one key an image, [b], from seeds of up to 64 bits; for 32 bits they are jax.random.key(seed).

    Raises ValueError for a seed outside 0 ... 2**64 - 1, and what is no whole number.
    """
    seeds = [arguments.seed(seed) for seed in seeds]
    words = np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32).reshape(len(seeds), 2)
    return jax.random.wrap_key_data(jnp.asarray(words), impl=IMPL)
