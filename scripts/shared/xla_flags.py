"""Checks XLA_FLAGS before work begins, because XLA ends the whole process at an unknown flag."""

import os
import re
import subprocess
import sys

KNOWN = ("--xla_force_host_platform_device_count", "--xla_gpu_deterministic_ops", "--xla_dump_to")
PROBE = "import jax; jax.devices('cpu')"


def check() -> None:
    """Raises ValueError for a flag in XLA_FLAGS that this XLA does not know. Known flags cost no time."""
    given = os.environ.get("XLA_FLAGS", "").split()
    if "jax" in sys.modules or all(flag.partition("=")[0] in KNOWN for flag in given):
        return
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    tried = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False)
    if found := re.search(r"Unknown flags? in XLA_FLAGS: (.*)", tried.stderr):
        raise ValueError(f"XLA_FLAGS holds {found[1].strip()}, which XLA does not know: correct it, or unset XLA_FLAGS")
