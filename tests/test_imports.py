"""Who may import whom, read from the source and seen in fresh processes."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = {"sdjax": ROOT / "sdjax", "sdjax.convert": ROOT / "convert", "sdjax.configs": ROOT / "configs",
           "sdjax.scripts": ROOT / "scripts"}  # fmt: skip

# The parts from bottom to top: each imports those above it in this list, and itself
LAYERS = [
    ("sdjax.typing", "sdjax._version", "sdjax.description", "sdjax.checks", "sdjax.storage"),
    ("sdjax.config",),
    ("sdjax.schedule", "sdjax.purpose"),
    ("sdjax.nn",),
    ("sdjax.samplers", "sdjax.prompts", "sdjax.pictures", "sdjax.adapters"),
    ("sdjax.diffusion", "sdjax.configs"),
    ("sdjax.convert",),
    ("sdjax.pipeline",),
    ("sdjax.loading",),
    ("sdjax.tasks",),
    ("sdjax.evaluate", "sdjax.train"),
    ("sdjax.scripts",),
]
UPWARDS = {("sdjax.loading.load", "sdjax.train")}  # the model of a run's folder
# Package -> the only modules that may import it
ONLY = {
    "torch": set(),
    "tensorflow": set(),
    "diffusers": set(),
    "transformers": {"sdjax.prompts"},
    "PIL": {"sdjax.pictures", "sdjax.train"},  # the last reads and draws training's data
    "ml_collections": {"sdjax.configs", "sdjax.scripts", "sdjax.train"},
    "orbax": {"sdjax.train"},
    "optax": {"sdjax.train"},
    "huggingface_hub": {"sdjax.loading"},
    "pywt": {"sdjax.pictures"},
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
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    wrong = []
    for name, is_package, tree in modules():
        if name == "sdjax" or name.endswith(".__main__"):  # a command, as those in sdjax.scripts
            continue
        for imported in imports(name, is_package, tree):
            target = part(imported)
            if not imported.startswith("sdjax.") or target == part(name) or (name, target) in UPWARDS:
                continue
            if target in layer and layer[target] >= layer[part(name)] and imported != "sdjax.convert":
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
        ("from sdjax.tasks import generate", ["torch", "tensorflow", "transformers", "orbax", "ml_collections"]),
        ("from sdjax import convert", ["torch", "tensorflow", "transformers", "orbax", "PIL"]),
        ("from sdjax.scripts import main", ["jax", "numpy", "flax", "PIL", "tqdm"]),
    ],
)
def test_importing_stays_light(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
