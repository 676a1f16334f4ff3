"""Turns a command's error into an exit status and a sentence. Imports nothing heavy."""

import os
import re
import sys
import traceback

from sdjax import errors
from sdjax.spelling import nearest

OK, FAILED, BAD_INPUT, BAD_CHECKPOINT, BAD_IMAGE, OUT_OF_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
EXTRAS = {  # extras by the modules that they install
    "train": ("optax", "orbax", "grain", "array_record", "tensorflow_datasets", "tensorboardX"),
    "beam": ("apache_beam",),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
}


def describe(error: Exception) -> tuple[int, str]:
    """Returns the exit status and the sentence for an error that a command raised."""
    text = str(error) or type(error).__name__
    if _is(error, "sdjax.convert.errors", "CheckpointError"):
        return BAD_CHECKPOINT, text
    if _is(error, "sdjax.tasks.results", "ImageError"):
        return BAD_IMAGE, text
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY, text if error.args else "out of memory"
    if isinstance(error, RuntimeError) and ("RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()):
        return OUT_OF_MEMORY, f"the device has too little memory ({text.splitlines()[0]})"
    if sentence := _about_set_up(error, text):
        return BAD_INPUT, sentence
    if isinstance(error, ValueError):
        return BAD_INPUT, text
    if isinstance(error, OSError):
        return FAILED, errors.sentence(error)
    if isinstance(error, FloatingPointError):
        return FAILED, text
    if isinstance(error, ImportError) or "jaxlib" in text.partition("\n")[0]:
        return FAILED, _about_import(error, text)
    if _is(error, "jax.errors", "JaxRuntimeError"):
        return FAILED, f"the device failed: {text.splitlines()[0]}\n(--debug shows where)"
    return FAILED, f"internal error: {type(error).__name__}: {text}\n(--debug shows where; please report it)"


def _about_set_up(error: Exception, text: str) -> str | None:
    """Returns the sentence about a device that JAX does not have; None for any other error.

    JAX raises RuntimeError "Unable to initialize backend ..." and "Unknown backend ...", with pages of detail, or fails
    an assertion of its own.
    """
    found = re.search(r"(?:Unable to initialize backend|Unknown backend:?) '([^']*)'", text)
    if found is None and not (type(error) in (RuntimeError, AssertionError) and _where(error) == "xla_bridge.py"):
        return None
    variable = next((name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)), None)
    asked = os.environ.get(variable, "") if variable else ""
    kind = found[1] if found else asked.partition(",")[0]
    if not kind:
        return f"JAX finds no device ({text.splitlines()[0]}); JAX_PLATFORMS=cpu uses the processor"
    known = ("cpu", "cuda", "gpu", "rocm", "tpu")
    why = "this computer has none, or JAX is not installed for it (docs/installation.md)"
    if kind not in known:
        near = nearest(kind, known)
        why = f"it knows {', '.join(known)}" + (f" (did you mean {near}?)" if near else "")
    elif kind in ("cuda", "gpu") and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        why = "CUDA_VISIBLE_DEVICES hides all GPUs"
    asks = f"{variable}={asked} asks for {kind!r}" if variable else f"JAX was asked for {kind!r}"
    return f"{asks}, which JAX cannot use here: {why}. Without the variable, or with JAX_PLATFORMS=cpu, it finds others"


def _where(error: Exception) -> str:
    """Returns the name of the file that raised the error."""
    frames = traceback.extract_tb(error.__traceback__)
    return os.path.basename(frames[-1].filename) if frames else ""


def _about_import(error: Exception, text: str) -> str:
    """Returns the sentence about a package that is missing or does not fit."""
    first = text.partition("\n")[0]
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        name = error.name.partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
        if extra is not None:
            return f"this needs {error.name}, which is not installed: in the clone of sdjax, pip install '.[{extra}]'"
        if name != "sdjax":
            return f"this needs {error.name}, which is not installed: in the clone of sdjax, pip install ."
    return f"installed packages do not fit together ({first}): pip install --upgrade jax jaxlib flax"


def _is(error: Exception, module: str, name: str) -> bool:
    # A module that was never imported cannot have raised anything; importing it now would take a second
    return module in sys.modules and isinstance(error, getattr(sys.modules[module], name))
