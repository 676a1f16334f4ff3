"""`sdjax edit`: changes pictures as instructions say, with InstructPix2Pix models."""

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
Changes a picture (or each picture of a folder) as an instruction says, such as
--prompt "make it winter", and prints the paths of the results.

Works with InstructPix2Pix models, whose network sees the picture in every step.
A larger --scale changes more, a larger --image-scale keeps more."""

EPILOG = f"""\
Picture k of the run, counted from 0, uses seed + k. Without --H and --W the
picture is resized (LANCZOS) to sides rounded down to multiples of 64; a note
gives the size. Files are written as by txt2img.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax edit`."""
    parser = options.make_command_parser("edit", DESCRIPTION, EPILOG)
    options.add_picture_flags(parser)
    options.add_prompt_flags(parser, n_iter=1, stability_iter="", n_samples=2, given=True)
    parser.add_argument_group("how much to change").add_argument(
        "--image-scale",
        type=values.finite,
        default=1.5,
        metavar="X",
        help="guidance scale of the picture: how much of it is kept; 1 saves a pass; default: %(default)s",
    )
    options.add_size_flags(parser, "the picture's own side, rounded down to a multiple of 64")
    options.add_sampling_flags(parser, "InstructPix2Pix: 7.5")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=False)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/edit-samples")
    return parser


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "edit")
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
    pipe = job.load(lambda config: check_task(config, "edit", "edit"))

    def make(batch: PromptBatch, **shared: Any) -> Any:
        chosen = [resized[number] for number in batch.inputs]
        sizes = {"height": args.H, "width": args.W}
        return sdjax.edit(pipe, chosen, batch.prompts, image_scale=args.image_scale, **sizes, **shared)

    def describe(number: int) -> dict[str, Any]:
        return {"init_img": pictures[number].describe(), "image_scale": args.image_scale}

    return job.make(batches, make, describe)


if __name__ == "__main__":
    sys.exit(main(["edit", *sys.argv[1:]]))
