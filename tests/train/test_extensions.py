"""Objectives and trainables that others add to the tables, and the ones that come with sdjax, in whole runs."""

import dataclasses
import json
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models_to_train import TINY, write_model
from picture_sets import write_folder

import sdjax
from sdjax.config import ConfigError
from sdjax.configs import finetune
from sdjax.description import build
from sdjax.evaluate.benchmark import random_model
from sdjax.loading.trainable import TRAINABLES, Leaves, Parts, by_path
from sdjax.scripts.main import main
from sdjax.train.builtin import vocabulary
from sdjax.train.config import TrainConfig
from sdjax.train.objectives.objective import Objective
from sdjax.train.objectives.table import OBJECTIVES
from sdjax.train.run import Run
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Towards(Objective):
    """Draws the bias of the UNet's last convolution towards a number, and reports how far its average is from it."""

    goal: float = 1.0
    kind: Literal["towards"] = "towards"

    def make_loss(self, facts, empty, axis=None):
        def loss(whole, average, batch, keys, step):
            bias = whole["unet"]["conv_out"]["bias"]
            value = jnp.square(bias - self.goal).sum()
            lag = jnp.float32(0) if average is None else average["unet"]["conv_out"]["bias"].mean()
            return value, {"loss": value, "teacher": lag}

        return loss


@dataclasses.dataclass(frozen=True)
class Shift:
    """One number for each part, which is added to the bias of its last convolution."""

    start: float = 0.0
    kind: Literal["shift"] = "shift"

    def init(self, base, key):
        return {f"{part}_shift": jnp.full((1,), self.start) for part in base}

    def fixed(self, base):
        return base

    def assemble(self, trained, frozen):
        def moved(part):
            last = frozen[part]["conv_out"]
            return {**frozen[part], "conv_out": {**last, "bias": last["bias"] + trained[f"{part}_shift"]}}

        return {**frozen, "unet": moved("unet")}

    def export(self, trained):
        return dict(trained)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a training set and a model."""
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "pictures", 8, sizes=((64, 64),))
    tokenizer = vocabulary.learn(iter(["a red square on a wall", "a blue square"] * 20), TINY.text.vocab_size)
    write_model(TINY, random_model(TINY, "float32").params, tokenizer, folder / "model")
    return folder


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "towards", Towards)
    monkeypatch.setitem(TRAINABLES, "shift", Shift)


def values(place, **changes):
    config = finetune.get_config().to_dict()
    config["model"]["path"] = str(place / "model")
    config["data"] |= {"parts": [{"source": {"folder": str(place / "pictures")}}], "buckets": False}
    config["optim"] |= {"steps": 3, "warmup": 0, "learning_rate": 0.1, "weight_decay": 0.0, "decay_all": False}
    config |= {"batch_size": 4, "ema": {"decay": 0.5}}
    config["log"] |= {"tensorboard": False, "every": 1}
    return config | changes


def run(folder, config):
    state = Run(build(TrainConfig, config), folder, lambda text: None, devices=jax.devices()[:1]).train()
    return state, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_an_objective_and_a_trainable_from_outside_train_a_model_that_loads(place, tmp_path, tables):
    config = values(place, objective={"kind": "towards", "goal": 5.0}, trainable={"kind": "shift"})
    state, _ = run(tmp_path / "run", config)
    assert set(state.params) == {"unet_shift"}
    # AdamW's first steps are as long as the rate, towards the goal
    np.testing.assert_allclose(state.params["unet_shift"], 0.3, rtol=1e-3)
    before = random_model(TINY, "float32").params["unet"]["conv_out"]["bias"]
    pipe = sdjax.load(tmp_path / "run", dtype="float32", ema="no")
    np.testing.assert_allclose(pipe.params["unet"]["conv_out"]["bias"], before + state.params["unet_shift"], rtol=1e-6)
    with pytest.raises(ConfigError, match="another trainable.start: trainable.start was 0.0 .* is 1.0 now"):
        run(tmp_path / "run", config | {"trainable": {"kind": "shift", "start": 1.0}})
    with pytest.raises(ConfigError, match="objective.kind was .towards. .* is .denoising. now"):
        run(tmp_path / "run", config | {"objective": {}})


def test_a_loss_sees_the_moving_average(place, tmp_path, tables):
    last = {"kind": "leaves", "pattern": "conv_out"}
    _, lines = run(tmp_path / "run", values(place, objective={"kind": "towards", "goal": 5.0}, trainable=last))
    seen = [line["teacher"] for line in lines if "teacher" in line]
    start = float(random_model(TINY, "float32").params["unet"]["conv_out"]["bias"].mean())
    # Every step sees the average of the steps before it; LitEma's decays are 2/11 and 3/12 at first
    first = start + 0.1 * (1 - 2 / 11)
    expected = [start, first, first + (start + 0.2 - first) * (1 - 3 / 12)]
    np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-4)


def test_from_the_command_line(place, tmp_path, capsys, monkeypatch):
    file = tmp_path / "towards.py"
    file.write_text(
        "import dataclasses, jax.numpy as jnp\n"
        "from sdjax.configs import finetune\n"
        "from sdjax.train.objectives.objective import Objective\n"
        "from sdjax.train.objectives.table import OBJECTIVES\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Zero(Objective):\n"
        "    kind: str = 'zero'\n"
        "    def make_loss(self, facts, empty, axis=None):\n"
        "        def loss(whole, average, batch, keys, step):\n"
        "            value = jnp.square(whole['unet']['conv_out']['bias']).sum()\n"
        "            return value, {'loss': value}\n"
        "        return loss\n"
        "OBJECTIVES['zero'] = Zero\n"
        "get_config = finetune.get_config\n"
    )
    monkeypatch.setitem(OBJECTIVES, "zero", None)  # removed again afterwards
    pattern = json.dumps({"kind": "leaves", "pattern": "^unet/conv_out/bias$"})
    objective = 'objective={"kind": "zero"}'
    command = ["train", "--config", str(file), "--data", str(place / "pictures"), "--ckpt", str(place / "model"),
               "--steps", "1", "--batch-size", "8", "--set", "data.buckets=False", "--set", objective,
               "--set", "log.tensorboard=False", "--workdir", str(tmp_path / "run")]  # fmt: skip
    assert main([*command, "--set", f"trainable={pattern}"]) == 0
    err = capsys.readouterr().err
    assert "trained    unet: 0.00 M parameters" in err
    assert main([*command, "--set", 'trainable={"kind": "leaves", "pattern": "nowhere"}']) == 2
    assert "another trainable.pattern" in capsys.readouterr().err
    other = [*command[:-1], str(tmp_path / "other")]
    assert main([*other, "--set", 'trainable={"kind": "leaves", "pattern": "nowhere"}']) == 2
    assert "'nowhere' matches no parameter's path, such as unet/" in capsys.readouterr().err
    assert main([*other, "--set", 'trainable={"kind": "leaf"}']) == 2
    assert re.search("config.trainable.kind is one of parts, leaves, lora, .*; got 'leaf'", capsys.readouterr().err)


def test_only_the_leaves_that_match_change_and_have_optimiser_states(place, tmp_path, tables):
    pattern = "attn2/to_(k|v)/kernel$"
    config = values(place, trainable={"kind": "leaves", "pattern": pattern}, objective={"kind": "towards"})
    config["optim"] |= {"steps": 2, "weight_decay": 0.5, "decay_all": True}  # moves whatever learns
    state, _ = run(tmp_path / "run", config)
    start = by_path(random_model(TINY, "float32").params)
    wanted = {path for path in start if path.startswith("unet/") and "attn2/to_k/kernel" in path}
    wanted |= {path.replace("to_k", "to_v") for path in wanted}
    assert set(by_path(state.params)) == set(by_path(state.ema_params)) == wanted
    numbers = sum(start[path].size for path in wanted)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * numbers  # AdamW's two moments, of nothing else
    after = by_path(sdjax.load(tmp_path / "run", dtype="float32").params)
    assert after.keys() == start.keys()
    assert {path for path in start if not np.array_equal(after[path], start[path])} == wanted


@pytest.mark.parametrize("accumulate", [1, 2])
def test_leaves_learn_as_they_do_beside_all_others_at_rate_0(accumulate):
    # One step of gradient descent: the same gradients, whether the others are held fixed or not
    params = {"net": {"a": jnp.arange(3.0), "b": jnp.ones(3)}}
    what = Leaves("/a$")

    def loss(whole, average, batch, keys, step):
        value = (jnp.square(whole["net"]["a"] * batch) * whole["net"]["b"]).mean()
        return value, {"loss": value}

    def step(trainable):
        state = TrainState.create(trainable.init(params, jax.random.key(0)), optax.sgd(0.1), 0, ema=False)
        made = make_train_step(loss, optax.sgd(0.1), None, assemble=trainable.assemble, accumulate=accumulate)
        return jax.jit(made)(state, trainable.fixed(params), jnp.arange(12.0).reshape(4, 3))[0].params

    few, all_of_them = step(what), step(Parts())
    assert few["net"].keys() == {"a"}
    np.testing.assert_array_equal(few["net"]["a"], all_of_them["net"]["a"])
    assert what.export(few).keys() == {"net/a"}
