"""The text of `sdjax train --plan`: the memory and work of a run, from its configuration alone."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from sdjax import configs
from sdjax.config import ModelConfig
from sdjax.errors import size
from sdjax.loading.start_model import change, describe
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline.placement import default_dtype
from sdjax.train import parallel, training_set
from sdjax.train.build import Setup
from sdjax.train.config import TrainConfig
from sdjax.train.planning import memory as plan
from sdjax.train.planning.accelerators import Accelerator, accelerator_named
from sdjax.train.planning.speed import SpeedPlan


@pinned()
def plan_of(
    config: TrainConfig, devices: int | None = None, platform: str | None = None,
    say: Callable[[str], None] = lambda text: None, *, accelerator: str | None = None, mfu: float | None = None,
    like: str | None = None,
) -> str:  # fmt: skip
    """Returns a text with the memory that each device needs, the work of a step, and how long it will take.

    `devices` is the number of devices, by default those of this machine. `platform` is "cpu", "cuda" or "tpu", by
    default this machine's; it decides which kernels run. `accelerator` (`accelerator_named`) decides both and predicts
    the speed, from `mfu`, the share of the peak that is reached, by default a published one. `like` is the name of a
    released model (`sdjax.configs`) that is planned for in place of the run's, whose file need not exist. Weights are
    not read and nothing is put on a device. `say` gets progress messages, as this takes a while.

    Raises ConfigError for settings that do not fit together, ValueError for an unknown accelerator.
    """
    found: Accelerator | None = None
    if accelerator is not None:
        found, slice_devices = accelerator_named(accelerator)
        if slice_devices is not None and devices not in (None, slice_devices):
            raise ValueError(f"{accelerator} has {slice_devices} devices: leave out the number {devices}")
        devices, platform = slice_devices or devices, found.platform
    platform = platform or {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    config = dataclasses.replace(config, dtype=config.dtype or default_dtype(platform))
    held_out = None if config.validation.data is None else training_set.text_in(config.validation.data)
    say("reading the model's description ...")
    setup = Setup(config, _model(config, like), training_set.text_in(config.data), held_out)
    count = jax.device_count() if devices is None else devices
    sizes = config.parallel.sizes(count)
    examples = parallel.examples_each(config.batch_size, config.accumulate, sizes)
    state, frozen = setup.shapes

    def laid(tree: PyTree, kind: str | None = None) -> PyTree:
        return plan.laid_out(tree, parallel.layouts(tree, sizes, config.parallel), sizes, kind)

    say("tracing the loss and its gradient, for the memory ...")
    loss = setup.loss_of_trained(setup.empty_shape())
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), examples))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    working = plan.working_bytes(
        loss,
        state.params,
        frozen,
        state.ema_params,
        setup.batch_shapes(examples),
        keys,
        step,
        platform=platform,
        remat=config.remat,
    )
    say("tracing them once more, for the floating-point operations ...")
    memory = plan.plan(
        params=laid(state.params), opt_state=laid(state.opt_state),
        ema=laid(state.ema_params, parallel.HOST if config.ema.host else None), frozen=laid(frozen),
        activations=working, accumulate=config.accumulate > 1,
    )  # fmt: skip
    mesh = ", ".join(f"{name} {side}" for name, side in sizes.items())
    work = setup.flops().model
    lines = [
        f"{setup.model.name} on {count} devices ({mesh}), {config.batch_size} examples a step, {setup.dtype}",
        str(memory),
        f"a step takes {work / 1e12:,.2f} TFLOP, {work / config.batch_size / 1e12:,.3f} an example",
    ]
    if found is not None:
        lines += _predicted(config, found, memory.total.device, work, count, mfu)
    return "\n".join(lines)


def _model(config: TrainConfig, like: str | None) -> ModelConfig:
    if like is None:
        return describe(config.model)
    return change(configs.get(like), config.model.changes)


def _predicted(
    config: TrainConfig, accelerator: Accelerator, needed: int, work: int, devices: int, mfu: float | None
) -> list[str]:
    share = needed / accelerator.memory
    lines = [f"this is {share:.0%} of the {size(accelerator.memory)} of one {accelerator.kind}"]
    if share > 1:
        lines.append("it does not fit: raise accumulate, set remat, or split the parameters (parallel.fsdp)")
    reached = accelerator.mfu if mfu is None else mfu
    if reached is None:
        return [*lines, f"we know no published speed of one {accelerator.kind}: give --mfu, as measured"]
    speed = SpeedPlan(work, config.batch_size, devices, accelerator.peak, reached)
    steps = config.optim.steps
    return lines + speed.lines(steps, target=config.mlperf is not None)
