"""`sdjax animate`: an animation between prompts and seeds."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options, picture_settings, previews, runtime, saving, values
from sdjax.scripts.shared.flags import Needs
from sdjax.scripts.shared.job import Job, note
from sdjax.scripts.shared.picture_settings import texts
from sdjax.scripts.shared.prompts import check_prompts, read_prompts

IF_OUT_OF_MEMORY = "a smaller --n_samples, smaller --H and --W, --dtype bfloat16"

DESCRIPTION = """\
Makes an animation from prompt to prompt, or from seed to seed, and prints its
path. Prompts and seeds are keyframes at equal distances. Give as many prompts as
seeds, or a single prompt or seed for all."""

EPILOG = f"""\
A frame on a keyframe equals txt2img's picture of its prompt and seed. File
numbers continue from the highest in the folder; nothing is overwritten. Files
hold their settings, as txt2img's pictures do.

{EXIT_STATUS}"""

# The same as in sdjax.tasks.animate and sdjax.pictures.movie, whose import takes a second. A test compares
INTERPOLATIONS = ("linear", "spherical")
FORMATS = ("gif", "apng", "webp", "mp4")
PROMPTS_DIFFER = Needs(
    lambda args: args.from_file is not None or len(set(args.prompt or ())) > 1,
    "with a single prompt: give several different ones, or leave it out",
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax animate`."""
    parser = options.make_command_parser("animate", DESCRIPTION, EPILOG)
    add = parser.add_argument_group("what to make").add_argument
    add("--prompt", action="append", metavar="TEXT", help="prompt of a keyframe; repeat the flag for each")
    add("--from-file", metavar="FILE", help="read the prompts from this file, one in each line; - is standard input")
    options.add_negative_flag(add)
    add(
        "--seed",
        type=seeds,
        default=[42],
        metavar="N,...",
        help="one seed for all, or one for each keyframe; default: 42",
    )
    add("--frames", type=values.positive, default=48, metavar="N", help="number of frames; default: %(default)s")
    add("--loop", action="store_true", help="continue from the last keyframe to the first")
    add(
        "--interpolation",
        choices=INTERPOLATIONS,
        default="linear",
        needs=PROMPTS_DIFFER,
        help="how encoded prompts are mixed (noise is always mixed spherically); default: %(default)s",
    )
    add(
        "--prompt-strength",
        type=values.strength,
        default=1.0,
        metavar="X",
        help="share of the steps, the last ones, that use the frame's own prompt; the first ones use the mean of all "
        "prompts; lower makes frames more alike; default: %(default)s",
    )
    add("--n_samples", type=values.positive, default=8, metavar="N", help="frames in a batch; default: 8")
    options.add_size_flags(parser, "the model's own")
    options.add_sampling_flags(parser)
    options.add_model_flags(parser)
    options.add_reading_flags(parser)
    options.add_device_flags(parser)
    group = parser.add_argument_group("what to write")
    add = group.add_argument
    add("--format", choices=FORMATS, default="gif", help="mp4 needs ffmpeg on the PATH; default: %(default)s")
    add("--fps", type=values.finite, default=12.0, metavar="X", help="frames a second, up to 50; default: 12")
    add(
        "--save_frames", action="store_true", help="also write every frame as a PNG, into a folder beside the animation"
    )
    add(
        "--outdir",
        type=values.folder,
        default="outputs/animations",
        metavar="DIR",
        help="where the animation is written; default: %(default)s",
    )
    previews.add_preview_flags(group)
    options.add_safety_flag(group)
    # Other commands have flags for these
    parser.set_defaults(n_rows=0, skip_save=True, skip_grid=True, watermark=None, own=())
    return parser


def seeds(text: str) -> list[int]:
    """Returns seeds separated by commas, for argparse."""
    return [values.seed(one) for one in text.split(",")]


def run(args: argparse.Namespace) -> None:
    """Makes and writes the animation. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "animate")
    if args.prompt is not None and args.from_file is not None:
        raise ValueError("--prompt and --from-file both give prompts; use one of them")
    prompts = read_prompts(args.from_file) if args.from_file is not None else args.prompt or [job.default_prompt]
    import numpy as np

    import sdjax
    from sdjax import errors
    from sdjax.pictures import image, movie
    from sdjax.purpose import check_task
    from sdjax.schedule import NoiseSchedule
    from sdjax.tasks import animate
    from sdjax.tasks.resolve import check_size

    check_size(sdjax.ModelConfig("any"), args.H, args.W, windowed=args.window is not None)
    movie.check_fps(args.fps)
    if args.format == "mp4":
        movie.find_ffmpeg()
    keyframes = animate.check_keyframes(prompts, args.negative_prompt, args.seed)
    animate.frame_positions(len(keyframes[0]), args.frames, loop=args.loop)

    def check(config: Any) -> None:
        check_task(config, "animate")
        check_size(config, args.H, args.W, windowed=args.window is not None)
        animate.split_steps(job.sampler, NoiseSchedule(config.schedule), args.steps, args.prompt_strength)
        if "prompt_strength" in args.given and not PROMPTS_DIFFER.met(args):
            raise ValueError(f"--prompt-strength has no effect {PROMPTS_DIFFER.otherwise}")

    saving.check_outdir(args.outdir)
    pipe = job.load(check)
    check_prompts(pipe, [*prompts, args.negative_prompt], args)
    with runtime.Progress(1) as progress, runtime.Interrupts() as interrupts:

        def show(done: int, total: int) -> None:
            progress.show(done, total)
            interrupts.check()

        interrupted: KeyboardInterrupt | None = None
        try:
            pixels = sdjax.animate(
                pipe, prompts, seeds=args.seed, frames=args.frames, loop=args.loop, interpolation=args.interpolation,
                prompt_strength=args.prompt_strength, height=args.H, width=args.W, batch=args.n_samples,
                parallel=args.parallel, devices=job.devices, exact=args.exact, progress=show,
                **job.previews.options(), **job.options.for_task([{}]),
            )  # fmt: skip
        except KeyboardInterrupt as error:
            # Write an animation of the finished frames
            finished = [frame for frame in getattr(error, "pictures", []) if frame is not None]
            if len(finished) < 2:
                raise
            pixels, interrupted = np.stack(finished), error
            note(f"{len(finished)} of {args.frames} frames were made")
    shown, safety = job.censor(pixels, [f"frame {number}" for number in range(len(pixels))])
    pixels = np.stack(shown)
    description = {
        "prompt": prompts[0], "seed": args.seed[0], **job.common,
        **job.options.describe({}, pipe.config), "prompts": prompts, "seeds": args.seed,
        "frames": args.frames, "loop": args.loop, "interpolation": args.interpolation, "fps": args.fps,
        "prompt_strength": args.prompt_strength, "height": pixels.shape[1], "width": pixels.shape[2],
        "batch": min(args.n_samples, args.frames), **({"safety": safety} if safety else {}),
    }  # fmt: skip
    kind = args.format
    try:
        data = movie.encode(pixels, kind, fps=args.fps, text=texts(description))
    except OSError as error:
        note(f"{errors.sentence(error)}; the frames are written as APNG")
        kind = "apng"
        data = movie.encode(pixels, kind, fps=args.fps, text=texts(description))
    path = image.save_numbered_file(args.outdir, data, movie.SUFFIXES[kind])
    print(path)
    if args.save_frames:
        print(save_frames(path, pixels, description))
    if interrupted is not None:
        raise interrupted


def save_frames(movie: Path, pixels: Any, description: dict[str, Any]) -> Path:
    """Writes every frame into a new folder and returns it. It has the animation's name, with -frames as ending.

    If a folder of that name exists, a number is added.
    """
    from sdjax.pictures import image

    folder = image.new_folder(movie.with_name(f"{movie.stem}-{movie.suffix[1:]}-frames"))
    for number, frame in enumerate(pixels):
        own = {"safety": description["safety"][number]} if "safety" in description else {}
        text = {"sdjax": picture_settings.to_json({**description, **own, "frame": number})}
        image.save_png(folder / f"{number:05}.png", frame, text)
    return folder


if __name__ == "__main__":
    sys.exit(main(["animate", *sys.argv[1:]]))
