"""`sdjax animate`: an animation between prompts and seeds, or a clip with motion modules."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import (
    input_pictures,
    model_flags,
    noise_flags,
    options,
    previews,
    runtime,
    saving,
    values,
)
from sdjax.scripts.shared.flags import Needs, alone, together
from sdjax.scripts.shared.job import Job, note
from sdjax.scripts.shared.prompts import check_prompts, read_prompts
from sdjax.tasks import recording
from sdjax.tasks.recording import texts

IF_OUT_OF_MEMORY = (
    "a smaller --n_samples (with --motion a smaller --frame-window), smaller --H and --W, --dtype bfloat16"
)

DESCRIPTION = """\
Makes an animation from prompt to prompt, or from seed to seed, and prints its
path. Prompts and seeds are keyframes at equal distances. Give as many prompts as
seeds, or a single prompt or seed for all.

With --motion, AnimateDiff's motion modules make all frames together, as a clip in
which things move. A single prompt and seed are enough."""

EPILOG = f"""\
A frame on a keyframe equals txt2img's picture of its prompt and seed. File
numbers continue from the highest in the folder; nothing is overwritten. Files
hold their settings, as txt2img's pictures do.

{EXIT_STATUS}"""

# The same as in sdjax.tasks.animate and sdjax.pictures.movie, whose import takes a second. A test compares
INTERPOLATIONS = ("linear", "spherical")
FORMATS = ("gif", "apng", "webp", "mp4")
WITH_MOTION = together("--motion")
BETWEEN = alone("--motion")
PROMPTS_DIFFER = Needs(
    lambda args: args.from_file is not None or len(set(args.prompt or ())) > 1 or len(args.at or ()) > 1,
    "with a single prompt: give several different ones, or leave it out",
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax animate`."""
    parser = options.make_command_parser("animate", DESCRIPTION, EPILOG)
    add = parser.add_argument_group("what to make").add_argument
    add("--prompt", action="append", metavar="TEXT", help="prompt of a keyframe; repeat the flag for each")
    add(
        "--at",
        action="append",
        type=prompt_at,
        metavar="N=TEXT",
        needs=alone("--prompt", "--from-file"),
        help="prompt of frame N, counted from 0, such as --at 0='a cat' --at 24='a dog'; repeat the flag for each",
    )
    add("--from-file", metavar="FILE", help="read the prompts from this file, one in each line; - is standard input")
    options.add_negative_flag(add)
    add(
        "--seed",
        type=seeds,
        default=[42],
        metavar="N,...",
        help="one seed for all, or one for each keyframe; default: 42",
    )
    add("--frames", type=values.positive, metavar="N", help="number of frames; default: 48, with --motion 16")
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
        needs=BETWEEN,
        help="share of the steps, the last ones, that use the frame's own prompt; the first ones use the mean of all "
        "prompts; lower makes frames more alike; default: %(default)s",
    )
    add(
        "--n_samples", type=values.positive, default=8, metavar="N", needs=BETWEEN, help="frames in a batch; default: 8"
    )
    add_motion_flags(parser)
    options.add_size_flags(parser, "the model's own")
    options.add_sampling_flags(parser)
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=True)
    model_flags.add_model_flags(parser)
    model_flags.add_reading_flags(parser)
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


def add_motion_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of motion modules, and of what a clip is made from."""
    group = parser.add_argument_group("motion")
    add = group.add_argument
    add(
        "--motion", metavar="FILE", help="AnimateDiff's motion modules, such as mm_sd_v15_v2.ckpt, or diffusers' folder"
    )
    add(
        "--motion-lora",
        action="append",
        metavar="FILE[:WEIGHT]",
        needs=WITH_MOTION,
        help="a motion LoRA, such as v2_lora_ZoomIn.ckpt:0.8; may be repeated",
    )
    add(
        "--frame-window",
        type=values.positive,
        default=16,
        metavar="N",
        needs=WITH_MOTION,
        help="frames that the modules see at a time; a longer clip has overlapping windows; default: %(default)s",
    )
    add(
        "--frame-overlap",
        type=values.natural,
        default=4,
        metavar="N",
        needs=WITH_MOTION,
        help="frames that neighbouring windows share at least; default: %(default)s",
    )
    add(
        "--free-noise",
        action="store_true",
        needs=WITH_MOTION,
        help="give the frames behind the first window the first frames' noise in another order, so that a long clip "
        "stays alike",
    )
    add(
        "--init-img",
        metavar="PATH",
        needs=WITH_MOTION,
        help="start from this picture, or from a folder's pictures, one for each frame",
    )
    add(
        "--strength",
        type=values.strength,
        default=0.75,
        metavar="X",
        needs=together("--init-img"),
        help="how much to change the pictures, from 0 to 1; default: %(default)s",
    )
    options.add_background_flag(group, needs=together("--init-img"))


def prompt_at(text: str) -> tuple[int, str]:
    """Returns the frame's number and the prompt of N=TEXT, for argparse."""
    number, equals, prompt = text.partition("=")
    if not (equals and number.isascii() and number.isdigit() and len(number) < 6):
        raise argparse.ArgumentTypeError(f"it is N=TEXT, the number of a frame and its prompt; got {text!r}")
    return int(number), prompt


def seeds(text: str) -> list[int]:
    """Returns seeds separated by commas, for argparse."""
    return [values.seed(one) for one in text.split(",")]


def run(args: argparse.Namespace) -> None:
    """Makes and writes the animation. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    # Check everything before weights are loaded and hours of work begin
    job = Job(args, "animate")
    if args.prompt is not None and args.from_file is not None:
        raise ValueError("--prompt and --from-file both give prompts; use one of them")
    prompts: Any = read_prompts(args.from_file) if args.from_file is not None else args.prompt or [job.default_prompt]
    if args.at is not None:
        prompts = dict(args.at)
        if len(prompts) < len(args.at):
            raise ValueError("--at gives a frame two prompts; give each frame one")
    import numpy as np

    import sdjax
    from sdjax import errors
    from sdjax.pictures import image, movie
    from sdjax.purpose import check_task
    from sdjax.schedule import NoiseSchedule
    from sdjax.tasks import animate, keyframes, motion
    from sdjax.tasks.resolve import check_size

    check_size(sdjax.ModelConfig("any"), args.H, args.W, windowed=args.window is not None)
    movie.check_fps(args.fps)
    if args.format == "mp4":
        movie.find_ffmpeg()
    given = keyframes.check_keyframes(prompts, args.negative_prompt, args.seed)
    texts_given = given[0]
    frames = args.frames or (animate.FRAMES if args.motion is None else animate.CLIP)
    keyframes.frame_positions(
        len(texts_given), frames, loop=args.loop, numbers=keyframes.numbers_of(prompts),
        fewest=2 if args.motion is None else 1,
    )  # fmt: skip
    moving, clip_options = read_motion(args, frames)

    def check(config: Any) -> None:
        check_task(config, "animate")
        check_size(config, args.H, args.W, windowed=args.window is not None)
        animate.split_steps(job.sampler, NoiseSchedule(config.schedule), args.steps, args.prompt_strength)
        if moving is not None:
            motion.read_file(moving.motion, config)
        if "prompt_strength" in args.given and not PROMPTS_DIFFER.met(args):
            raise ValueError(f"--prompt-strength has no effect {PROMPTS_DIFFER.otherwise}")

    saving.check_outdir(args.outdir)
    pipe = job.load(check)
    check_prompts(pipe, [*texts_given, args.negative_prompt], args)
    with runtime.Progress(1) as progress, runtime.Interrupts() as interrupts:

        def show(done: int, total: int) -> None:
            progress.show(done, total)
            interrupts.check()

        interrupted: KeyboardInterrupt | None = None
        try:
            pixels = sdjax.animate(
                pipe, prompts, seeds=args.seed, frames=frames, loop=args.loop, interpolation=args.interpolation,
                prompt_strength=args.prompt_strength, height=args.H, width=args.W, batch=args.n_samples,
                parallel=args.parallel, split_picture=args.split_picture, devices=job.devices, exact=args.exact,
                progress=show,
                **job.previews.options(), **job.options.for_task([{}]), **noise_of_variation(args), **clip_options,
            )  # fmt: skip
        except KeyboardInterrupt as error:
            # Write an animation of the finished frames
            finished = [frame for frame in getattr(error, "pictures", []) if frame is not None]
            if len(finished) < 2:
                raise
            pixels, interrupted = np.stack(finished), error
            note(f"{len(finished)} of {frames} frames were made")
    shown, safety = job.censor(pixels, [f"frame {number}" for number in range(len(pixels))])
    pixels = np.stack(shown)
    description = {
        "prompt": texts_given[0], "seed": args.seed[0], **job.common, **job.options.describe({}, pipe.config),
        **noise_of_variation(args), "prompts": texts_given, **({"at": sorted(prompts)} if args.at else {}),
        "seeds": args.seed, "frames": frames, "loop": args.loop, "interpolation": args.interpolation, "fps": args.fps,
        "prompt_strength": args.prompt_strength, "height": pixels.shape[1], "width": pixels.shape[2],
        "batch": min(args.n_samples, frames) if moving is None else frames, **describe_motion(args),
        **({"safety": safety} if safety else {}),
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


def read_motion(args: argparse.Namespace, frames: int) -> tuple[Any, dict[str, Any]]:
    """Returns the motion modules of the flags (`sdjax.MotionUse`), None without, and the arguments of `sdjax.animate`.

    Raises ValueError for what no clip has, and for pictures that are not one for all frames or one for each.
    """
    if args.motion is None:
        if "strength_counting" in args.given:
            raise ValueError("--strength-counting has no effect without --init-img: add it, or leave this flag out")
        return None, {}
    import sdjax

    if len(set(args.seed)) > 1:
        raise ValueError("--seed is one number with --motion: frame i starts from the noise of seed + i")
    if args.exact:
        raise ValueError("--exact divides a batch, and --motion makes all frames together: leave --exact out")
    moving = sdjax.MotionUse(
        args.motion, args.motion_lora or (), args.frame_window, args.frame_overlap, args.free_noise
    )  # fmt: skip
    clip: dict[str, Any] = {"motion": moving}
    if args.init_img is not None:
        given = input_pictures.read_pictures(args.init_img, args.background)
        if len(given) not in (1, frames):
            raise ValueError(f"--init-img is one picture, or one for each of {frames} frames; it has {len(given)}")
        clip |= {"image": [one.pixels for one in given], "strength": args.strength}
    return moving, clip


def noise_of_variation(args: argparse.Namespace) -> dict[str, int]:
    """Returns the seed of --variation-seed, if there is a variation."""
    return {"variation_seed": args.variation_seed or 0} if args.variation_strength else {}


def describe_motion(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the recorded settings of a clip."""
    if args.motion is None:
        return {}
    loras = [Path(text).name for text in args.motion_lora or ()]  # without the folder, with the weights
    return {
        "motion": Path(args.motion).name, **({"motion_loras": loras} if loras else {}),
        "frame_window": args.frame_window, "frame_overlap": args.frame_overlap, "free_noise": args.free_noise,
        **({} if args.init_img is None else {"init_img": Path(args.init_img).name, "strength": args.strength}),
    }  # fmt: skip


def save_frames(movie: Path, pixels: Any, description: dict[str, Any]) -> Path:
    """Writes every frame into a new folder and returns it. It has the animation's name, with -frames as ending.

    If a folder of that name exists, a number is added.
    """
    from sdjax.pictures import image

    folder = image.new_folder(movie.with_name(f"{movie.stem}-{movie.suffix[1:]}-frames"))
    for number, frame in enumerate(pixels):
        own = {"safety": description["safety"][number]} if "safety" in description else {}
        text = {"sdjax": recording.to_json({**description, **own, "frame": number})}
        image.save_png(folder / f"{number:05}.png", frame, text)
    return folder


if __name__ == "__main__":
    sys.exit(main(["animate", *sys.argv[1:]]))
