"""One picture by sdjax or another tool: a process whose time and memory against_peers.py and small_memory.py take.

    python benchmarks/one_picture.py TOOL MODEL DTYPE SIZE STEPS

TOOL is sdjax, diffusers, OpenVINO or stable-diffusion.cpp; the first and last also with ", low memory". MODEL is a
folder or a file.
It prints the highest memory use of the process in KiB.
"""

import argparse
import pathlib
import re

PROMPT = "a rocket on a green background"


def main():
    """Makes the picture, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in "TOOL", "MODEL", "DTYPE", "SIZE", "STEPS":
        parser.add_argument(name)
    picture(*vars(parser.parse_args()).values())
    # getrusage's figure would be that of the process that started this one, where that is higher
    print(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])


def picture(who, folder, dtype, size, steps):
    """Imports only what the one that is measured needs."""
    asked = {"height": int(size), "width": int(size), "guidance_scale": 7.5}
    if who.startswith("sdjax"):
        import sdjax

        works = "float16" if dtype.startswith("q") else dtype  # what is not quantised, and what is computed
        pipe = sdjax.load(folder, dtype=works, low_memory="low memory" in who)
        sdjax.text_to_image(pipe, PROMPT, num_steps=int(steps), **asked)
        return
    if who == "OpenVINO":
        by_openvino(pathlib.Path(folder), dtype, int(size) // 8, int(steps))
        return
    if who.startswith("stable-diffusion.cpp"):  # its type is the file's
        by_cpp(folder, int(size), int(steps), "low memory" in who)
        return
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe(PROMPT, num_inference_steps=int(steps), **asked)


def by_cpp(model, size, steps, low_memory):
    """Draws by stable-diffusion.cpp on all cores. Its ways to need less are its own options."""
    import os

    from stable_diffusion_cpp import StableDiffusion

    tool = StableDiffusion(
        model_path=model, vae_decode_only=True, n_threads=os.cpu_count(), verbose=False,
        diffusion_flash_attn=low_memory,
    )  # fmt: skip
    tool.generate_image(
        PROMPT, sample_steps=steps, width=size, height=size, cfg_scale=7.5, vae_tiling=low_memory
    )  # fmt: skip


def by_openvino(folder, dtype, side, steps):
    """Draws by DDIM with what against_peers.py left in the folder: three networks as .xml, and the ids of tokens."""
    import numpy as np
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype], "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    text, unet, decoder = (
        core.compile_model(folder / f"{name}.xml", "CPU", hints) for name in ("text", "unet", "decoder")
    )
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    context = text([np.load(folder / "ids.npy")])[0]
    x = np.random.default_rng(0).standard_normal((1, 4, side, side), np.float32)
    times = np.arange(1000 // steps * (steps - 1) + 1, 0, -(1000 // steps))
    for t, after in zip(times, [*times[1:], 0], strict=True):
        empty, told = unet([np.tile(x, (2, 1, 1, 1)), np.full(2, t, np.float32), context])[0]
        noise = empty + 7.5 * (told - empty)
        x0 = (x - (1 - alphas[t]) ** 0.5 * noise) / alphas[t] ** 0.5
        x = (alphas[after] ** 0.5 * x0 + (1 - alphas[after]) ** 0.5 * noise).astype(np.float32)
    decoder([x / np.float32(0.18215)])


if __name__ == "__main__":
    main()
