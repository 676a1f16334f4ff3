"""Modules that an import loads, seen in new processes. Who may import whom is in pyproject.toml, for import-linter."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FEW_PICTURES = [  # what few pictures need
    "scipy", "optax", "orbax", "transformers", "huggingface_hub", "ml_collections", "matplotlib",
    "sdjax.nn.networks", "sdjax.convert.containers.pickles", "sdjax.convert.inspection", "sdjax.convert.merge.merging",
    "sdjax.convert.parts.annotators", "sdjax.convert.write.writing", "sdjax.pictures.metadata",
    "sdjax.samplers.diffusers.build", "sdjax.tasks.hints",
]  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("from sdjax import pictures", ["jax", "flax", "torch"]),
        ("import sdjax", ["jax", "numpy", "flax", "torch", "tensorflow", "transformers", "PIL"]),
        ("from sdjax.tasks import generate", ["torch", "tensorflow", "transformers", "orbax", "ml_collections"]),
        ("import sdjax; sdjax.load; sdjax.text_to_image", FEW_PICTURES),
        ("from sdjax import convert", ["torch", "tensorflow", "transformers", "orbax", "PIL"]),
        ("from sdjax.scripts import main", ["jax", "numpy", "flax", "PIL", "tqdm"]),
    ],
)
def test_importing_stays_light(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["scripts/txt2img.py", "-m sdjax", "convert/__main__.py in out"])
def test_a_clone_that_is_not_installed_says_so_in_a_sentence(command):
    ran = subprocess.run([sys.executable, "-S", *command.split()], capture_output=True, text=True, cwd=ROOT)
    assert (ran.returncode, ran.stdout) == (1, "")
    [sentence] = ran.stderr.splitlines()
    assert "sdjax" in sentence
    assert "install" in sentence


def test_import_sdjax_alone_gives_the_modules_that_the_manual_names():
    names = ["adapters.LoRA", "convert.load", "noise.comfyui_noise", "samplers.from_diffusers"]
    code = "\n".join(["import sdjax", *(f"sdjax.{name}" for name in names)])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (ran.returncode, ran.stderr) == (0, "")
