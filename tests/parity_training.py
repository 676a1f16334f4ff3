"""Training behind the interface of the parity kit: three steps of the UNet from noise and timesteps that are given."""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.convert.bundle import bundle_of_params
from sdjax.convert.write.safetensors_writer import tensors_of
from sdjax.nn import UNet
from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives.diffusion import DiffusionObjective, prediction_error
from sdjax.train.optim import OptimConfig, make_optimizer
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step

PREFIX = "model.diffusion_model."


def train3(config, params, *, x0, noise, t, context, lr, grads, params_wanted):
    """Returns losses and gradient norms of three steps, the first's gradients, parameters and average after the third.

    x0, noise [3, b, h, w, c] and t [3, b] hold a batch for each step, context [b, n, d] is that of all.
    """
    schedule, unet = NoiseSchedule(config.schedule), UNet(config.unet)

    def loss(params, average, batch, keys, step):
        def network(x, t):
            return unet.apply({"params": params["unet"]}, x, t.astype(jnp.float32), batch["context"])

        error = prediction_error(
            schedule, DiffusionObjective(), network, batch["x0"], batch["noise"], batch["t"]
        ).mean()  # fmt: skip
        return error, {"loss": error}

    optimizer = make_optimizer(OptimConfig(steps=3, learning_rate=lr, decay_all=True, clip=None))
    step = jax.jit(make_train_step(loss, optimizer, 0.9999))
    state = TrainState.create({"unet": params["unet"]}, optimizer, 0)
    batches = [
        {"x0": x0[i], "noise": noise[i], "t": jnp.asarray(t[i], jnp.int32), "context": context} for i in range(3)
    ]
    gradient = jax.jit(jax.grad(lambda p: loss(p, {}, batches[0], None, 0)[0]))(state.params)
    metrics = []
    for batch in batches:
        state, numbers = step(state, {}, batch)
        metrics.append(numbers)
    out = {
        "loss": np.array([float(m["loss"]) for m in metrics]),
        "grad_norm": np.array([float(m["gradient"]) for m in metrics]),
    }
    for kind, tree, names in (
        ("grad", gradient, grads), ("param", state.params, params_wanted), ("ema", state.ema_params, params_wanted)
    ):  # fmt: skip
        tensors = tensors_of(bundle_of_params(config, {**params, **tree}, None), "ldm")
        out |= {f"{kind}/{name}": tensors[PREFIX + name].read() for name in names}
    return out
