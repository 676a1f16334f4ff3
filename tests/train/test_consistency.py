"""Few-step distillation: the loss against the consistency functions of data that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_to_train import MODEL

from sdjax.config import ConfigError
from sdjax.schedule import NoiseSchedule, ScheduleConfig
from sdjax.train.build import Setup
from sdjax.train.config import DataConfig, OptimConfig, TrainConfig
from sdjax.train.objectives import draws
from sdjax.train.objectives.consistency import ConsistencyObjective, boundary, consistency_error, solver_timesteps
from sdjax.train.objectives.draws import keys_of
from sdjax.train.objectives.objective import RunFacts

PREDICTIONS = {"epsilon": ScheduleConfig(), "v": ScheduleConfig(prediction="v", zero_terminal_snr=True)}


def network_of(schedule):
    """Returns the exact network of data that is one picture, params["picture"], with another for the empty caption."""
    a = schedule.alphas_cumprod.astype(np.float32)

    def network(params, x, t, context):
        signal, noise = (jnp.sqrt(w)[t][:, None, None, None] for w in (jnp.asarray(a), jnp.asarray(1 - a)))
        picture = jnp.where(context[:, :1, :1, None] == 0, params["none"], params["picture"])
        epsilon = (x - signal * picture) / noise
        return signal * epsilon - noise * picture if schedule.config.prediction == "v" else epsilon

    return network


def error(settings, student, teacher, prediction="epsilon", b=64):
    schedule = NoiseSchedule(PREDICTIONS[prediction])
    objective = ConsistencyObjective(loss="l2", **settings)
    keys = keys_of(jax.random.key(0), jnp.int32(0), jnp.arange(b))
    x0 = jnp.broadcast_to(jnp.asarray(teacher["picture"]), (b, 4, 4, 4)).astype(jnp.float32)
    contexts = jnp.ones((b, 1, 1)), jnp.zeros((b, 1, 1))
    return consistency_error(schedule, objective, network_of(schedule), (student, student, teacher), x0, contexts, keys)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("phases", [1, 4])
def test_the_exact_network_of_one_picture_has_no_error(phases, prediction):
    """All points of a path give the same picture and the same noise, so f is the same from each of them."""
    exact = {"picture": 0.3, "none": 0.3}
    got = error({"phases": phases}, exact, exact, prediction)
    np.testing.assert_allclose(got, 0, atol=1e-4)  # float32: at the noisiest step of epsilon x0 is divided by 0.068
    assert float(error({"phases": phases}, {"picture": 0.5, "none": 0.5}, exact, prediction).max()) > 1e-4


def test_a_guided_teacher_moves_the_target_along_the_difference_to_nothing():
    """With f(x) = c1 of the student everywhere, the error of latent consistency is that of the target's boundary."""
    student, teacher = {"picture": 0.7, "none": 0.7}, {"picture": 0.3, "none": 0.1}
    schedule, b = NoiseSchedule(), 64
    got = error({"scales": (3.0, 3.0)}, student, teacher, b=b)
    keys = keys_of(jax.random.key(0), jnp.int32(0), jnp.arange(b))
    later, earlier = solver_timesteps(1000, 50)
    step = np.asarray(draws.integers(keys, draws.TIMESTEP, 0, 50))
    noise = np.asarray(draws.normal(keys, draws.NOISE, (4, 4, 4)), np.float64)
    a = schedule.alphas_cumprod

    def split(x, t, picture):
        return picture, (x - np.sqrt(a[t])[:, None, None, None] * picture) / np.sqrt(1 - a[t])[:, None, None, None]

    t, s = later[step], earlier[step]
    x = np.sqrt(a[t])[:, None, None, None] * 0.3 + np.sqrt(1 - a[t])[:, None, None, None] * noise
    (p1, e1), (p0, e0) = split(x, t, 0.3), split(x, t, 0.1)
    picture, epsilon = p0 + 3 * (p1 - p0), e0 + 3 * (e1 - e0)
    below = np.sqrt(a[s])[:, None, None, None] * picture + np.sqrt(1 - a[s])[:, None, None, None] * epsilon
    f = []
    for at, when in (x, t), (below, s):
        skip, out = (np.asarray(c)[:, None, None, None] for c in boundary(jnp.asarray(when)))
        f.append(skip * at + out * 0.7)
    np.testing.assert_allclose(got, np.square(f[0] - f[1]).mean((1, 2, 3)), rtol=1e-3, atol=1e-6)


def test_the_consistency_function_keeps_what_is_already_clean():
    skip, out = boundary(jnp.array([0, 20, 999]))
    assert (skip[0], out[0]) == (1, 0)
    np.testing.assert_allclose(skip[1], 0.25 / (200**2 + 0.25))
    np.testing.assert_allclose(out[2], 1, atol=1e-6)


def test_steps_of_the_teacher_are_those_of_ddim():
    later, earlier = solver_timesteps(1000, 50)
    np.testing.assert_array_equal(later, np.arange(19, 1000, 20))
    np.testing.assert_array_equal(earlier, [0, *range(19, 980, 20)])


def test_the_teacher_stays_among_the_fixed_parameters():
    config = TrainConfig(
        DataConfig(parts=({"source": {"folder": "pictures"}},)), OptimConfig(steps=2), objective=ConsistencyObjective()
    )
    setup = Setup(config, MODEL)
    state, frozen = setup.shapes
    assert jax.tree.structure(frozen["teacher"]) == jax.tree.structure(state.params["unet"])
    assert set(frozen) == {"teacher", "vae", "text"}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch_size))
    inputs = frozen, state.ema_params, setup.batch_shapes(), keys, jax.ShapeDtypeStruct((), "int32")
    loss, _ = jax.eval_shape(setup.loss_of_trained(setup.empty_shape()), state.params, *inputs)
    assert loss.shape == ()


def test_settings_that_cannot_be_are_refused():
    for settings, words in (
        ({"steps": 0}, "at least 1"), ({"scales": (0.5, 2.0)}, "from 1 up"), ({"phases": 51}, "from 1 to steps"),
        ({"target": "other"}, "student"), ({"loss": "l1"}, "huber"), ({"huber_delta": 0.0}, "positive"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            ConsistencyObjective(**settings)
    with pytest.raises(ValueError, match="trains the UNet"):
        ConsistencyObjective().check_parts(("unet", "text"))
    with pytest.raises(ConfigError, match="moving average"):
        ConsistencyObjective(target="average").check(RunFacts(MODEL, ("unet",), average=False))
