"""One seed gives one picture and one training, whatever JAX's settings and environment variables say."""

import contextlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import sdjax
from sdjax.nn import jax_settings
from sdjax.train.state import TrainState

import models

OTHERS = {  # another value than the pinned one
    "threefry_partitionable": False,
    "default_prng_impl": "rbg",
    "enable_custom_prng": True,
    "legacy_prng_key": "error",
    "debug_key_reuse": True,
    "enable_x64": True,
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
    "allow_f16_reductions": False,
    "softmax_custom_jvp": True,
    "disable_jit": True,
    "transfer_guard": "disallow",
}


@contextlib.contextmanager
def globally(name, value):
    """Sets one of JAX's settings for the whole process, as an environment variable does."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def picture():
    """A picture with noise at the start, in every step and in the posterior."""
    given = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return sdjax.image_to_image(models.pipeline(), given, "a", sampler="ddpm", num_steps=4, strength=0.5, seed=3,
                                devices=jax.local_devices()[:1])  # fmt: skip


@pytest.fixture(scope="module")
def usual():
    return picture()


def test_every_pinned_setting_is_tried() -> None:
    assert OTHERS.keys() == jax_settings.PINNED.keys()
    assert all(OTHERS[name] != value for name, value in jax_settings.PINNED.items())


@pytest.mark.parametrize("name", OTHERS)
def test_a_picture_depends_on_no_setting(usual, name) -> None:
    with getattr(jax, name)(OTHERS[name]):
        np.testing.assert_array_equal(picture(), usual)


@pytest.mark.parametrize("name", ["jax_threefry_partitionable", "jax_enable_x64"])
def test_a_picture_depends_on_no_setting_of_the_process(usual, name) -> None:
    with globally(name, not getattr(jax.config, name)):
        np.testing.assert_array_equal(picture(), usual)


def test_keys_are_threefrys_of_the_seed_alone() -> None:
    with globally("jax_random_seed_offset", 7), jax.default_prng_impl("rbg"):
        key = jax_settings.make_key(3)
    assert str(jax.random.key_impl(key)) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(key), [0, 3])  # the words of the seed: JAX's own rule


def test_numbers_are_those_of_partitionable_threefry() -> None:
    # JAX's own numbers for this seed, of the generator that is the default since JAX 0.5
    with jax_settings.pinned():
        drawn = np.asarray(jax.random.normal(jax.random.fold_in(jax_settings.make_key(0), 1), (4,)))
    with jax.threefry_partitionable(True):
        wanted = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (4,)))
    np.testing.assert_array_equal(drawn, wanted)


def test_a_trainings_key_depends_on_no_setting() -> None:
    import optax

    with globally("jax_random_seed_offset", 7), jax.default_prng_impl("rbg"), jax_settings.pinned():
        state = TrainState.create({"a": np.zeros(1, np.float32)}, optax.sgd(1.0), 3, ema=False)
    np.testing.assert_array_equal(jax.random.key_data(state.key), [0, 3])


def test_what_may_change_the_last_bits_is_recorded(monkeypatch) -> None:
    for name in jax_settings.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with jax.default_matmul_precision(None):
        assert jax_settings.recorded() == {}
    with jax.default_matmul_precision("highest"):
        assert jax_settings.recorded() == {"jax_default_matmul_precision": "highest"}
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true --xla_dump_to=/tmp/x")
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        found = jax_settings.recorded()
    assert found["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=true"
    assert found["NVIDIA_TF32_OVERRIDE"] == "0"
    json.dumps(found)


PROGRAM = """
import hashlib, sdjax
pipe = sdjax.load("builtin", dtype="float32")
made = sdjax.text_to_image(pipe, "a rocket", sampler="ddpm", num_steps=2, seed=5)
print(hashlib.sha256(made.tobytes()).hexdigest())
"""
ENVIRONMENTS = {
    "usual": {},
    "jax": {"JAX_THREEFRY_PARTITIONABLE": "0", "JAX_ENABLE_X64": "1", "JAX_RANDOM_SEED_OFFSET": "3",
            "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise",
            "JAX_SOFTMAX_CUSTOM_JVP": "1"},
    "python": {"PYTHONHASHSEED": "7", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "OMP_NUM_THREADS": "1",
               "HF_HUB_OFFLINE": "0"},
}  # fmt: skip


@pytest.mark.slow
def test_a_picture_depends_on_no_environment_variable() -> None:
    made = {}
    for name, variables in ENVIRONMENTS.items():
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=kept | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made[name] = done.stdout
    assert len(set(made.values())) == 1


@pytest.mark.filterwarnings("ignore:PGLE collected an empty trace")  # JAX, where jax_enable_pgle is on
@pytest.mark.slow
def test_a_picture_depends_on_no_switch_of_jax(usual) -> None:
    """Tries the other value of every switch in jax.config, but for those that end a computation on purpose."""
    ends = {"jax_no_execution", "jax_no_tracing", "jax_check_tracer_leaks"}
    ends.add("jax_scan3")  # up to JAX 0.12 its loops have no vmap, and JAX says so instead of sampling
    for name, value in sorted(jax.config.values.items()):
        if not isinstance(value, bool) or name in ends:
            continue
        with contextlib.suppress(AttributeError), globally(name, not value):
            if not np.array_equal(picture(), usual):
                assert name in jax_settings.OPTIONS, name
