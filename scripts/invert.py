"""`sdjax invert`: writes the starting noise from which DDIM makes a picture."""

import argparse
import sys
from pathlib import Path

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, model_flags, noise_files, options, runtime, values
from sdjax.scripts.shared.job import Job, note
from sdjax.scripts.shared.prompts import check_prompts

IF_OUT_OF_MEMORY = "smaller --H and --W, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Walks DDIM's steps backwards, from a picture (or each picture of a folder) to the
noise that DDIM makes it from. Writes the noise as a .npy file and prints its path.
`sdjax txt2img --latents FILE` starts from it: with the same prompt, --steps and
--scale it makes the picture again, with another prompt one that has much of it."""

EPILOG = f"""\
Without --H and --W the picture is resized (LANCZOS) to sides rounded down to
multiples of 64. File numbers continue from the highest in the folder; nothing is
overwritten.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax invert`."""
    parser = options.make_command_parser("invert", DESCRIPTION, EPILOG)
    options.add_picture_flags(parser)
    add = parser.add_argument_group("what it shows").add_argument
    add("--prompt", default="", metavar="TEXT", help="what the picture shows; default: the empty prompt")
    options.add_negative_flag(add)
    add = parser.add_argument_group("how exactly").add_argument
    add(
        "--refinements",
        type=values.natural,
        default=0,
        metavar="N",
        help="make each step N times again with its last result, which comes closer and costs N more calls of the "
        "network in a step; default: %(default)s, the usual inversion",
    )
    options.add_size_flags(parser, "the picture's own side, rounded down to a multiple of 64")
    options.add_sampling_flags(parser, scale="1, with which inversion is most exact", sampler=False)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    parser.add_argument_group("what to write").add_argument(
        "--outdir",
        type=values.folder,
        default="outputs/inverted",
        metavar="DIR",
        help="write the noise to DIR; default: %(default)s",
    )
    # Other commands have flags for these
    parser.set_defaults(
        scale=1.0, sampler="ddim", plms=False, dpm=False, sampler_option=[], ddim_eta=None, n_rows=0, own=(),
        skip_save=True, skip_grid=False, watermark=None, safety_checker="off", preview=None, taesd=None,
    )  # fmt: skip
    return parser


def run(args: argparse.Namespace) -> None:
    """Makes and writes the noise. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "invert")
    given = input_pictures.read_pictures(args.init_img, args.background)
    import sdjax
    from sdjax.pictures import image
    from sdjax.purpose import check_task
    from sdjax.samplers.inversion import DDIMInversion
    from sdjax.tasks import inputs

    DDIMInversion(refinements=args.refinements)
    windowed = args.window is not None
    for one in given:
        height, width = one.pixels.shape[:2]
        size = inputs.working_size(sdjax.ModelConfig("any"), (height, width), args.H, args.W, windowed=windowed)
        if size != (height, width):
            note(f"{one.path}: {width} x {height} resized to {size[1]} x {size[0]} (LANCZOS)")
    pipe = job.load(lambda config: check_task(config, "img2img"))
    chosen = job.options.for_task([{}])
    forwards = chosen.pop("sampler")
    check_prompts(pipe, [args.prompt, args.negative_prompt], args)
    with runtime.Progress(len(given)) as progress, runtime.Interrupts() as interrupts:

        def show(done: int, total: int) -> None:
            progress.show(done, total)
            interrupts.check()

        for one in given:
            (noise,) = sdjax.invert(
                pipe, one.pixels, args.prompt, refinements=args.refinements, spacing=forwards.spacing, height=args.H,
                width=args.W, parallel=args.parallel, split_picture=args.split_picture, devices=job.devices,
                exact=args.exact, progress=show, **chosen,
            )  # fmt: skip
            progress.print(image.save_numbered_file(Path(args.outdir), noise_files.encode(noise), ".npy"))


if __name__ == "__main__":
    sys.exit(main(["invert", *sys.argv[1:]]))
