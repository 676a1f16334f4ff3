"""Detectors of YOLOv8's family: weights alone, whole pickled modules, what is refused.

The network itself was compared with ultralytics's by hand; names and layout are those of its files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writer import safetensors_file, torch_zip
from pickle_writer import Call, Global, tensors

from sdjax import convert
from sdjax.convert.errors import CheckpointError
from sdjax.nn.detector import Detector, DetectorConfig
from sdjax.nn.networks import NETWORKS

CONFIG = DetectorConfig((8, 8, 16, 16, 16), (16, 8, 16, 16), (1, 2, 1, 1, 1, 1, 1, 1), 2)


def weights() -> tuple[dict, dict[str, np.ndarray]]:
    """Returns random parameters, and the same as a file names them."""
    rng, named = np.random.default_rng(0), {}

    def made(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        value = rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32)
        *names, last = [part.key for part in path]
        names = [name.replace("_", ".") for name in names]
        stored = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        last = {"kernel": "weight", "scale": "weight"}.get(last, last)
        named[".".join(["model", *names, last])] = np.ascontiguousarray(stored)
        return value

    tree = jax.tree_util.tree_map_with_path(made, NETWORKS["detector"].shapes(CONFIG))
    return tree, named | {"model.22.dfl.conv.weight": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)}


def module(names: dict) -> Call:
    """Returns a pickled module with these tensors by their dotted names."""
    own: dict = {name: one for name, one in names.items() if "." not in name}
    inner: dict = {}
    for name, one in names.items():
        first, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = one
    state = {"training": False, "_parameters": {}, "_buffers": own, "stride": None, "hooks": Call(Global("os", "nice"))}
    state["_modules"] = {name: module(own) for name, own in inner.items()}
    return Call(Global("ultralytics.nn.tasks", "DetectionModel"), (), state)


def test_weights_and_whole_modules_give_the_same_detector(tmp_path) -> None:
    tree, named = weights()
    (tmp_path / "a.safetensors").write_bytes(safetensors_file(named))
    (tmp_path / "b.pt").write_bytes(torch_zip({"epoch": -1, "ema": None, "model": module(tensors(named))}))
    for name in "a.safetensors", "b.pt":
        loaded = convert.load_detector(tmp_path / name)
        assert (loaded.config, loaded.name) == (CONFIG, name)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, tree)
    with pytest.raises(CheckpointError, match="detector of objects"):
        convert.read(tmp_path / "b.pt")  # everywhere else whole modules are refused


def test_boxes_and_shares_of_three_levels() -> None:
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    variables = {"params": NETWORKS["detector"].shapes(CONFIG)}
    boxes, shares = jax.eval_shape(Detector(CONFIG).apply, variables, image)
    assert (boxes.shape, shares.shape) == ((1, 8 * 12 + 4 * 6 + 2 * 3, 4), (1, 126, 2))


def test_what_is_no_detector_is_refused(tmp_path) -> None:
    _, named = weights()
    del named["model.22.cv2.0.2.bias"]
    for name, content, said in (
        ("a.safetensors", safetensors_file(named), "model.22.cv2.0.2.bias is missing"),
        ("b.safetensors", safetensors_file({"x": np.zeros(3, np.float32)}), "no detector of YOLOv8"),
        ("c.pt", torch_zip({"model": Call(Global("ultralytics", "X"), (), {"_modules": {}})}), "tensors"),
        ("d.pt", torch_zip({"ultralytics": Call(Global("os", "system"), ("true",))}), "no module"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            convert.load_detector(tmp_path / name)
