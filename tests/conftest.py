"""Settings for every test: float32 products in full, eight CPU devices, nothing of or for the user's cache folder."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["SDJAX_COMPILATION_CACHE"] = "0"

import jax

jax.config.update("jax_default_matmul_precision", "highest")  # T68
