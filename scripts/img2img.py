"""`sdjax img2img`: makes pictures from a picture and a prompt, with the flags of both releases' scripts."""

import argparse
import sys
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, model_flags, noise_flags, options, values
from sdjax.scripts.shared.job import Job, note
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch

IF_OUT_OF_MEMORY = "a smaller --n_samples, smaller --H and --W, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Makes pictures from a picture (or each picture of a folder) and a prompt, and
prints their paths. It adds noise to the picture and removes it again.

The flags are those of scripts/img2img.py in CompVis/stable-diffusion and in
Stability-AI/stablediffusion. The defaults are CompVis's; the text of a flag says
where the two differ. The model sets the default guidance scale."""

EPILOG = f"""\
Picture k of the run, counted from 0, uses seed + k. Without --H and --W the
picture is resized (LANCZOS) to sides rounded down to multiples of 64; a note
gives the size. Files are written as by txt2img.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax img2img`."""
    parser = options.make_command_parser("img2img", DESCRIPTION, EPILOG)
    options.add_picture_flags(parser)
    options.add_prompt_flags(parser, n_iter=1, stability_iter="", n_samples=2, given=True)
    add = parser.add_argument_group("how much to change").add_argument
    add(
        "--strength",
        type=values.strength,
        default=0.75,
        metavar="X",
        help="how much to change, from 0 (only encode and decode) to 1 (keep nothing); default: %(default)s "
        "(Stability: 0.8)",
    )
    options.add_size_flags(parser, "the picture's own side, rounded down to a multiple of 64")
    options.add_sampling_flags(parser, "CompVis: 5, Stability: 9")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=True)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/img2img-samples")
    parser.set_defaults(own=("strength",))
    return parser


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "img2img")
    pictures = input_pictures.read_pictures(args.init_img, args.background)
    batches = job.make_batches(job.default_prompt, len(pictures))
    import sdjax
    from sdjax.pictures import resize
    from sdjax.purpose import check_task
    from sdjax.tasks import inputs

    resized = []
    for picture in pictures:
        height, width = picture.pixels.shape[:2]
        size = inputs.working_size(
            sdjax.ModelConfig("any"), (height, width), args.H, args.W, windowed=args.window is not None
        )
        if size != (height, width):
            note(f"{picture.path}: {width} x {height} resized to {size[1]} x {size[0]} (LANCZOS)")
        resized.append(resize(picture.pixels, *size))
    pipe = job.load(lambda config: check_task(config, "img2img"))

    def make(batch: PromptBatch, **shared: Any) -> Any:
        chosen = [resized[number] for number in batch.inputs]
        sizes = {"height": args.H, "width": args.W}
        return sdjax.image_to_image(pipe, chosen, batch.prompts, **sizes, **{"strength": args.strength, **shared})

    def describe(number: int) -> dict[str, Any]:
        return {"init_img": pictures[number].describe(), "strength": args.strength}

    return job.make(batches, make, describe)


if __name__ == "__main__":
    sys.exit(main(["img2img", *sys.argv[1:]]))
