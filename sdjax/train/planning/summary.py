"""The summary before the first step: model, devices, batch, precision, data."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from sdjax.train.build import Setup
from sdjax.train.data.loader import Loader


def summary(setup: Setup, mesh: Mesh, loader: Loader) -> list[str]:
    """Returns the lines of the summary's table."""
    c, model = setup.config, setup.model
    state, frozen = setup.shapes
    device = mesh.devices.flat[0]
    axes = ", ".join(f"{name} {side}" for name, side in mesh.shape.items() if side > 1)
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    epochs = c.optim.steps / loader.batches_per_epoch
    rows = [
        ("model", f"{model.name}, {model.schedule.prediction} prediction, {model.image_size} x {model.image_size}"),
        ("trained", f"{', '.join(state.params)}: {_millions(state.params)} parameters"),
        ("fixed", f"{', '.join(frozen) or 'none'}: {_millions(frozen)} parameters, {setup.frozen_dtype}"),
        ("devices", f"{mesh.size} x {device.device_kind}{hosts}{f' ({axes})' if axes else ''}, {c.parallel.mode}"),
        ("batch", f"{c.batch_size} examples" + (f" in {c.accumulate} parts" if c.accumulate > 1 else "")),
        ("precision", f"{setup.dtype} for computing, float32 for parameters, remat {c.remat}"),
        ("optimiser", f"{c.optim.name}, {c.optim.steps} steps at {c.optim.learning_rate:g}"),
        ("average", "none" if c.ema.decay is None else f"{c.ema.decay:g}{', on the host' if c.ema.host else ''}"),
        ("epochs", f"{epochs:.3g}"),
    ]
    lines = [f"{name:<10} {text}" for name, text in rows]
    return lines + [f"{'data' if not i else '':<10} {line}" for i, line in enumerate(loader.summary())]


def _millions(tree: Any) -> str:
    return f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6:,.2f} M"
