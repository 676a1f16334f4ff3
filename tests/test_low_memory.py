"""Networks that are read from their file layer by layer: the same numbers, and few parameters in memory at a time."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import convert
from sdjax.adapters import FreeU, FreeUNumbers
from sdjax.adapters.patch import patched, path_of
from sdjax.convert.bundle import bundle_of_params
from sdjax.nn import UNet
from sdjax.pipeline import placement, planning
from sdjax.pipeline.low_memory import BAND, LowMemoryPipeline
from sdjax.pipeline.streaming import StoredLeaf, in_memory, stored, streamed
from sdjax.prompts.tokenizer import Tokenizer

import models
from checks import near


@pytest.fixture(scope="module")
def bundle():
    return bundle_of_params(models.TINY, models.random_params(models.TINY), Tokenizer())


@pytest.fixture(scope="module")
def low(bundle):
    return LowMemoryPipeline(bundle.config, stored(bundle.leaves), bundle.tokenizer(), bundle=bundle)


def inputs():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    context = np.random.default_rng(1).normal(size=(2, 77, 32)).astype(np.float32)
    return x, np.float32([900, 20]), context


def test_a_network_that_is_read_layer_by_layer_gives_the_same_numbers(low):
    params, network = in_memory(low.params)["unet"], UNet(models.TINY.unet)
    numbers = FreeUNumbers(*(jnp.array([1.0, factor]) for factor in (1.5, 1.6, 0.9, 0.2)))
    with patched([FreeU()], own=[numbers]):  # a patch between layers, of numbers for each image
        want = jax.jit(network.apply)({"params": params}, *inputs())
        with streamed():
            got = network.apply({"params": low.params["unet"]}, *inputs())
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())  # float32's rounding of sums


def test_patches_of_layers_are_seen(low):
    def doubled(method, args, kwargs, context):
        out = method(*args, **kwargs)
        return 2 * out if path_of(context).endswith("attn1/to_q") else out

    class Doubled:
        def intercept(self, shared, own):
            return doubled

    network, params = UNet(models.TINY.unet), in_memory(low.params)["unet"]
    plain = network.apply({"params": params}, *inputs())
    with patched([Doubled()]):
        want = network.apply({"params": params}, *inputs())
    with streamed(), patched([Doubled()]):
        got = network.apply({"params": low.params["unet"]}, *inputs())
    assert np.abs(want - plain).max() > 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_few_layers_are_in_memory(low, monkeypatch):
    read, alive, most = StoredLeaf.__array__, [], 0

    def counted(leaf, *args, **options):
        nonlocal most
        array = np.array(read(leaf, *args, **options))  # one that owns its memory can be watched
        alive.append(weakref.ref(array))
        most = max(most, sum(one() is not None for one in alive))
        return array

    monkeypatch.setattr(StoredLeaf, "__array__", counted)
    with streamed():
        UNet(models.TINY.unet).apply({"params": low.params["unet"]}, *inputs())
    assert len(alive) == len(jax.tree.leaves(low.params["unet"]))
    assert most <= 10  # kernel and bias of two layers, and those that JAX lets go a little later


def test_one_network_is_on_the_device_at_a_time(low):
    networks = low.on(placement.make_mesh(jax.devices()[:1]))
    vae = weakref.ref(jax.tree.leaves(networks["vae"])[0])
    assert networks["vae"] is networks["vae"]
    networks["text"]
    gc.collect()
    assert vae() is None
    assert sorted(networks) == ["text", "unet", "vae"]


def test_the_autoencoder_works_in_bands(low):
    assert low._autoencoder(None).band == BAND
    assert models.pipeline()._autoencoder(None).band is None


def test_several_devices_are_refused(low):
    with pytest.raises(ValueError, match="computes on one device; got 2: choose one by devices"):
        low.on(placement.make_mesh(jax.devices()[:2]))


def test_what_was_not_read_is_saved(low, tmp_path):
    low.save(tmp_path / "model")
    saved = convert.load_model(tmp_path / "model").params
    jax.tree.map(np.testing.assert_array_equal, saved, models.random_params(models.TINY))


def test_a_plan_is_the_sum_of_the_parts_or_the_largest_one():
    uses = planning.Use("text encoder", 3, 1), planning.Use("sampler", 10, 4), planning.Use("decoder", 2, 7)
    assert planning.Plan(uses, True).peak == 3 + 10 + 2 + 7
    assert planning.Plan(uses, False).peak == 10 + 4


def test_a_plan_says_what_to_do_if_it_does_not_fit(monkeypatch):
    monkeypatch.setattr(planning, "room", lambda device: 100)
    uses = (planning.Use("sampler", 90, 1),)
    (sentence,) = planning.advice(planning.Plan(uses, True), "float32", 2, None)
    assert sentence == (
        "it does not fit, as there are 100 bytes: try --dtype bfloat16, a smaller --n_samples, --low-memory, smaller "
        "--H and --W"
    )
    (sentence,) = planning.advice(planning.Plan(uses[:1], False), "bfloat16", 1, None)
    assert "try smaller --H and --W" in sentence
    assert (
        planning.advice(planning.Plan((planning.Use("sampler", 80, 1),), False), "float32", 2, None)[0][:7] == "it fits"
    )


def test_layers_of_a_plan_are_the_networks(bundle):
    layers = planning.Layers()
    with patched([layers], everywhere=True):
        jax.eval_shape(UNet(models.TINY.unet).apply, {"params": models.random_params(models.TINY)["unet"]}, *inputs())
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(models.random_params(models.TINY)["unet"]))
    found = max(
        max(planning.nbytes(leaf) for leaf in given[0].values()) for _, given in layers.found.values() if given[0]
    )
    assert found == largest
    assert layers.skips == 2 * 8 * 8 * 32 * 4  # of the one residual block's output


@pytest.mark.slow  # compiles three programs, and those of all layers
def test_low_memory_is_planned_to_need_less(capsys):
    from sdjax.scripts.main import main

    totals = []
    for flags in [], ["--low-memory"]:
        assert main(["plan", "builtin", "--device", "cpu:0", *flags]) == 0
        out = capsys.readouterr().out
        assert "sampler" in out
        totals.append(out)
    config = sdjax.load("builtin").config
    whole, low = (planning.plan(config, "float32", (64, 64), low_memory=flag).peak for flag in (False, True))
    assert low < whole / 2


@pytest.mark.slow  # each runs some hundred small programs, which are compiled
@pytest.mark.parametrize("options", [{"sampler": "dpmpp_2m_sde"}, {"sampler": "dpm_adaptive"}, {"seamless": "xy"},
                                     {"guidance": "cfg_zero_star+pag"}, {"num_steps": 2, "exact": True}])  # fmt: skip
def test_pictures_are_the_same_with_low_memory(options):
    one = {"devices": jax.devices()[:1], "seed": [3, 4], "num_steps": 3, "guidance_scale": 5.0, **options}
    whole, low = (
        sdjax.text_to_image(
            sdjax.load("builtin", low_memory=flag), ["a cat on a blue background", "a red apple"], **one
        )
        for flag in (False, True)
    )
    assert near(whole, low)
    assert whole.std() > 20
