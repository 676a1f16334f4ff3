"""`sdjax detail`: makes parts of a picture again at the model's full size, such as faces."""

import argparse
import sys
from typing import Any

from sdjax.scripts.inpaint import METHODS
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, model_flags, noise_flags, options, values
from sdjax.scripts.shared.flags import together
from sdjax.scripts.shared.job import Job
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch

IF_OUT_OF_MEMORY = "a smaller --n_samples, a smaller picture, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Makes parts of a picture (or of each picture of a folder) again, following a prompt,
and puts them back: small faces and hands become as good as large ones. Prints the
paths of the results.

The parts are boxes (--box), the white parts of a mask (--mask), or what a detector
finds (--detector): a file of YOLOv8's family, such as face_yolov8n.pt, which
ADetailer uses too. The square around each part is enlarged to the model's size,
inpainted, and shrunk again. Works with every text-to-image and inpainting model."""

EPILOG = f"""\
Picture k of the run, counted from 0, uses seed + k, and its part j seed + k + j.
Outside the parts the result equals your picture byte for byte. Files are written
as by txt2img.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax detail`."""
    parser = options.make_command_parser("detail", DESCRIPTION, EPILOG)
    options.add_picture_flags(parser)
    add_part_flags(parser)
    options.add_prompt_flags(
        parser, prompt="the empty prompt", n_iter=1, stability_iter="", n_samples=1, folder_samples=1, given=True
    )  # fmt: skip
    options.add_sampling_flags(parser, "")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=True)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/detail-samples")
    parser.set_defaults(own=("strength",))
    return parser


def add_part_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which parts are made again, and how."""
    group = parser.add_argument_group("what to make again")
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add(
        "--box",
        action="append",
        type=values.box,
        metavar="X,Y,W,H",
        help="a part of all pictures: left, top, width and height in pixels; may be repeated",
    )
    add(
        "--mask",
        metavar="PATH",
        help="a mask for all pictures, of their size, whose connected white parts are made again; or a folder of masks "
        "with the pictures' names or NAME_mask.png",
    )
    add("--detector", metavar="FILE", help="a detector that finds the parts: YOLOv8 of any size, .pt or .safetensors")
    add = group.add_argument
    add(
        "--confidence",
        type=values.share,
        metavar="X",
        needs=together("--detector"),
        help="how sure the detector must be, from 0 to 1; default: 0.3",
    )
    add("--most", type=values.positive, metavar="N", help="only the N largest parts of each picture; default: all")
    add("--grow", type=values.natural, default=4, metavar="N", help="pixels to grow a part by; default: %(default)s")
    add(
        "--padding",
        type=values.natural,
        default=32,
        metavar="N",
        help="pixels around a part that the network also sees; default: %(default)s",
    )
    add(
        "--strength",
        type=values.strength,
        default=0.4,
        metavar="X",
        help="how much may change, from 0 to 1; default: %(default)s",
    )
    add(
        "--feather",
        type=values.natural,
        default=4,
        metavar="N",
        help="width of the soft edge inside a part, in pixels; default: %(default)s",
    )
    add("--method", choices=METHODS, help="as for inpaint; default: depends on the model")


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Everything that can be refused is, before weights are loaded and hours of work begin
    job = Job(args, "detail")
    from sdjax.tasks import inputs

    inputs.check_margins(padding=args.padding, feather=args.feather)
    pictures = input_pictures.read_pictures(args.init_img, args.background)
    masks = None if args.mask is None else input_pictures.read_masks(args.mask, pictures)
    batches = job.make_batches("", len(pictures))
    import sdjax
    from sdjax.tasks import detail
    from sdjax.tasks.inpaint import check_method

    detector = None if args.detector is None else sdjax.convert.load_detector(args.detector)
    boxes = None if args.box is None else [tuple(box) for box in args.box]
    for picture in pictures:
        detail.masks_of(boxes or [], picture.pixels)
    how = {"strength": args.strength, "method": args.method, "grow": args.grow, "padding": args.padding}
    how |= {"feather": args.feather, "most": args.most}
    if args.confidence is not None:
        how["confidence"] = args.confidence

    def check(config: Any) -> None:
        check_method(config, args.method)

    pipe = job.load(check)

    def make(batch: PromptBatch, **shared: Any) -> Any:
        chosen = [pictures[number].pixels for number in batch.inputs]
        covers = None if masks is None else [masks[number].pixels for number in batch.inputs]
        return sdjax.detail(
            pipe, chosen, batch.prompts, boxes=boxes, masks=covers, detector=detector, **{**how, **shared}
        )

    def describe(number: int) -> dict[str, Any]:
        mask = None if masks is None else masks[number].describe()
        found = {"boxes": boxes, "mask": mask, "detector": None if detector is None else detector.name}
        chosen = {name: value for name, value in {**found, **how}.items() if value is not None}
        return {"init_img": pictures[number].describe(), **chosen, "method": check_method(pipe.config, args.method)}

    return job.make(batches, make, describe)


if __name__ == "__main__":
    sys.exit(main(["detail", *sys.argv[1:]]))
