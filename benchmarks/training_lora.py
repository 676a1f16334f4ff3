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
import statistics
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from training import MODEL, SIDE, torch_unet

from sdjax.adapters import patched
from sdjax.adapters.attached import Attached
from sdjax.evaluate.benchmark import device_name, random_model
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
    unet.train()
    learning = [p for p in unet.parameters() if p.requires_grad]
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    optimizer = torch.optim.AdamW(learning, lr=1e-4, weight_decay=1e-2)
    moments = torch.from_numpy(np.moveaxis(batch["moments"], -1, 1).astype(np.float32))
    context = torch.from_numpy(batch["context"].astype(np.float32))

    def run():
        mean, logvar = moments.chunk(2, dim=1)
        latents = (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)) * MODEL.vae.scale_factor
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (len(latents),))
        out = unet(scheduler.add_noise(latents, noise, t), t, context, return_dict=False)[0]
        torch.nn.functional.mse_loss(out, noise).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run, sum(p.numel() for p in learning), layers


def main():
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    pipe = random_model(MODEL, "float32")
    rng = np.random.default_rng(0)
    batch = {
        "moments": rng.normal(size=(args.batch, SIDE, SIDE, 8)).astype(np.float32),
        "context": rng.normal(size=(args.batch, 77, 128)).astype(np.float32),
    }
    (mine, count), (other, others, layers) = ours(pipe.params, batch), theirs(pipe, batch)
    if count != others:
        raise SystemExit(f"sdjax trains {count} numbers, diffusers {others}")
    runs, times = {"sdjax": mine, "diffusers": other}, {"sdjax": [], "diffusers": []}
    for turn in range(args.repeats + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    speed = {name: 1 / statistics.median(values) for name, values in times.items()}
    found = {
        "device": device_name(jax.devices()[0]), "batch": args.batch, "rank": RANK, "parameters": count,
        "layers": layers, "steps_per_second": speed, "ratio": speed["sdjax"] / speed["diffusers"],
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    pathlib.Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
