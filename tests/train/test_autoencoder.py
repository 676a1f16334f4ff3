"""The autoencoder's losses against closed forms, PyTorch's numbers and gradients, and the reference's two passes.

golden/autoencoder.npz is made by tests/autoencoder_peer.py.
"""

import dataclasses
from types import SimpleNamespace

import autoencoder_peer as peer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from models_to_train import MODEL

from sdjax.config import ConfigError, VAEConfig
from sdjax.nn.layers.conv import conv2d
from sdjax.nn.metrics import discriminator
from sdjax.nn.metrics.discriminator import Discriminator
from sdjax.train.objectives import autoencoder
from sdjax.train.objectives.autoencoder import (
    AutoencoderObjective,
    adaptive_weight,
    adversarial_loss,
    hinge_loss,
    kl_divergence,
    reconstruction_error,
    vanilla_loss,
)
from sdjax.train.parallel import ParallelConfig, batch_sharding, training_mesh

import reference


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (0.7, 0.2), (-2.0, 1.5)])
def test_kl_divergence_is_the_integral_that_defines_it(mean, sigma):
    p, q = scipy.stats.norm(mean, sigma), scipy.stats.norm()
    expected, _ = scipy.integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - 12 * sigma, mean + 12 * sigma
    )
    moments = jnp.array([mean, 2 * np.log(sigma)], jnp.float32).reshape(1, 1, 1, 2)
    assert float(kl_divergence(moments)[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_reconstruction_error_of_a_ramp():
    # off by 0.5 on the left half: half the pixels, and one of 7 columns of differences, where it ends
    image = jnp.zeros([2, 8, 8, 3])
    other = image.at[:, :, :4].add(0.5)
    pixels, edges = reconstruction_error(image, other, 0.3)
    assert float(pixels) == pytest.approx(0.25)
    assert float(edges) == pytest.approx(0.3 * 0.5 / 7)


def test_autoencoder_loss_is_the_sum_of_its_parts(monkeypatch):
    class Autoencoder:
        """Takes the first channel for mean and log variance, and a latent for a grey picture."""

        def __init__(self, config):
            pass

        def bind(self, variables):
            return self

        def encode(self, image):
            return jnp.repeat(image[..., :1], 8, -1)

        def decode(self, latent):
            return jnp.repeat(latent[..., :1], 3, -1)

    monkeypatch.setattr(autoencoder, "AutoencoderKL", Autoencoder)
    loss = autoencoder.autoencoder_loss(MODEL.vae, kl_weight=0.01, edge_weight=0.5)
    images = np.full((200, 16, 16, 3), 255, np.uint8)  # 1, so that moments are N(1, e)
    keys = jax.random.split(jax.random.key(0), 200)
    total, parts = loss({"vae": {}}, None, {"image": images}, keys, 0)
    # decoded from s (1 + e^0.5 noise): |s - 1 + s e^0.5 noise| in the mean, and KL = (1 + e - 1 - 1) / 2
    s = MODEL.vae.scale_factor
    folded = scipy.stats.foldnorm(abs(s - 1) / (s * np.e**0.5), scale=s * np.e**0.5)
    assert float(parts["pixels"]) == pytest.approx(folded.mean(), abs=4 * folded.std() / (200 * 256) ** 0.5)
    assert float(parts["kl"]) == pytest.approx((np.e - 1) / 2, rel=1e-5)
    assert float(total) == pytest.approx(float(parts["pixels"] + parts["edges"] + 0.01 * parts["kl"]), rel=1e-6)


class Toy:
    """An autoencoder of two convolutions, to be differentiated quickly: four latent channels at half the size."""

    def __init__(self, config, dtype=None, params=None):
        self.config, self.params = config, params

    def bind(self, variables):
        return Toy(self.config, params=variables["params"])

    def encode(self, image):
        return conv2d(image, self.params["encoder"], strides=(2, 2))

    def decode(self, latent):
        x = jnp.repeat(jnp.repeat(jnp.tanh(latent), 2, 1), 2, 2)
        return conv2d(x, self.params["decoder"]["conv_out"]["kernel"], self.params["decoder"]["conv_out"]["bias"])


def toy_params(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape, np.float32) / np.prod(shape[:-1]) ** 0.5  # noqa: E731
    return {"encoder": normal(3, 3, 3, 8), "decoder": {"conv_out": {"kernel": normal(3, 3, 4, 3), "bias": np.ones(3)}}}


@pytest.fixture
def toy(monkeypatch):
    """Returns (loss without LPIPS, parameters, batch, keys) of an objective, both networks small ones."""
    monkeypatch.setattr(autoencoder, "AutoencoderKL", Toy)
    monkeypatch.setattr(discriminator, "WIDTHS", (8, 16, 16, 16))
    image = np.round((peer.pictures(5, (24, 24)) + 1) * 127.5).astype(np.uint8)
    params = {"vae": toy_params(), "discriminator": peer.discriminator_case()[0]}

    def make(axis=None, count=2, **fields):
        objective = AutoencoderObjective(perceptual_weight=0, **fields)
        loss = adversarial_loss(VAEConfig(channels=(32, 32), scale_factor=0.7), objective, axis=axis)
        batch = {"image": np.concatenate([np.roll(image, i, 1) for i in range(count // 2)])}
        return loss, params, batch, jax.random.split(jax.random.key(3), count)

    return make


def norm(tree):
    return np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree)))


def relative_error(got, want):
    """Returns how far two trees are apart, in units of the second's length."""
    return norm(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, got, want)) / norm(want)


def step_of(loss):
    """Returns the compiled (params, frozen, batch, keys, step) -> (gradients, metrics)."""

    def of(params, frozen, *rest):
        return loss({**frozen, **params}, None, *rest)

    return jax.jit(jax.grad(of, has_aux=True))


@pytest.fixture(scope="module")
def real_step():
    """Returns a step's gradients and metrics at `peer`'s objective, with real networks."""
    vae, _, image, noise = peer.objective_case()
    params, frozen = {"vae": vae, "discriminator": peer.discriminator_case()[0]}, {"lpips": peer.lpips_case()[0]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder.draws, "normal", lambda keys, stream, shape: jnp.asarray(noise))
        keys = jax.random.split(jax.random.key(0), 2)
        return step_of(adversarial_loss(peer.CONFIG, peer.OBJECTIVE))(params, frozen, {"image": image}, keys, 3)


def test_loss_and_gradients_equal_the_references(real_step):
    gradients, metrics = real_step
    arrays = reference.golden("autoencoder")
    for name in (*peer.METRICS, "loss"):
        assert float(metrics[name]) == pytest.approx(float(arrays[f"metrics/{name}"]), rel=1e-5)  # float32 rounding
    for part, names in peer.KEPT.items():
        got = peer.as_tensors(gradients[part])
        assert norm(got) == pytest.approx(float(arrays[f"{part}/norm"]), rel=1e-5)
        for name in names:
            assert relative_error(got[name], arrays[f"{part}/{name}"]) < 1e-5


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # the peers' own deprecation warnings
def test_every_gradient_equals_the_references_of_two_losses(real_step):
    _, tensors, image, noise = peer.objective_case()
    networks = peer.autoencoder(tensors), peer.discriminator(peer.discriminator_case()[1])
    metrics, want = peer.losses(*networks, peer.Lpips(peer.lpips_case()[1]), image, noise)
    for name, value in metrics.items():
        assert float(real_step[1][name]) == pytest.approx(value, rel=1e-5)
    for part, gradients in want.items():
        got = peer.as_tensors(real_step[0][part])
        assert got.keys() == gradients.keys()
        whole = norm([one.numpy() for one in gradients.values()])
        for name, one in gradients.items():
            # a softmax does not see the keys' bias: its gradient are rounding errors alone
            assert norm(got[name] - one.numpy()) < 1e-5 * norm(one.numpy()) + 1e-7 * whole


@pytest.mark.slow
def test_one_gradient_is_that_of_two_passes(toy):
    """Each network's gradient, from losses of its own, with the other network a constant."""
    loss, params, batch, keys = toy(kl_weight=0.02, disc_start=0, disc_weight=0.6, disc_factor=0.7, logvar=-0.4)
    image, model = batch["image"] / np.float32(127.5) - 1, Toy(None)
    noise = autoencoder.draws.normal(keys, autoencoder.draws.POSTERIOR, (12, 12, 4))

    def reconstruct(vae):
        moments = model.bind({"params": vae}).encode(image)
        return model.bind({"params": vae}).decode(0.7 * (moments[..., :4] + jnp.exp(moments[..., 4:] / 2) * noise))

    def nll(vae):
        return (jnp.abs(image - reconstruct(vae)) / jnp.exp(-0.4) - 0.4).sum() / 2

    def divergence(vae):
        mean, logvar = jnp.split(model.bind({"params": vae}).encode(image), 2, axis=-1)
        return (mean**2 + jnp.exp(logvar) - 1 - logvar).sum() / 2 / 2

    judge = lambda params, x: Discriminator().apply({"params": params}, x)  # noqa: E731
    generator = lambda vae: -judge(params["discriminator"], reconstruct(vae)).mean()  # noqa: E731
    parts = [jax.jit(jax.grad(part))(params["vae"]) for part in (nll, divergence, generator)]
    last = [np.linalg.norm(np.asarray(part["decoder"]["conv_out"]["kernel"], np.float64)) for part in parts]
    weight = last[0] / (last[2] + 1e-4)
    want = jax.tree.map(lambda a, b, c: a + 0.02 * b + 0.6 * weight * 0.7 * c, *parts)
    made = jax.jit(reconstruct)(params["vae"])

    def against(params):
        real, fake = judge(params, image), judge(params, made)
        return 0.7 * 0.5 * (jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + fake).mean())

    gradients, metrics = step_of(loss)(params, {}, batch, keys, 0)
    assert float(metrics["adaptive"]) == pytest.approx(weight, rel=1e-5)
    assert relative_error(gradients["vae"], want) < 1e-5
    assert relative_error(gradients["discriminator"], jax.jit(jax.grad(against))(params["discriminator"])) < 1e-5


def test_the_discriminator_is_not_heard_before_its_start(toy):
    loss, params, batch, keys = toy(disc_start=7)
    step = step_of(loss)
    before, metrics = step(params, {}, batch, keys, 6)
    alone, _ = step_of(toy(disc_factor=0)[0])(params, {}, batch, keys, 6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(before["discriminator"]))
    assert float(metrics["discriminator"]) == 0
    assert relative_error(before["vae"], alone["vae"]) < 1e-6
    after, _ = step(params, {}, batch, keys, 7)
    assert relative_error(after["vae"], alone["vae"]) > 0.1
    assert norm(after["discriminator"]) > 0.1


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_take_the_step_of_one(toy, mode):
    parallel = ParallelConfig(mode)
    loss, params, batch, keys = toy(count=8, disc_start=0, axis=None if mode == "jit" else "data")
    want = step_of(toy(count=8, disc_start=0)[0])(params, {}, batch, keys, 0)
    if mode == "pmap":

        def averaged(*args):
            return jax.lax.pmean(jax.grad(loss, has_aux=True)(*args), "data")

        cut = lambda a: a.reshape(8, 1, *a.shape[1:])  # noqa: E731
        step = jax.pmap(averaged, "data", in_axes=(None, None, 0, 0, None), out_axes=None)
        got = step(params, {}, jax.tree.map(cut, batch), cut(keys), 0)
    else:
        spread = jax.device_put((batch, keys), batch_sharding(training_mesh(parallel)))
        got = step_of(loss)(params, {}, *spread, 0)
    for name, value in want[1].items():
        assert float(got[1][name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    for part in params:
        assert relative_error(got[0][part], want[0][part]) < 1e-5  # sums in another order


def test_losses_of_logits():
    real, fake = np.array([2.0, -1.0, 0.5]), np.array([0.5, -3.0])
    assert float(hinge_loss(real, fake)) == pytest.approx(0.5 * ((0 + 2 + 0.5) / 3 + (1.5 + 0) / 2))
    # the cross entropy with real as 1 and fake as 0
    entropy = -scipy.special.log_expit(real).mean(), -np.log1p(-scipy.special.expit(fake)).mean()
    assert float(vanilla_loss(real, fake)) == pytest.approx(0.5 * sum(entropy), rel=1e-6)
    assert float(hinge_loss(np.zeros(3), np.zeros(3))) == 1.0


def test_adaptive_weight_is_a_quotient_of_lengths_up_to_ten_thousand():
    assert float(adaptive_weight(np.full((2, 2), 3.0), np.full(4, 0.5))) == pytest.approx(6 / 1.0001)
    assert float(adaptive_weight(np.ones(4), np.zeros(4))) == 1e4
    assert float(adaptive_weight(np.zeros(4), np.zeros(4))) == 0


def test_likelihood_counts_every_value_of_a_pixel(toy):
    loss, params, batch, keys = toy(disc_factor=0, kl_weight=0, logvar=0.6, pixel_loss="l2", edge_weight=0.5)
    vae = jax.tree.map(np.zeros_like, params["vae"])
    vae["decoder"]["conv_out"]["bias"] = np.full(3, 0.25, np.float32)
    ramp = np.zeros((2, 24, 24, 3), np.uint8)
    ramp[:, :, 12:] = 255  # -1 on the left, 1 on the right, so that one of 23 differences is 2
    total, metrics = jax.jit(loss)({"vae": vae}, {}, {"image": ramp}, keys, 0)
    pixels, edges = (1.25**2 + 0.75**2) / 2, 0.5 * 2 / 23
    assert float(metrics["pixels"]) == pytest.approx(pixels, rel=1e-6)
    assert float(metrics["edges"]) == pytest.approx(edges, rel=1e-5)
    # float32: 3456 equal numbers added up one by one
    assert float(total) == pytest.approx(24 * 24 * 3 * ((pixels + edges) / np.exp(0.6) + 0.6), rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixel_loss": "l3"}, "pixel_loss is one of l1, l2; got 'l3'"),
        ({"disc_loss": "wasserstein"}, "disc_loss is one of hinge, vanilla; got 'wasserstein'"),
        ({"kl_weight": -1e-6}, "kl_weight is 0 or more; got -1e-06"),
        ({"disc_start": -1}, "disc_start is 0 or more; got -1"),
    ],
)
def test_an_objective_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderObjective(**fields)


def test_taesd_is_not_trained():
    tiny = dataclasses.replace(MODEL.vae, kind="tiny", channels=(32,) * len(MODEL.vae.channels))
    facts = SimpleNamespace(cached=(False,), model=dataclasses.replace(MODEL, vae=tiny))
    with pytest.raises(ConfigError, match=r"is TAESD, which gives no distribution to train: take one with the usual"):
        AutoencoderObjective().check(facts)


def test_what_has_no_weight_needs_no_parameters(monkeypatch):
    key = jax.random.key(0)
    assert AutoencoderObjective(perceptual_weight=0, disc_factor=0).networks(key) == ({}, {})
    with pytest.raises(ValueError, match="LPIPS needs the weights of VGG16 .* in autoencoder.lpips, or set"):
        AutoencoderObjective(disc_factor=0).networks(key)
    read = []
    monkeypatch.setattr(autoencoder.convert, "load_lpips", lambda *files: read.append(files))
    monkeypatch.setattr(autoencoder.convert, "load_discriminator", read.append)
    objective = AutoencoderObjective(lpips=("a.pth", "b.pth"), discriminator="c.ckpt")
    learning, fixed = objective.networks(key)
    assert read == [("a.pth", "b.pth"), "c.ckpt"]
    assert (learning.keys(), fixed.keys()) == ({"discriminator"}, {"lpips"})
