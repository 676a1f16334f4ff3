"""The text of `sdjax train --plan`: the memory and work of a run, from its configuration alone."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from sdjax.loading.start_model import describe
from sdjax.nn.jax_settings import pinned
from sdjax.pipeline.placement import default_dtype
from sdjax.train import parallel
from sdjax.train.build import Setup
from sdjax.train.config import DataConfig, TrainConfig
from sdjax.train.data.cached import Cached
from sdjax.train.planning import memory as plan


@pinned()
def plan_of(
    config: TrainConfig, devices: int | None = None, platform: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:  # fmt: skip
    """Returns a text with the memory that each device needs and the work of a step.

    `devices` is the number of devices, by default those of this machine. `platform` is "cpu", "cuda" or "tpu", by
    default this machine's; it decides which kernels run. Weights are not read and nothing is put on a device. `say`
    gets progress messages, as this takes a while.

    Raises ConfigError for settings that do not fit together.
    """
    platform = platform or {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    config = dataclasses.replace(config, dtype=config.dtype or default_dtype(platform))
    held_out = None if config.validation.data is None else _text(config.validation.data)
    say("reading the model's description ...")
    setup = Setup(config, describe(config.model), _text(config.data), held_out)
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
    return "\n".join(lines)


def _text(data: DataConfig) -> str:
    """Returns how the batches of a set hold captions: "ids" or "context"."""
    return Cached(data.cached).text if data.cached else "ids"
