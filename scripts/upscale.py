"""`sdjax upscale`: larger pictures, by the x4 upscaler of Stable Diffusion 2 or by one of the ESRGAN family."""

import argparse
import sys
from typing import Any

from sdjax.purpose import UPSCALER_LEVELS
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import enlarging, input_pictures, model_flags, noise_flags, options, values
from sdjax.scripts.shared.job import Job
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch

IF_OUT_OF_MEMORY = "a smaller --n_samples, a smaller picture, --dtype bfloat16"

DESCRIPTION = """\
Makes a picture (or each picture of a folder) larger, and prints the paths.

--ckpt names the x4 upscaler of Stable Diffusion 2 (x4-upscaler-ema.ckpt,
stabilityai/stable-diffusion-x4-upscaler), which reads a prompt and makes pictures
four times as high and wide. --model names a small upscaler of the ESRGAN family
(RealESRGAN_x4plus.pth, realesr-animevideov3.pth, 4x-UltraSharp.pth, ...), which
takes pictures of any size and no prompt.

Flags and defaults are those of Stability-AI/stablediffusion's upscaling demo
(scripts/streamlit/superresolution.py). The text of a flag says where the demo in
scripts/gradio differs."""

EPILOG = f"""\
With --ckpt, pictures have any size up to 512 x 512. They are padded to multiples of 64, at
least 128, by repeating their edges; the padding is cut off the result. Picture k
of the run, counted from 0, uses seed + k. Files are written as by txt2img.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax upscale`."""
    parser = options.make_command_parser("upscale", DESCRIPTION, EPILOG)
    options.add_picture_flags(parser)
    options.add_prompt_flags(
        parser, prompt="the empty prompt", n_iter=1, stability_iter="", n_samples=1, folder_samples=1, given=True
    )  # fmt: skip
    enlarging.add_flags(parser)
    add = parser.add_argument_group("how much to invent").add_argument
    add(
        "--noise_level",
        "--noise-level",
        dest="noise_level",
        type=values.noise_level(UPSCALER_LEVELS),
        default=20,
        metavar="N",
        help=f"noise that is added to the picture first, from 0 to {UPSCALER_LEVELS}: 20 suits photographs, 50 to 100 "
        "suits generated pictures; default: %(default)s",
    )
    options.add_sampling_flags(parser, "Stability's gradio demo: 10, and 75 steps")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=False)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/upscale-samples")
    return parser


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    if args.model is not None:
        return enlarging.run(args)
    # Everything that can be refused is, before weights are loaded and hours of work begin
    job = Job(args, "upscale")
    if job.checkpoint is None:
        raise ValueError(
            "no upscaler is named: give its checkpoint with --ckpt, or a small upscaler's file with --model"
        )
    pictures = input_pictures.read_pictures(args.init_img, args.background)
    batches = job.make_batches("", len(pictures))
    import sdjax
    from sdjax.purpose import check_task
    from sdjax.tasks import upscale

    for picture in pictures:
        upscale.check_side(*picture.pixels.shape[:2])

    def check(config: Any) -> None:
        check_task(config, "upscale", "upscaling")
        upscale.check_noise_level(config, args.noise_level)

    pipe = job.load(check)

    def make(batch: PromptBatch, **shared: Any) -> Any:
        chosen = [pictures[number].pixels for number in batch.inputs]
        return sdjax.upscale(pipe, chosen, batch.prompts, noise_level=args.noise_level, **shared)

    def describe(number: int) -> dict[str, Any]:
        return {"init_img": pictures[number].describe(), "noise_level": args.noise_level}

    return job.make(batches, make, describe)


if __name__ == "__main__":
    sys.exit(main(["upscale", *sys.argv[1:]]))
