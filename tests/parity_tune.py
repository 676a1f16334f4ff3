"""Training of adapters and embeddings behind the interface of the parity kit: three steps of AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax import convert
from sdjax.adapters import patched
from sdjax.adapters.attached import ROWS, Attached
from sdjax.convert.names import axes
from sdjax.convert.names.control import controlnet_table
from sdjax.loading.trainable import attach, by_path
from sdjax.loading.trainable.control import NETWORK, ControlTraining
from sdjax.loading.trainable.low_rank import LoRATraining
from sdjax.loading.trainable.words import WordsTraining
from sdjax.nn import TextEncoder, UNet
from sdjax.nn.controlnet import of_unet
from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives.diffusion import DiffusionObjective, prediction_error
from sdjax.train.objectives.objective import RunFacts
from sdjax.train.optim import OptimConfig, make_optimizer
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step

from tests.parity_models import config_from_spec

TABLE = "text/text_model/embeddings/token_embedding"
PARTS = {"unet": "unet", "text_encoder": "text"}


def train_lora(spec, state_dict, tensors, options, *, x0, noise, t, context):
    """Returns loss, gradient norm, first gradients and last parameters, by PEFT's names."""
    config, params = _model(spec, state_dict)
    what = LoRATraining("all", rank=options["rank"], alpha=options["alpha"], rslora=options.get("rslora", False))
    leaves = by_path({part: params[part] for part in ("unet", "text")})
    paths = {}
    for name in tensors:
        network, _, rest = name.partition(".")
        stem, _, factor = rest.removesuffix(".weight").rpartition(".")
        path = next(
            p for p in leaves if p.endswith("/kernel") and _plain(p) == _plain(f"{PARTS[network]}/{stem}/kernel")
        )
        paths[name] = (*path.split("/"), {"lora_A": "down", "lora_B": "up"}[factor])
    trained = unflatten_dict({path: _ours(tensors[name], path[-1]) for name, path in paths.items()})
    metrics, grads, learned = _train(config, params, what, trained, options, x0, noise, t, {"context": context})
    back = lambda tree, name: _theirs(flatten_dict(tree)[paths[name]], tensors[name])  # noqa: E731
    return metrics | {f"{kind}/{name}": back(tree, name) for kind, tree in (("grad", grads), ("param", learned))
                      for name in tensors}  # fmt: skip


def train_embedding(spec, state_dict, tensors, options, *, x0, noise, t, ids):
    """Returns loss, gradient norm, first gradient and last value of "embedding", the row of token 49408."""
    config, params = _model(spec, state_dict)
    row = tensors["embedding"]
    trained = unflatten_dict({(*TABLE.split("/"), ROWS): row})
    what = WordsTraining(words={"<new>": len(row)})
    metrics, grads, learned = _train(config, params, what, trained, options, x0, noise, t, {"ids": ids})
    found = {kind: np.asarray(by_path(tree)[f"{TABLE}/{ROWS}"]) for kind, tree in (("grad", grads), ("param", learned))}
    return metrics | {f"{kind}/embedding": value for kind, value in found.items()}


def train_controlnet(spec, state_dict, tensors, options, *, x0, noise, t, context, hint):
    """Returns loss, gradient norm, first gradients and last parameters of the whole net, by diffusers' names."""
    config, params = _model(spec, state_dict)
    facts = RunFacts(config, ("unet",), hints=(True,), control=ControlTraining())
    net = of_unet(config.unet, factor=config.vae.factor)
    trained = ControlTraining().prepared(config).init({"unet": params["unet"]}, jax.random.key(0))[NETWORK]
    entries = {entry.name: entry for entry in controlnet_table(net, "diffusers", "").entries}
    leaves = flatten_dict({"controlnet": trained}, sep="/")
    for name, tensor in tensors.items():
        (parameter,) = entries[name].parameters
        leaves[parameter.path] = axes.to_flax(parameter.kind, tensor)
    trained = unflatten_dict(leaves, sep="/")
    denoising = DiffusionObjective()._denoising(facts, np.zeros(1))
    schedule = NoiseSchedule(config.schedule)

    def loss(whole, average, batch, keys, step):
        network = denoising.network(whole, batch, batch["context"])
        error = prediction_error(schedule, DiffusionObjective(), network, batch["x0"], batch["noise"], batch["t"])
        return error.mean(), {"loss": error.mean()}

    inputs = {"context": context, "hint": np.moveaxis(hint, 2, -1)}
    metrics, grads, learned = _train(config, params, ControlTraining(), trained, options, x0, noise, t, inputs, loss)
    for kind, tree in ("grad", grads), ("param", learned):
        found = flatten_dict(tree, sep="/")
        for name, entry in entries.items():
            metrics[f"{kind}/{name}"] = entry.join([np.asarray(found[p.path]) for p in entry.parameters])
    return metrics


def _model(spec, state_dict):
    return config_from_spec(spec), convert.load_model(state_dict, config=config_from_spec(spec)).params


def _ours(factor, name):
    """Returns a factor in our layout: PEFT's are [r, c] and [d, r], of convolutions [r, c, h, w] and [d, r, 1, 1]."""
    return factor.reshape(factor.shape[:2]).T if name == "up" or factor.ndim == 2 else factor.transpose(2, 3, 1, 0)


def _theirs(factor, like):
    factor = np.asarray(factor)
    return factor.transpose(3, 2, 0, 1) if factor.ndim == 4 else factor.T.reshape(like.shape)


def _plain(path):
    return path.replace("/", ".").replace("_", ".")


def _train(config, params, what, trained, options, x0, noise, t, inputs, loss=None):
    schedule = NoiseSchedule(config.schedule)

    def plain(whole, average, batch, keys, step):
        with patched([Attached()]):
            context = batch.get("context")
            if context is None:
                context = TextEncoder(config.text).apply({"params": whole["text"]}, batch["ids"])

            def network(x, t):
                return UNet(config.unet).apply({"params": whole["unet"]}, x, t.astype(jnp.float32), context)

            error = prediction_error(schedule, DiffusionObjective(), network, batch["x0"], batch["noise"], batch["t"])
        return error.mean(), {"loss": error.mean()}

    loss = plain if loss is None else loss
    rates = {"learning_rate": options["lr"], "weight_decay": options["weight_decay"]}
    optimizer = make_optimizer(OptimConfig(steps=len(x0), decay_all=True, clip=None, **rates))
    frozen = jax.tree.map(jnp.asarray, {part: params[part] for part in ("unet", "text")})
    step = jax.jit(make_train_step(loss, optimizer, None, assemble=what.assemble, attach=lambda *a: attach(what, *a)))
    batches = [
        {"x0": np.moveaxis(x0[i], 1, -1), "noise": np.moveaxis(noise[i], 1, -1), "t": np.asarray(t[i], np.int32)}
        | {name: value[i] for name, value in inputs.items()}
        for i in range(len(x0))
    ]
    state = TrainState.create(jax.tree.map(jnp.asarray, trained), optimizer, 0, ema=False)
    first = jax.jit(jax.grad(lambda p, f, b: loss(attach(what, p, f), None, b, None, 0)[0]))
    grads, metrics = first(state.params, frozen, batches[0]), []
    for batch in batches:
        state, numbers = step(state, frozen, batch)
        metrics.append(numbers)
    found = {"loss": "loss", "grad_norm": "gradient"}
    return {n: np.array([float(m[k]) for m in metrics]) for n, k in found.items()}, grads, state.params
