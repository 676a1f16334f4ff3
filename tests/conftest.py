"""Settings for every test: float32 products in full, eight CPU devices, nothing of or for the user's cache folder.

XLA compiles in the quickest way, without its costly optimisations, which more than halves the time of a run;
SDJAX_TEST_OPTIMIZED=1, which `make test-all` sets, leaves them on.
"""

import collections
import importlib.metadata
import os

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *(
            ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
            # XLA's older emitters, which compile faster. JAX 0.11 has no others than the new ones, and no such flag
            + ["--xla_cpu_use_fusion_emitters=false"] * importlib.metadata.version("jaxlib").startswith("0.10.")
            if os.environ.get("SDJAX_TEST_OPTIMIZED", "0") != "1"
            else []
        ),
    ]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["SDJAX_COMPILATION_CACHE"] = "0"

import jax
import jaxtyping
import pytest

# The shapes in signatures are checked at every call. The hook goes first, before a test imports a module of sdjax
if os.environ.get("SDJAX_TEST_SHAPES", "1") == "1":
    CHECKED = [
        "adapters",
        "diffusion",
        "nn",
        "noise",
        "pictures",
        "pipeline",
        "prompts",
        "samplers",
        "schedule",
        "tasks",
        "train",
    ]
    jaxtyping.install_import_hook([f"sdjax.{part}" for part in CHECKED], "shape_checks.checked")

jax.config.update("jax_default_matmul_precision", "highest")  # XLA may take fewer bits by default


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """Lets a test see how sdjax itself refuses shapes that the hook would refuse before it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not choose
def pytest_collection_modifyitems(items):
    """Marks as slow what `@pytest.mark.few(n)` leaves to the slow tests: all cases of a test but the first n."""
    seen = collections.Counter()
    for item in items:
        few = item.get_closest_marker("few")
        if few is None:
            continue
        name = item.nodeid.partition("[")[0]
        seen[name] += 1
        if seen[name] > few.args[0]:
            item.add_marker(pytest.mark.slow)
