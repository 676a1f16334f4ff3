"""Whole trainings on several devices: the losses are those of one."""

import jax
import pytest
from whole_runs import run, settings

pytestmark = pytest.mark.usefixtures("programs")


@pytest.mark.slow
def test_devices_share_a_step_without_changing_it(pictures, tmp_path):
    changes = {"model": "small", "optim__steps": 3, "ema__host": True, "accumulate": 2}
    _, one = run(tmp_path / "one", settings(pictures, **changes))
    sharded = settings(pictures, **changes, parallel__fsdp=2, parallel__tensor=2, parallel__whole=1)
    state, eight = run(tmp_path / "eight", sharded, devices=8)
    assert eight == pytest.approx(one, rel=1e-5)
    kernel = state.params["unet"]["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_q"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    average = jax.tree.leaves(state.ema_params)
    assert {leaf.sharding.memory_kind for leaf in average} == {"pinned_host"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "changes"),
    [(2, {}), (4, {}), (8, {}), (8, {"mode": "pmap"}), (8, {"fsdp": 8, "whole": 1}), (4, {"tensor": 2})],
)
def test_fifty_steps_on_other_devices_have_the_same_losses(pictures, tmp_path, devices, changes, fifty_steps):
    how = {f"parallel__{name}": value for name, value in changes.items()}
    _, seen = run(tmp_path / "run", settings(pictures, optim__steps=50, **how), devices=devices)
    assert seen == pytest.approx(fifty_steps, rel=1e-5)


@pytest.fixture(scope="module")
def fifty_steps(pictures, tmp_path_factory):
    return run(tmp_path_factory.mktemp("fifty") / "run", settings(pictures, optim__steps=50))[1]


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(pictures, tmp_path, fifty_steps):
    run(tmp_path / "run", settings(pictures, optim__steps=20), devices=8)
    _, seen = run(tmp_path / "run", settings(pictures, optim__steps=50), devices=2)
    assert seen == pytest.approx(fifty_steps, rel=1e-5)
