"""Hypernetworks in pictures: by file, by tags, with a strength for each picture."""

import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import convert
from sdjax.adapters.hypernetwork import ACTIVATIONS
from sdjax.convert import CheckpointError
from sdjax.convert.containers.lazy import LazyTensor
from sdjax.convert.write.safetensors_writer import write_safetensors
from sdjax.tasks.hypernetworks import hypernetworks_in_prompt, read_hypernetwork

import models
from checks import count_compilations, relative_error

FEW = {"num_steps": 2, "height": 64, "width": 64, "sampler": "euler"}
WIDTH = models.TINY.unet.context_dim


def net(seed, width=WIDTH, factor=2):
    rng = np.random.default_rng(seed)
    sizes = (width, factor * width, width)
    return {
        f"{width}.{which}.linear.{2 * i}.{piece}": rng.normal(size=shape).astype("f") / width**0.5
        for which in (0, 1) for i in (0, 1)
        for piece, shape in (("weight", (sizes[i + 1], sizes[i])), ("bias", (sizes[i + 1],)))
    }  # fmt: skip


def save(path, tensors):
    several = {name: LazyTensor(a.shape, a.dtype, lambda a=a: a, name=name) for name, a in tensors.items()}
    write_safetensors(path, several, {"activation_func": "relu", "activate_output": "False"}, aligned=False)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("hypernetworks")
    save(place / "one.safetensors", net(1))
    save(place / "two.safetensors", net(2))
    return place


def made(pipe, *prompts, **options):
    return np.stack(list(sdjax.text_to_image(pipe, list(prompts), seed=[5] * len(prompts), **{**FEW, **options})))


def test_it_is_a_residual_network_of_the_input():
    tensors = net(3)
    loaded = convert.load_hypernetwork({**tensors, "activation_func": "relu", "activate_output": False}, models.TINY)
    x = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype("f")
    for which in 0, 1:
        (w0, b0), (w1, b1) = (
            [tensors[f"{WIDTH}.{which}.linear.{n}.{piece}"] for piece in ("weight", "bias")] for n in (0, 2)
        )
        want = np.maximum(x @ w0.T + b0, 0) @ w1.T + b1
        np.testing.assert_allclose(loaded.network.change(jnp.asarray(x), which), want, rtol=1e-4, atol=1e-5)
    assert loaded.network.change(x[..., 1:], 0) is None


@pytest.mark.torch
def test_activations_are_torchs():
    import torch

    x = np.linspace(-7, 7, 101, dtype="f")
    by_name = {name.lower(): one for name, one in vars(torch.nn.modules.activation).items() if isinstance(one, type)}
    for name, function in ACTIVATIONS.items():
        theirs = {"swish": torch.nn.Hardswish, "linear": torch.nn.Identity}.get(name) or by_name[name]
        want = theirs().eval()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(function(jnp.asarray(x)), want, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation_func": "glu"}, "'glu' is not known"),
        ({f"{WIDTH}.0.linear.2.weight": np.zeros((WIDTH, 3), "f")}, rf"{WIDTH}.0: a layer of \[{WIDTH}, 3\]"),
        ({"other": np.zeros(3, "f")}, "'other' is no tensor of a hypernetwork"),
        ({f"{WIDTH}.1.linear.0.bias": np.full(2 * WIDTH, np.nan, "f")}, "finite"),
    ],
)
def test_what_is_no_hypernetwork_is_refused(change, said):
    with pytest.raises(CheckpointError, match=said):
        convert.load_hypernetwork({**net(1), **change}, models.TINY)


def test_another_models_hypernetwork_is_refused():
    with pytest.raises(CheckpointError, match=f"for widths 7; the contexts of this model .* have {WIDTH}"):
        convert.load_hypernetwork(net(1, 7), models.TINY)


def test_tags_and_files_have_strengths(folder):
    text, uses = hypernetworks_in_prompt("a cat <hypernet:one:0.5><hypernet:two>", str(folder), models.TINY)
    assert text == "a cat"
    assert [(use.name, use.strength) for use in uses] == [("one", 0.5), ("two", 1.0)]
    assert read_hypernetwork(f"{folder / 'one.safetensors'}:-0.25", models.TINY).strength == -0.25
    for prompt, said in (("<hypernet:none>", "no adapter of the name"), ("<hypernet:one:1:2>", "more than a strength"),
                         ("[<hypernet:one>|a]", "starts or ends once")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            hypernetworks_in_prompt(prompt, str(folder), models.TINY, 4)


def test_each_picture_has_its_own_strength_and_another_network_compiles_nothing(folder):
    pipe = models.pipeline()
    options = {"hypernetwork_dir": str(folder)}
    got = made(pipe, "a cat <hypernet:one:0>", "a cat <hypernet:one:0.5>", "a cat <hypernet:one:1>", **options)
    np.testing.assert_array_equal(got[0], made(pipe, "a cat", "a cat", "a cat")[0])
    assert (got[1] != got[0]).any()
    assert (got[2] != got[1]).any()
    again = []
    tags = "<hypernet:two:0.5>", "<hypernet:two:1>", "<hypernet:two:2>"
    assert count_compilations(lambda: again.append(made(pipe, *(f"a cat {tag}" for tag in tags), **options))) == 0
    assert (again[0][0] != got[1]).any()


def test_tags_in_brackets_work_at_a_part_of_the_steps(folder):
    """The first steps and the last ones differ from the whole run, and from each other."""
    pipe, options = models.pipeline(), {"hypernetwork_dir": str(folder), "num_steps": 4, "output": "latent"}
    tags = "[<hypernet:one:3>::0.25]", "[<hypernet:one:3>:0.25]", "<hypernet:one:3>"
    early, late, whole = made(pipe, *(f"a cat {tag}" for tag in tags), **options)
    both = made(pipe, *["a cat [<hypernet:one:3>::0.25] [<hypernet:one:3>:0.25]"] * 3, **options)[0]
    assert relative_error(both, whole) < 1e-5  # float32
    assert min(relative_error(a, b) for a, b in ((early, whole), (late, whole), (early, late))) > 1e-3
    twice = "a cat [<hypernet:one:1>::0.25] <hypernet:one:0.2>"
    with pytest.raises(ValueError, match="the hypernetwork one is given twice"):
        made(pipe, twice, **options)
