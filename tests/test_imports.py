"""Who may import whom, read from the source and seen in fresh processes."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = {"sdjax": ROOT / "sdjax", "sdjax.convert": ROOT / "convert", "sdjax.configs": ROOT / "configs",
           "sdjax.scripts": ROOT / "scripts"}  # fmt: skip

# Part of the library -> the parts of it that it may import (itself always)
ALLOWED = {
    "sdjax.typing": set(),
    "sdjax.addresses": set(),
    "sdjax.effects": {"sdjax.notes"},
    "sdjax.files": {"sdjax.addresses"},
    "sdjax.remote": {"sdjax.addresses", "sdjax.files"},
    "sdjax.arguments": set(),
    "sdjax.hints": set(),
    "sdjax.notes": set(),
    "sdjax.pinned": {"sdjax.arguments", "sdjax.typing"},
    "sdjax.description": set(),
    "sdjax.config": {"sdjax.description"},
    "sdjax.schedule": {"sdjax.config", "sdjax.typing"},
    "sdjax.resize": set(),
    "sdjax.denoiser": {"sdjax.arguments", "sdjax.notes", "sdjax.schedule", "sdjax.config", "sdjax.typing",
                       "sdjax.samplers"},
    "sdjax.nn": {"sdjax.config", "sdjax.pinned", "sdjax.typing", "sdjax.resize"},
    "sdjax.samplers": {"sdjax.arguments", "sdjax.effects", "sdjax.schedule", "sdjax.config", "sdjax.typing"},
    "sdjax.sharding": {"sdjax.typing"},
    "sdjax.image": {"sdjax.addresses", "sdjax.files", "sdjax.typing", "sdjax._version"},
    "sdjax.pictures": {"sdjax.addresses", "sdjax.files"},
    "sdjax.movie": {"sdjax.files", "sdjax.typing"},
    "sdjax.tiling": {"sdjax.config", "sdjax.nn", "sdjax.typing"},
    "sdjax.watermark": {"sdjax.typing"},
    "sdjax.tokenizer": {"sdjax.addresses", "sdjax.files", "sdjax.typing", "sdjax.config"},
    "sdjax.checkpoint": {"sdjax.config", "sdjax.typing", "sdjax.tokenizer", "sdjax._version"},
    "sdjax.configs": {"sdjax.config"},
    "sdjax.convert": {"sdjax.config", "sdjax.configs", "sdjax.nn", "sdjax.checkpoint", "sdjax.tokenizer",
                      "sdjax.addresses", "sdjax.arguments", "sdjax.files", "sdjax.pinned", "sdjax.remote",
                      "sdjax.typing", "sdjax._version"},
}  # fmt: skip
# Package -> the only modules that may import it
ONLY = {
    "torch": set(),
    "tensorflow": set(),
    "diffusers": set(),
    "transformers": {"sdjax.tokenizer"},
    "PIL": {"sdjax.image", "sdjax.movie", "sdjax.pictures", "sdjax.train"},  # the last reads and draws training's data
    "ml_collections": {"sdjax.configs", "sdjax.scripts", "sdjax.train"},
    "orbax": {"sdjax.checkpoint", "sdjax.train"},
    "optax": {"sdjax.train"},
    "huggingface_hub": {"sdjax.hub"},
    "pywt": {"sdjax.watermark"},
}


def modules():
    """Yields (dotted name, syntax tree) of every module of the library."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
            yield name, path.name == "__init__.py", ast.parse(path.read_text())


def imports(name, is_package, tree):
    """Yields the absolute names of the modules that the module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name):
    """Returns the first two components of a module's name, sdjax.nn of sdjax.nn.unet."""
    return ".".join(name.split(".")[:2])


def test_parts_import_only_the_parts_below_them():
    wrong = []
    for name, is_package, tree in modules():
        allowed = ALLOWED.get(part(name))
        if allowed is None or name.endswith(".__main__"):  # a command, as those in sdjax.scripts
            continue
        for imported in imports(name, is_package, tree):
            target = part(imported)
            if imported.startswith("sdjax.") and target != part(name) and target not in allowed:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


@pytest.mark.parametrize("package", ONLY)
def test_only_one_place_imports(package):
    wrong = [
        name
        for name, is_package, tree in modules()
        for imported in imports(name, is_package, tree)
        if imported.split(".")[0] == package and part(name) not in ONLY[package]
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("from sdjax import pictures", ["jax", "flax", "torch"]),
        ("import sdjax", ["jax", "numpy", "flax", "torch", "tensorflow", "transformers", "PIL"]),
        ("from sdjax import generate, pipeline", ["torch", "tensorflow", "transformers", "orbax", "ml_collections"]),
        ("from sdjax import convert", ["torch", "tensorflow", "transformers", "orbax", "PIL"]),
        ("from sdjax.scripts import main", ["jax", "numpy", "flax", "PIL", "tqdm"]),
    ],
)
def test_importing_stays_light(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
