"""`sdjax depth2img`: makes pictures with the shapes of another one, with the settings of Stability's demo."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, model_flags, noise_flags, options, values
from sdjax.scripts.shared.flags import alone
from sdjax.scripts.shared.job import Job, resolve_local
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch

IF_OUT_OF_MEMORY = "a smaller --n_samples, a smaller picture, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Makes pictures from a prompt that keep the shapes of a picture (or of each picture
of a folder), and prints their paths. It keeps the depth map, which a network in
the checkpoint estimates or --depth gives.

Works with models that have a depth channel (Stable Diffusion 2 depth). Pictures
keep their size: they are padded to multiples of 64 and cropped again."""

EPILOG = f"""\
Picture k of the run, counted from 0, uses seed + k. The defaults of steps, scale,
eta and strength are those of scripts/gradio/depth2img.py in
Stability-AI/stablediffusion. Files are written as by txt2img.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax depth2img`."""
    parser = options.make_command_parser("depth2img", DESCRIPTION, EPILOG)
    options.add_picture_flags(parser)
    add = parser.add_argument_group("what to keep").add_argument
    add(
        "--depth",
        metavar="PATH",
        help="a depth map for all pictures, with their aspect ratio, white is near; or a folder of maps with the "
        "pictures' names or NAME_depth.png; default: estimated",
    )
    add(
        "--depth-model",
        metavar="PATH",
        needs=alone("--depth", why=", which gives the depth itself"),
        help="estimate the depth with the network of this file, folder or hub repository, such as "
        "Intel/dpt-hybrid-midas; default: the checkpoint's own",
    )
    add("--save-depth", action="store_true", help="also write the depth maps to DIR/depth, as grey 16-bit PNGs")
    add(
        "--strength",
        type=values.strength,
        default=0.9,
        metavar="X",
        help="how much to change, from 0 (only encode and decode) to 1 (keep only the depth); default: %(default)s",
    )
    options.add_prompt_flags(parser, n_iter=1, stability_iter="", n_samples=1, given=True)
    options.add_sampling_flags(parser, "Stability: 9")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=True)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/depth2img-samples")
    parser.set_defaults(own=("strength",))
    return parser


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "depth2img")
    pictures = input_pictures.read_pictures(args.init_img, args.background)
    maps = None if args.depth is None else read_maps(args.depth, pictures)
    batches = job.make_batches(job.default_prompt, len(pictures))
    import sdjax
    from sdjax.purpose import check_task
    from sdjax.tasks import depth_to_image

    for picture in pictures:
        depth_to_image.check_workable(picture.pixels.shape[:2])
    resolve_local(args.depth_model)

    def check(config: Any) -> None:
        check_task(config, "depth2img", "depth")
        if config.depth is None and maps is None:
            raise ValueError(
                f"{depth_to_image.WITHOUT}: give the depth with --depth, or a network that estimates it with "
                "--depth-model"
            )

    pipe = job.load(check, depth=args.depth_model)
    if args.save_depth:
        save_maps(job, pipe, pictures, maps)

    def make(batch: PromptBatch, **shared: Any) -> Any:
        chosen = [pictures[number].pixels for number in batch.inputs]
        given_maps = None if maps is None else [maps[number].pixels for number in batch.inputs]
        return sdjax.depth_to_image(
            pipe, chosen, batch.prompts, depth_map=given_maps, **{"strength": args.strength, **shared}
        )

    def describe(number: int) -> dict[str, Any]:
        of_map = None if maps is None else maps[number].describe()
        own = {"depth": of_map, "depth_model": args.depth_model, "strength": args.strength}
        return {"init_img": pictures[number].describe(), **own}

    return job.make(batches, make, describe)


def read_maps(path: str, pictures: Sequence[input_pictures.Given]) -> list[input_pictures.Given]:
    """Returns one depth map, float32 [h, w], for each picture: the file, or NAME.* or NAME_depth.* in the folder.

    Raises ValueError for a missing map, a file that is not a map, and a map with another aspect ratio than its picture.
    """
    from sdjax.tasks import depth_to_image

    maps: list[input_pictures.Given] = []
    for picture in pictures:
        file = find_map(path, picture.path) if Path(path).is_dir() else Path(path)
        if maps and maps[-1].path == file:
            one = maps[-1]
        else:
            one = input_pictures.read_map(file, "--depth")
        try:
            depth_to_image.check_aspect(one.pixels.shape, picture.pixels.shape[:2])
        except ValueError as error:
            raise ValueError(f"--depth {file}: {error}") from None
        maps.append(one)
    return maps


def find_map(folder: str, picture: Path) -> Path:
    """Returns the depth map of a picture. Raises ValueError unless there is one."""
    from sdjax import pictures

    found = pictures.find_map(picture, folder)
    if found is None:
        raise ValueError(f"{picture}: no depth map is in {folder}; put {picture.stem}_depth.png there")
    return found


def save_maps(
    job: Job, pipe: Any, pictures: Sequence[input_pictures.Given], maps: Sequence[input_pictures.Given] | None
) -> None:
    """Writes one map a picture, in the picture's size, and prints its path."""
    import sdjax
    from sdjax.pictures import image
    from sdjax.tasks import depth_to_image

    folder = job.folder / "depth"
    if maps is not None:
        values = [one.pixels for one in maps]
    else:
        values = sdjax.estimate_depth(
            pipe, [picture.pixels for picture in pictures], devices=job.devices, parallel=job.args.parallel
        )
    for value in values:
        print(image.save_numbered(folder, depth_to_image.to_grey(value)), flush=True)


if __name__ == "__main__":
    sys.exit(main(["depth2img", *sys.argv[1:]]))
