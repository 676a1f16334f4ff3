"""Flags that make a picture as another tool does: its profile, the noise of a seed. Imports nothing heavy."""

import argparse
from collections.abc import Sequence
from typing import Any

from sdjax.scripts.shared import values
from sdjax.scripts.shared.flags import Needs, together

# The names of sdjax.noise.NOISE_SOURCES, repeated here because importing NumPy takes time. A test compares them.
NOISE_SOURCES = ("jax", "torch_cpu", "torch_cuda", "diffusers", "comfyui", "comfyui_2025", "comfyui_cuda")
TOOLS = ("compvis", "diffusers", "a1111", "comfyui", "k-diffusion")  # sdjax.tasks.compat.TOOLS
COUNTINGS = ("share", "compvis", "diffusers", "a1111", "a1111_exact", "comfyui", "ic_light")
ROUNDINGS = ("truncate", "nearest")  # sdjax.pictures.image.ROUNDINGS
VARIED = Needs(
    lambda args: args.variation_strength > 0, "without --variation-strength, which says how much of it to use"
)


def add_noise_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which noise a seed gives."""
    add = parser.add_argument_group("which noise a seed gives").add_argument
    add(
        "--noise-source",
        choices=NOISE_SOURCES,
        metavar="NAME",
        help="the tool whose noise the seed gives: jax, our own; torch_cpu and torch_cuda, AUTOMATIC1111's CPU and NV; "
        "diffusers, with a generator on the CPU; comfyui, or comfyui_cuda on a GPU, or comfyui_2025 before December "
        "2025; default: jax",
    )
    add(
        "--variation-seed",
        type=values.seed,
        metavar="N",
        needs=VARIED,
        help="mix the starting noise with the noise of this seed; picture k uses N + k, and all use --seed; default: 0",
    )
    add(
        "--variation-strength",
        type=values.share,
        default=0.0,
        metavar="X",
        help="from 0 to 1: how much of the variation seed's noise to mix in; default: %(default)s",
    )
    add(
        "--seed-resize",
        type=values.size,
        metavar="WxH",
        help="start from noise whose middle is that of a picture of this size in pixels, such as 512x512, so that a "
        "larger picture resembles it",
    )
    add(
        "--ensd",
        type=int,
        default=0,
        metavar="N",
        help="take the noise that a sampler adds in its steps from seed + N (eta noise seed delta, often 31337); "
        "default: %(default)s, off",
    )
    add(
        "--noise-batch",
        type=values.place,
        metavar="K/N",
        needs=together("--noise-source", "--compat"),
        help="the noise is number K, counted from 0, of N pictures that the tool draws at once from one seed, as "
        "ComfyUI's batches",
    )


def add_compat_flags(parser: argparse.ArgumentParser, *, strength: bool) -> None:
    """Adds the flags that read all settings as another tool does. `strength`: whether the command has a strength."""
    add = parser.add_argument_group("as another tool makes it").add_argument
    add(
        "--compat",
        choices=TOOLS,
        metavar="TOOL",
        help=f"read seed, sampler, strength and prompt as a tool does, one of {', '.join(TOOLS)}; flags that you give "
        "win; default: none",
    )
    if strength:
        add(
            "--strength-counting",
            choices=COUNTINGS,
            metavar="NAME",
            help=f"how a tool counts the steps of a strength, one of {', '.join(COUNTINGS)}; default: share, exactly "
            "that share of the steps",
        )
    add(
        "--rounding",
        choices=ROUNDINGS,
        metavar="NAME",
        help="round pixels to 8 bits: truncate, as CompVis's scripts, AUTOMATIC1111 and ComfyUI do, or nearest, as "
        "diffusers does; default: truncate",
    )


RECORDED = ("compat", "strength_counting", "rounding", "noise_source", "variation_strength", "seed_resize", "ensd",
            "noise_batch")  # fmt: skip


def varied(args: argparse.Namespace, seeds: Sequence[int]) -> dict[str, list[int]]:
    """Returns the seeds of variations; nothing without --variation-strength.

    Variations of a picture keep its seed, and their variation seeds count up.
    """
    others = [variation_seed(args, seed) for seed in seeds]
    return {"seed": [args.seed] * len(seeds), "variation_seed": others} if args.variation_strength else {}


def recorded(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags that are not at their defaults, under the names of `sdjax.Request`'s fields."""
    return {name: getattr(args, name) for name in RECORDED if getattr(args, name, None)}


def seeds_of(args: argparse.Namespace, seed: int) -> dict[str, int]:
    """Returns the recorded seeds of the picture that would have this seed without variations."""
    varied = getattr(args, "variation_strength", 0)
    return {"seed": args.seed, "variation_seed": variation_seed(args, seed)} if varied else {"seed": seed}


def variation_seed(args: argparse.Namespace, seed: int) -> int:
    """Returns the variation seed of the picture that would have this seed without variations."""
    return ((args.variation_seed or 0) + seed - args.seed) % 2**64
