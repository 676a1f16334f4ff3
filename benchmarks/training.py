"""A training step of sdjax beside the inner loop of diffusers' text-to-image training script, alternating.

    pip install '.[benchmark,train]'
    python benchmarks/training.py --out benchmarks/results/training_cpu.json

Both train the same UNet (the built-in model's, with v1's four latent channels) from the same weights on the same batch
of stored latents and text embeddings, with AdamW, gradients clipped to norm 1 and a moving average of the weights
(diffusers' EMAModel). Float32, on the CPU. Then `sdjax train` itself runs for a while on pictures, and the shares
of time that it waited for data and for saving are read from its log.
"""

import argparse
import copy
import json
import pathlib
import statistics
import tempfile
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.training_utils import EMAModel
from PIL import Image

from sdjax.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sdjax.configs import finetune
from sdjax.convert.bundle import bundle_of_params
from sdjax.convert.write.safetensors_writer import tensors_of
from sdjax.convert.write.writing import write_bundle
from sdjax.description import build
from sdjax.evaluate.benchmark import device_name, random_model
from sdjax.train.config import TrainConfig
from sdjax.train.objectives.diffusion import Denoising, DiffusionObjective, diffusion_loss
from sdjax.train.optim import OptimConfig, make_optimizer
from sdjax.train.parallel import step_options
from sdjax.train.run import Run
from sdjax.train.state import TrainState
from sdjax.train.step import make_train_step

SIDE = 8  # of a latent
MODEL = ModelConfig(
    name="benchmark", image_size=8 * SIDE,
    unet=UNetConfig(
        channels=(96, 128), num_res_blocks=1, heads=(4, 4), mid_heads=4, transformer_depth=(1, 1),
        self_attention=(True, True), context_dim=128, norm_groups=16,
    ),
    vae=VAEConfig(channels=(16, 32, 64, 96), num_res_blocks=1, norm_groups=4),
    text=TextConfig(width=128, layers=2, heads=4),
    schedule=ScheduleConfig(),
)  # fmt: skip


def ours(params, batch):
    """Returns a function that takes one training step of sdjax."""
    optimizer = make_optimizer(OptimConfig(steps=10**6, learning_rate=1e-4, decay_all=True))
    loss = diffusion_loss(Denoising(MODEL, DiffusionObjective(), np.zeros((77, 128), np.float32)))
    options = step_options(jax.devices())
    step = jax.jit(make_train_step(loss, optimizer, 0.9999), donate_argnums=0, compiler_options=options)
    state = TrainState.create({"unet": jax.tree.map(jnp.asarray, params["unet"])}, optimizer, 0)

    def run():
        nonlocal state
        state, metrics = step(state, {}, batch)
        jax.block_until_ready(metrics)

    return run


def torch_unet(pipe):
    """Returns diffusers' UNet with the weights of a pipeline of MODEL."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(96, 128), layers_per_block=1, cross_attention_dim=128,
        attention_head_dim=4, norm_num_groups=16, down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    model = bundle_of_params(pipe.config, pipe.params, pipe.tokenizer)
    weights = {
        name.removeprefix("unet/"): torch.from_numpy(np.ascontiguousarray(leaf.read()))
        for name, leaf in tensors_of(model, "diffusers").items()
        if name.startswith("unet/")
    }
    unet.load_state_dict(weights)
    return unet


def torch_step(unet, batch, average=None):
    """Returns a function that takes one step of what learns in `unet`, as diffusers' text-to-image scripts do."""
    learning = [p for p in unet.parameters() if p.requires_grad]
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    optimizer = torch.optim.AdamW(learning, lr=1e-4, weight_decay=1e-2)
    moments = torch.from_numpy(np.moveaxis(batch["moments"], -1, 1).astype(np.float32))
    context = torch.from_numpy(batch["context"].astype(np.float32))
    unet.train()

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
        if average is not None:
            average.step(learning)

    return run


def theirs(pipe, batch, channels_last):
    """Returns a function that takes one step as diffusers' train_text_to_image.py does."""
    unet = torch_unet(pipe)
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    return torch_step(unet, batch, average=EMAModel(unet.parameters(), decay=0.9999))


def make_batch(size):
    """Returns random moments of latents and text embeddings of so many pictures."""
    rng = np.random.default_rng(0)
    return {
        "moments": rng.normal(size=(size, SIDE, SIDE, 8)).astype(np.float32),
        "context": rng.normal(size=(size, 77, 128)).astype(np.float32),
    }


def alternate(runs, repeats):
    """Returns the median seconds of each function, called in turn. The first two turns do not count."""
    times = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def surroundings():
    """Returns the device and the versions, as results record them."""
    versions = {"jax": jax.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"device": device_name(jax.devices()[0]), "versions": versions}


def overhead(pipe, steps, batch_size):
    """Returns the shares of time that a run of `sdjax train` waited for data and for saving, after its first steps."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "pictures").mkdir()
        rng = np.random.default_rng(0)
        for i in range(64):
            pixels = rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / f"{i}.jpg")
            (root / "pictures" / f"{i}.txt").write_text(f"picture {i}")
        bundle = bundle_of_params(pipe.config, pipe.params, pipe.tokenizer)
        write_bundle(bundle, root / "model", "native")
        config = finetune.get_config()
        config.model.path = str(root / "model")
        config.data.parts = ({"source": {"folder": str(root / "pictures")}},)
        config.data.buckets = False
        config.batch_size = batch_size
        config.optim.update(steps=steps, warmup=0)
        config.log.update(every=steps // 4, tensorboard=False)
        config.checkpoint.steps = steps // 2
        Run(build(TrainConfig, config.to_dict()), root / "run", lambda text: None).train()
        lines = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "data_wait" in line][1:]  # the first holds the compiling
    return {name: statistics.mean(row[name] for row in rows) for name in ("data_wait", "save_wait", "seconds")}


def main():
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200, help="of the run whose waiting is measured")
    args = parser.parse_args()
    pipe = random_model(MODEL, "float32")
    batch = make_batch(args.batch)
    runs = {
        "sdjax": ours(pipe.params, batch),
        "diffusers": theirs(pipe, copy.deepcopy(batch), False),
        "diffusers, channels_last": theirs(pipe, copy.deepcopy(batch), True),
    }
    speed = {name: args.batch / seconds for name, seconds in alternate(runs, args.repeats).items()}
    print(speed, flush=True)
    best = max(rate for name, rate in speed.items() if name != "sdjax")
    found = {
        **surroundings(), "batch": args.batch, "images_per_second": speed, "ratio": speed["sdjax"] / best,
        "waiting": overhead(pipe, args.steps, args.batch),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    pathlib.Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
