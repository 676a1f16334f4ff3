"""`sdjax inpaint`: replaces a part of a picture, or continues a picture beyond its edges."""

import argparse
import sys
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, model_flags, noise_flags, options, values
from sdjax.scripts.shared.flags import alone, together
from sdjax.scripts.shared.job import Job
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch

IF_OUT_OF_MEMORY = "a smaller --n_samples, a smaller picture or --only-masked, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Replaces the white part of a picture's mask, following a prompt, or continues the
picture beyond its edges (--expand). Prints the paths of the results. For a folder
it uses all pictures, with the masks beside them (NAME_mask.png for NAME.png).

Works with inpainting models (9 channels) and every text-to-image model. Pictures
keep their size: they are padded to multiples of 64 and cropped again."""

EPILOG = f"""\
Picture k of the run, counted from 0, uses seed + k. Outside the mask the result
equals your picture byte for byte. --indir, --outdir and --steps are those of
CompVis's scripts/inpaint.py. Files are written as by txt2img.

{EXIT_STATUS}"""

METHODS = ("blend", "concat")  # these are the same as in sdjax.tasks.inpaint; a test compares them
FILLS = ("picture", "noise", "nothing")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax inpaint`."""
    parser = options.make_command_parser("inpaint", DESCRIPTION, EPILOG)
    options.add_picture_flags(parser, "--indir")
    add_mask_flags(parser)
    options.add_prompt_flags(
        parser, prompt="the empty prompt", n_iter=1, stability_iter="", n_samples=1, given=True
    )  # fmt: skip
    options.add_sampling_flags(parser, "Stability: 10")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=True)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/inpaint-samples")
    parser.set_defaults(own=("strength",))
    return parser


def add_mask_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is replaced, and how it is joined to the rest."""
    add = parser.add_argument_group("what to replace").add_argument
    add(
        "--mask",
        metavar="PATH",
        help="a mask for all pictures, of their size, white where the picture is replaced; or a folder of masks with "
        "the pictures' names or NAME_mask.png; default: NAME_mask.png beside NAME.png",
    )
    add(
        "--expand",
        type=values.sides,
        metavar="L,T,R,B",
        help="continue the picture by this many pixels at left, top, right and bottom; needs no mask",
    )
    add(
        "--overlap",
        type=values.natural,
        metavar="N",
        needs=together("--expand"),
        help="with --expand, also replace N pixels of the picture along the sides that grow; default: 0",
    )
    add(
        "--only-masked", action="store_true", help="work only on the part around the mask, enlarged to the model's size"
    )
    add(
        "--padding",
        type=values.natural,
        metavar="N",
        needs=together("--only-masked"),
        help="with --only-masked, how many pixels around the mask belong to the part; default: 32",
    )
    add(
        "--strength",
        type=values.strength,
        default=1.0,
        metavar="X",
        help="below 1, start from the present picture, as img2img does; default: %(default)s",
    )
    add(
        "--method",
        choices=METHODS,
        help="blend: put the known part back in every step; concat: show it to the network, which must have 9 "
        "channels; default: depends on the model",
    )
    add(
        "--fill",
        choices=FILLS,
        default="picture",
        help="with --strength below 1, what is under the mask at the start: the picture, latent noise, or a latent of "
        "zeros, as in A1111; default: %(default)s",
    )
    add("--no-composite", action="store_true", help="outside the mask, keep the decoded picture instead of your pixels")
    add(
        "--feather",
        type=values.natural,
        default=0,
        metavar="N",
        needs=alone("--no-composite", why=", which joins no edges"),
        help="width of the soft edge inside the mask, in pixels; default: %(default)s",
    )


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "inpaint")
    from sdjax.tasks import inputs

    margins = {"padding": args.padding, "overlap": args.overlap, "feather": args.feather}
    inputs.check_margins(**{name: margin for name, margin in margins.items() if margin is not None})
    pictures = input_pictures.read_pictures(args.init_img, args.background)
    masks = None if args.expand is not None and args.mask is None else input_pictures.read_masks(args.mask, pictures)
    batches = job.make_batches("", len(pictures))
    import sdjax
    from sdjax.tasks.inpaint import check_method

    how = {"strength": args.strength, "method": args.method, "only_masked": args.only_masked}
    how |= {"composite": not args.no_composite, "feather": args.feather, "fill": args.fill}
    if args.padding is not None:
        how["padding"] = args.padding
    if args.expand is not None:
        how |= {"expand": inputs.check_expand(args.expand), "overlap": args.overlap or 0}
    left, top, right, bottom = how.get("expand", (0, 0, 0, 0))
    if not args.only_masked:
        for picture in pictures:
            height, width = picture.pixels.shape[:2]
            inputs.check_workable((height + top + bottom, width + left + right))

    def check(config: Any) -> None:
        check_method(config, args.method)
        if args.only_masked and masks is not None and args.expand is None:
            for picture, mask in zip(pictures, masks):
                repaint = mask.pixels >= inputs.WHITE
                inputs.make_frame(picture.pixels, repaint, side=config.image_size, padding=how.get("padding", 32))

    pipe = job.load(check)

    def make(batch: PromptBatch, **shared: Any) -> Any:
        chosen = [pictures[number].pixels for number in batch.inputs]
        covers = None if masks is None else [masks[number].pixels for number in batch.inputs]
        if args.expand is not None:
            return sdjax.outpaint(pipe, chosen, batch.prompts, mask=covers, **{**how, **shared})
        return sdjax.inpaint(pipe, chosen, covers, batch.prompts, **{**how, **shared})

    def describe(number: int) -> dict[str, Any]:
        mask = None if masks is None else masks[number].describe()
        method = check_method(pipe.config, args.method)
        return {"init_img": pictures[number].describe(), "mask": mask, **how, "method": method}

    return job.make(batches, make, describe)


if __name__ == "__main__":
    sys.exit(main(["inpaint", *sys.argv[1:]]))
