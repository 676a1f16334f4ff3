"""Copies of what was loaded compute with their own parameters, and its repr is a line."""

import copy
import dataclasses
import pickle

import jax
import numpy as np
import pytest
import small_safety

from sdjax.config import PriorConfig, TextConfig
from sdjax.nn import param_shapes
from sdjax.nn.prior import ProjectedTextEncoder
from sdjax.pipeline import placement
from sdjax.pipeline.model import Pipeline
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.tasks.prior import Prior
from sdjax.tasks.safety import SafetyChecker

import models

PRIOR = PriorConfig(width=64, heads=2, layers=2, embedding=16, text=TextConfig(width=16, layers=1, heads=1))


def pipeline():
    """Returns (pipeline, what its text encoder makes of a prompt)."""
    params = {"text": models.fill_tree(param_shapes(models.TINY)["text"])}
    pipe = Pipeline(models.TINY, params, Tokenizer())
    return pipe, lambda pipe: np.asarray(pipe.encode_prompt(["a cat"], mesh=placement.make_mesh(jax.devices()[:1])))


def prior():
    """Returns (prior, what its text encoder makes of a prompt)."""
    network = ProjectedTextEncoder(PRIOR.text)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), np.zeros((1, 77), np.int32)))["params"]
    params = {"text": models.fill_tree(shapes)}
    return Prior(PRIOR, params, Tokenizer()), lambda prior: np.asarray(prior.encode(["a cat"]).label)


def checker(tmp_path):
    """Returns (safety checker, its scores of a picture)."""
    spec, tensors, _ = small_safety.checker()
    loaded = SafetyChecker.load(small_safety.write(tmp_path / "checker", spec, tensors), dtype="float32")
    return loaded, lambda checker: checker.check([models.picture()]).concepts


@pytest.fixture(params=["pipeline", "prior", "checker"])
def owner(request, tmp_path):
    """Returns one of the three, which has computed, with what it computes."""
    loaded, compute = {"pipeline": pipeline, "prior": prior, "checker": lambda: checker(tmp_path)}[request.param]()
    return loaded, compute, compute(loaded)


def others(params):
    """Returns other parameters of the same shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: np.asarray(a) + rng.normal(0, 0.3, np.shape(a)).astype(np.float32), params)


def test_replaced_parameters_are_computed_with_and_the_owner_keeps_its_own(owner):
    loaded, compute, first = owner
    changed = dataclasses.replace(loaded, params=others(loaded.params))
    second = compute(changed)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(compute(loaded), first)
    np.testing.assert_array_equal(compute(changed), second)
    np.testing.assert_array_equal(compute(dataclasses.replace(changed, params=loaded.params)), first)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a)),
                                  lambda a: dataclasses.replace(a, source="elsewhere")],
                         ids=["copy", "deepcopy", "pickle", "replace"])  # fmt: skip
def test_a_copy_computes_the_same_and_takes_other_parameters(owner, make):
    loaded, compute, first = owner
    made = make(loaded)
    np.testing.assert_array_equal(compute(made), first)
    object.__setattr__(made, "params", others(loaded.params))
    assert not np.allclose(compute(made), first)
    np.testing.assert_array_equal(compute(loaded), first)


def test_a_leaf_that_was_replaced_in_the_tree_is_seen(owner):
    loaded, compute, first = owner
    path, leaf = jax.tree_util.tree_leaves_with_path(loaded.params)[-1]
    place = loaded.params
    for key in path[:-1]:
        place = place[key.key]
    place[path[-1].key] = np.asarray(leaf) + 1
    assert not np.allclose(compute(loaded), first)
    place[path[-1].key] = leaf
    np.testing.assert_array_equal(compute(loaded), first)


def test_parameters_are_put_on_the_device_once(owner, monkeypatch):
    loaded, compute, first = owner
    calls = []
    put = jax.device_put
    count = len(jax.tree.leaves(loaded.params))
    monkeypatch.setattr(jax, "device_put", lambda x, *a, **k: calls.append(len(jax.tree.leaves(x))) or put(x, *a, **k))
    np.testing.assert_array_equal(compute(loaded), first)
    assert sum(calls) < count


def test_its_repr_is_one_short_line(owner):
    loaded, _, _ = owner
    text = repr(dataclasses.replace(loaded, source="folder"))
    assert "\n" not in text
    assert len(text) < 200
    assert type(loaded).__name__ in text
    assert "'folder'" in text
    assert "float32" in text
    assert len(f"{loaded}") < 200


def test_the_repr_of_a_checkpoint_that_was_read_is_one_short_line(tmp_path):
    from sdjax import convert

    pipe = models.pipeline()
    convert.save(pipe.config, pipe.params, tmp_path / "model", to="native")
    assert len(repr(convert.load_model(tmp_path / "model"))) < 200
