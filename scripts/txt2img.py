"""`sdjax txt2img`: makes pictures from a prompt, with the flags of both releases' scripts/txt2img.py."""

import argparse
import sys
from pathlib import Path
from typing import Any

try:
    from sdjax.scripts.main import EXIT_STATUS, main
except ImportError as error:
    sys.exit(f"sdjax must be installed first, by `make run` or `pip install .` in its folder ({error})")

from sdjax.scripts.shared import (
    enlarging,
    model_flags,
    noise_files,
    noise_flags,
    options,
    sampler_flags,
    values,
)
from sdjax.scripts.shared.flags import Needs, alone
from sdjax.scripts.shared.job import Job
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch
from sdjax.tasks import recording

IF_OUT_OF_MEMORY = "a smaller --n_samples, smaller --H and --W, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Makes pictures from a prompt, or from a file of prompts, and prints their paths.

The flags are those of scripts/txt2img.py in CompVis/stable-diffusion and in
Stability-AI/stablediffusion. The defaults are CompVis's; the text of a flag says
where the two differ. The model sets the default size and guidance scale."""

EPILOG = f"""\
Picture k of the run, counted from 0, uses seed + k, so you can make it again
alone. File numbers continue from the highest in the folder; nothing is
overwritten. A PNG holds a `parameters` text that other tools read, and a `sdjax`
text with every setting as JSON. The same command, version and device give the
same bytes.

{EXIT_STATUS}"""

OUTDIR = "outputs/txt2img-samples"
LAION_CHECKPOINT, LAION_OUTDIR = "models/ldm/text2img-large/model.ckpt", "outputs/txt2img-samples-laion400m"
# The same as in sdjax.tasks.two_pass: our names, then the web UI's; a test compares them
UPSCALES = (
    "lanczos", "nearest pixels", "bilinear", "bicubic", "sharp bicubic", "nearest", "floor nearest", "Latent",
    "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)",
    "Latent (nearest-exact)", "Lanczos", "Nearest",
)  # fmt: skip
UPSCALE, STRENGTH = "lanczos", 0.6
SECOND_PASS = Needs(lambda args: args.hires is not None, "without a second pass; add --hires, such as --hires 2")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax txt2img`."""
    parser = options.make_command_parser("txt2img", DESCRIPTION, EPILOG)
    options.add_prompt_flags(parser)
    options.add_size_flags(parser, "the model's own, 512 or 768 (both references: 512), 64 for the built-in model")
    add_hires_flags(parser)
    options.add_sampling_flags(parser)
    noise_flags.add_noise_flags(parser)
    add_latents_flag(parser)
    noise_flags.add_compat_flags(parser, strength=False)
    model_flags.add_model_flags(parser)
    parser.add_argument(
        "--laion400m",
        action="store_true",
        help=f"use the LAION-400M model: sets --ckpt {LAION_CHECKPOINT} and --outdir {LAION_OUTDIR} unless you give "
        "them; needs --vocab. (CompVis's script makes 512 x 512 pixels, this one the model's own 256 x 256)",
    )
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, OUTDIR)
    parser.set_defaults(own=("height", "width"))
    return parser


def add_latents_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of starting noise from a file."""
    parser.add_argument_group("starting noise from a file").add_argument(
        "--latents",
        metavar="FILE",
        needs=(alone("--variation-strength"), alone("--seed-resize")),
        help="start all pictures from this noise, as `sdjax invert` writes it, instead of noise from the seed; --H and "
        "--W are then its own",
    )


def add_hires_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a second pass at a larger size."""
    add = parser.add_argument_group("high resolution in two passes").add_argument
    add(
        "--hires",
        type=values.finite,
        metavar="X",
        help="make the picture at --H x --W, enlarge it X times, and make it again from that; default: one pass",
    )
    add(
        "--hires-upscale",
        choices=UPSCALES,
        needs=SECOND_PASS,
        metavar="NAME",
        help="how to enlarge: lanczos or nearest pixels for the picture; for the latent bilinear, bicubic, sharp "
        f"bicubic, nearest or floor nearest; or the web UI's name, such as Latent; default: {UPSCALE}",
    )
    add(
        "--upscaler",
        metavar="FILE",
        needs=(SECOND_PASS, alone("--hires-upscale")),
        help="enlarge the picture by this upscaler of the ESRGAN family (RealESRGAN_x4plus.pth, ...), as for --model "
        "of upscale",
    )
    add(
        "--hires-strength",
        type=values.strength,
        metavar="X",
        needs=SECOND_PASS,
        help=f"how much the second pass changes, from 0 to 1; default: {STRENGTH}",
    )
    same = "for the second pass; default: the first one's"
    add("--hires-steps", type=values.positive, metavar="N", needs=SECOND_PASS, help=f"number of steps {same}")
    add(
        "--hires-sampler",
        type=sampler_flags.known_sampler,
        metavar="NAME",
        needs=SECOND_PASS,
        help=f"sampler, by its name in any tool, {same}",
    )
    add("--hires-prompt", metavar="TEXT", needs=SECOND_PASS, help=f"prompt {same}")
    add("--hires-negative-prompt", metavar="TEXT", needs=SECOND_PASS, help=f"negative prompt {same}")
    add("--hires-scale", type=values.finite, metavar="X", needs=SECOND_PASS, help=f"guidance scale {same}")
    add(
        "--hires-patch",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        needs=SECOND_PASS,
        help=f"patch as for --patch, or none, {same}; may be repeated",
    )


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Check everything before weights are loaded and hours of work begin
    two_pass = read_hires(args)
    choose_laion400m(args)
    job = Job(args, "txt2img")
    latents = None if args.latents is None else noise_files.read(args.latents)
    batches = job.make_batches(job.default_prompt)
    import sdjax
    from sdjax.purpose import check_task
    from sdjax.tasks.resolve import check_size
    from sdjax.tasks.two_pass import enlarged

    size = check_size(sdjax.ModelConfig("any"), args.H, args.W, windowed=args.window is not None)
    windowed = args.window is not None
    if two_pass and None not in (args.H, args.W):
        enlarged(sdjax.ModelConfig("any"), size, args.hires, windowed=windowed)

    def check(config: Any) -> None:
        check_task(config, "txt2img")
        if latents is not None:
            args.H, args.W = latents.size(args.H, args.W, config.vae)
            job.options.flags |= {"height": args.H, "width": args.W}
        size = check_size(config, args.H, args.W, windowed=args.window is not None)
        if two_pass:
            enlarged(config, size, args.hires, windowed=windowed)

    pipe = job.load(check)

    def make(batch: PromptBatch, **shared: Any) -> Any:
        task = sdjax.two_pass if two_pass else sdjax.text_to_image
        start = {} if latents is None else {"latents": latents.values}
        return task(pipe, batch.prompts, **{"height": args.H, "width": args.W, **start, **two_pass, **shared})

    described = {name: value for name, value in two_pass.items() if name != "upscaler"}
    if args.upscaler is not None:
        described |= {"upscale": two_pass["upscaler"].name, "upscaler": recording.fingerprint(args.upscaler)}
    own: dict[str, Any] = {"hires": described} if described else {}
    own |= {} if latents is None else {"latents": latents.describe()}
    return job.make(batches, make, lambda _: own)


def choose_laion400m(args: argparse.Namespace) -> None:
    """Sets the flags that --laion400m stands for, unless given. Raises ValueError if the checkpoint is missing."""
    if not args.laion400m:
        return
    if args.ckpt is None and not Path(LAION_CHECKPOINT).is_file():
        raise ValueError(
            f"--laion400m: there is no {LAION_CHECKPOINT}; put the checkpoint there, as for CompVis's script, or name "
            "it with --ckpt"
        )
    args.ckpt = args.ckpt or LAION_CHECKPOINT
    args.config = args.config or "laion400m"
    if args.outdir == OUTDIR:
        args.outdir = LAION_OUTDIR


def read_hires(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of the second pass; empty without --hires."""
    strength = STRENGTH if args.hires_strength is None else args.hires_strength
    how = {"enlarge": args.hires, "upscale": args.hires_upscale or UPSCALE, "strength": strength}
    if args.upscaler is not None:
        how |= {"upscaler": enlarging.read_upscaler(args.upscaler)}
    names = ("hires_steps", "hires_sampler", "hires_prompt", "hires_negative_prompt", "hires_scale")
    own = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.hires_patch is not None:
        from sdjax.adapters.table import describe, make_settings

        patches = [] if args.hires_patch == ["none"] else args.hires_patch
        own["hires_patches"] = [describe(one) for one in make_settings(patches)]
    return {} if args.hires is None else how | own


if __name__ == "__main__":
    sys.exit(main(["txt2img", *sys.argv[1:]]))
