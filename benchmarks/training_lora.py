"""A step of LoRA training in sdjax beside the inner loop of diffusers' train_text_to_image_lora.py, alternating.

    pip install '.[benchmark,train]' peft
    python benchmarks/training_lora.py --out benchmarks/results/training_lora_cpu.json

Both train rank 16 on queries, keys, values and outputs of all attention layers of the UNet of benchmarks/training.py,
from the same weights on the same batch of stored latents and text embeddings, with AdamW and gradients clipped to norm
1. Float32, on the CPU. diffusers' layers are PEFT's; without PEFT they are torch modules that compute the same.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
from training import MODEL, alternate, make_batch, surroundings, torch_step, torch_unet

from sdjax.adapters import patched
from sdjax.adapters.attached import Attached
from sdjax.evaluate.benchmark import random_model
from sdjax.loading.trainable import attach
from sdjax.loading.trainable.low_rank import LoRATraining
from sdjax.train.objectives.diffusion import Denoising, DiffusionObjective, diffusion_loss
from sdjax.train.optim import OptimConfig, make_optimizer
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step

RANK = 16
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def ours(params, batch):
    """Returns a function that takes one step of sdjax, and the number of parameters that learn."""
    what = LoRATraining(rank=RANK)
    frozen = {"unet": jax.tree.map(jnp.asarray, params["unet"])}
    optimizer = make_optimizer(OptimConfig(steps=10**6, learning_rate=1e-4))
    plain = diffusion_loss(Denoising(MODEL, DiffusionObjective(), np.zeros((77, 128), np.float32)))

    def loss(*args):
        with patched([Attached()]):
            return plain(*args)

    made = make_train_step(loss, optimizer, None, assemble=what.assemble, attach=lambda *args: attach(what, *args))
    step = jax.jit(made, donate_argnums=0)
    state = TrainState.create(what.init(frozen, jax.random.key(0)), optimizer, 0, ema=False)

    def run():
        nonlocal state
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(metrics)

    return run, sum(leaf.size for leaf in jax.tree.leaves(state.params))


class Layer(torch.nn.Module):
    """A linear layer with low-rank factors beside it, as PEFT's."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, RANK, bias=False)
        self.up = torch.nn.Linear(RANK, base.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def add_layers(unet):
    """Adds the factors, and returns by what."""
    unet.requires_grad_(False)
    try:
        from peft import LoraConfig
    except ModuleNotFoundError:
        for name, module in list(unet.named_modules()):
            if isinstance(module, torch.nn.Linear) and name.endswith(TARGETS):
                parent, _, last = name.rpartition(".")
                setattr(unet.get_submodule(parent), last, Layer(module))
        return "torch modules"
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(TARGETS)))
    return "peft"


def theirs(pipe, batch):
    """Returns a function that takes one step as the script does, the number of parameters, and whose layers."""
    unet = torch_unet(pipe)
    layers = add_layers(unet)
    return torch_step(unet, batch), sum(p.numel() for p in unet.parameters() if p.requires_grad), layers


def main():
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    pipe = random_model(MODEL, "float32")
    batch = make_batch(args.batch)
    (mine, count), (other, others, layers) = ours(pipe.params, batch), theirs(pipe, batch)
    if count != others:
        raise SystemExit(f"sdjax trains {count} numbers, diffusers {others}")
    times = alternate({"sdjax": mine, "diffusers": other}, args.repeats)
    found = {
        **surroundings(), "batch": args.batch, "rank": RANK, "parameters": count, "layers": layers,
        "steps_per_second": {name: 1 / seconds for name, seconds in times.items()},
        "ratio": times["diffusers"] / times["sdjax"],
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    pathlib.Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
