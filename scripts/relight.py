"""`sdjax relight`: changes the light on what a picture shows, with IC-Light."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, model_flags, noise_flags, options, values
from sdjax.scripts.shared.flags import Needs
from sdjax.scripts.shared.job import Job, note
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch
from sdjax.tasks import recording

IF_OUT_OF_MEMORY = "a smaller --n_samples, smaller --H and --W, a smaller --enlarge, --dtype bfloat16, --low-memory"
SIDES = ("left", "right", "top", "bottom")
UNLIT = Needs(lambda args: args.light == "none", "with --light: leave one of them out")
LIT = Needs(lambda args: args.light != "none", "without --light: leave it out")
TWO_PASSES = Needs(lambda args: args.enlarge > 1, "without --enlarge: leave it out")

DESCRIPTION = """\
Changes the light on what a picture (or each picture of a folder) shows, such as
--prompt "sunshine from window", and prints the paths of the results.

Works with IC-Light: --ckpt names a Stable Diffusion 1.5 model, and --widen
IC-Light's file, which is added to it. iclight_sd15_fc.safetensors draws the
background too; iclight_sd15_fbc.safetensors takes one, --backdrop."""

EPILOG = f"""\
Parts of the picture that are transparent, or black in the mask, are not what is
lit. Without transparency and mask it is the whole picture. Picture k of the run,
counted from 0, uses seed + k. Without --H and --W the picture is resized
(LANCZOS) to sides rounded down to multiples of 64. Files are written as by
txt2img. IC-Light's demo makes 25 steps of dpmpp_2m_sde with the schedule karras,
and enlarges 1.5 times.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax relight`."""
    parser = options.make_command_parser("relight", DESCRIPTION, EPILOG)
    group = parser.add_argument_group("what to make it from")
    add = group.add_argument
    add(
        "--init-img",
        dest="init_img",
        required=True,
        metavar="PATH",
        help="a picture (PNG, JPEG or WebP), or a folder of them",
    )
    add(
        "--mask",
        metavar="PATH",
        help="a mask for all pictures, of their size, white for what is lit; or a folder of masks with the pictures' "
        "names or NAME_mask.png; default: the pictures' transparency",
    )
    add("--widen", metavar="FILE", help="IC-Light's file; default: --ckpt is a whole model of this kind")
    options.add_prompt_flags(parser, n_iter=1, stability_iter="", n_samples=2, given=True)
    add = parser.add_argument_group("which light").add_argument
    add(
        "--light",
        choices=("none", *SIDES),
        default="none",
        help="the side that the light comes from, for a model that takes a foreground alone; default: %(default)s",
    )
    add(
        "--strength",
        type=values.strength,
        metavar="X",
        default=0.9,
        needs=LIT,
        help="how much to change the gradient of --light, from 0 to 1; default: %(default)s",
    )
    add(
        "--backdrop",
        metavar="PATH",
        needs=UNLIT,
        help="the background: a picture, or grey, left, right, top or bottom, which are plain or bright on one side",
    )
    add(
        "--enlarge",
        type=values.finite,
        default=1.0,
        metavar="X",
        help="make the picture, enlarge it X times, and make it again from that; default: one pass",
    )
    add(
        "--hires-strength",
        type=values.strength,
        metavar="X",
        default=0.5,
        needs=TWO_PASSES,
        help="how much the second pass changes, from 0 to 1; default: %(default)s",
    )
    options.add_size_flags(parser, "the picture's own side, rounded down to a multiple of 64")
    options.add_sampling_flags(parser, "IC-Light: 2, and 7 with --backdrop")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=True)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/relight-samples")
    parser.set_defaults(own=("strength",))
    return parser


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "relight")
    pictures = input_pictures.read_foregrounds(args.init_img)
    masks = None if args.mask is None else input_pictures.read_masks(args.mask, pictures)
    batches = job.make_batches(job.default_prompt, len(pictures))
    import sdjax
    from sdjax.loading import hub
    from sdjax.tasks import inputs, relight

    if args.enlarge < 1:
        raise ValueError(f"--enlarge is at least 1; got {args.enlarge:g}")
    if masks is None and not any("transparency" in notice for one in pictures for notice in one.notices):
        note(f"{args.init_img} is opaque and there is no --mask: all of it is lit, and no background is drawn")
    behind: Any = args.backdrop
    if behind is not None and behind not in relight.BACKDROPS:
        behind = input_pictures.read_picture(Path(behind), "--backdrop")
    for picture in pictures:
        size = picture.pixels.shape[:2]
        inputs.working_size(sdjax.ModelConfig("any"), size, args.H, args.W, windowed=args.window is not None)
    widen = None if args.widen is None else hub.resolve(args.widen)
    pipe = job.load(lambda config: relight.check_relight(config, behind is not None, args.light), widen=widen)
    strengths = {"strength": args.strength, "hires_strength": args.hires_strength}

    def make(batch: PromptBatch, **shared: Any) -> Any:
        chosen = [pictures[number].pixels for number in batch.inputs]
        covers = None if masks is None else [masks[number].pixels for number in batch.inputs]
        drop = behind if behind is None or isinstance(behind, str) else behind.pixels
        own = {"height": args.H, "width": args.W, "light": args.light, "enlarge": args.enlarge, **strengths}
        return sdjax.relight(pipe, chosen, batch.prompts, mask=covers, backdrop=drop, **{**own, **shared})

    def describe(number: int) -> dict[str, Any]:
        own: dict[str, Any] = {"init_img": pictures[number].describe()}
        own |= {} if masks is None else {"mask": masks[number].describe()}
        own |= {} if widen is None else {"widen": recording.describe_model(args.widen, widen)}
        if args.light != "none":
            own |= {"light": args.light, "strength": strengths["strength"]}
        if isinstance(behind, str):
            own["backdrop_name"] = behind
        elif behind is not None:
            own["backdrop"] = behind.describe()
        if args.enlarge > 1:
            own |= {"enlarge": args.enlarge, "hires_strength": strengths["hires_strength"]}
        return own

    return job.make(batches, make, describe)


if __name__ == "__main__":
    sys.exit(main(["relight", *sys.argv[1:]]))
