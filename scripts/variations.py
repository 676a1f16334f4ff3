"""`sdjax variations`: pictures of what other pictures show, and mixtures of them, by Stable unCLIP."""

import argparse
import math
import sys
from typing import Any

from sdjax.purpose import UNCLIP_LEVELS
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import input_pictures, model_flags, noise_flags, options, values
from sdjax.scripts.shared.flags import alone, together
from sdjax.scripts.shared.job import Job, resolve_local
from sdjax.scripts.shared.made import Made
from sdjax.scripts.shared.prompts import PromptBatch
from sdjax.tasks import recording

IF_OUT_OF_MEMORY = "a smaller --n_samples, smaller --H and --W, --dtype bfloat16, --low-memory"

DESCRIPTION = """\
Makes pictures that show the same things as a picture, or as each of several, and
prints their paths. --weights mixes several pictures into one. --prior needs no
picture: a prior (Karlo's) guesses the embedding of a picture from the prompt.

The model is Stable unCLIP 2.1 (sd21-unclip-h.ckpt, sd21-unclip-l.ckpt). The
defaults are those of Stability-AI/stablediffusion's
scripts/streamlit/stableunclip.py."""

EPILOG = f"""\
Pictures may have any size; CLIP sees them at 224 x 224. Picture k of the run,
counted from 0, uses seed + k. Files are written as by txt2img.

{EXIT_STATUS}"""

PROMPT = "a professional photograph"

# The same as in sdjax.pictures.preprocess and sdjax.tasks.prior, whose import takes a second. A test compares them
DIALECTS = ("ldm", "huggingface")
PRIOR_STEPS, PRIOR_SCALE = 25, 4.0

noise_level = values.noise_level(UNCLIP_LEVELS - 1)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax variations`."""
    parser = options.make_command_parser("variations", DESCRIPTION, EPILOG)
    add_picture_flags(parser)
    add_prior_flags(parser)
    options.add_prompt_flags(
        parser, prompt=f'"{PROMPT}"; needed with --prior', n_iter=2, stability_iter="", n_samples=2,
        given=True,
    )  # fmt: skip
    options.add_size_flags(parser, "the model's own, 768")
    options.add_sampling_flags(parser, "Stability: 10")
    noise_flags.add_noise_flags(parser)
    noise_flags.add_compat_flags(parser, strength=False)
    model_flags.add_model_flags(parser)
    add_part_flags(parser)
    model_flags.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/variations-samples")
    parser.set_defaults(steps=20)
    return parser


def add_picture_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the input pictures and of their embeddings."""
    group = parser.add_argument_group("what to make it from")
    add = group.add_argument
    add(
        "--init-img",
        dest="init_img",
        action="append",
        metavar="PATH",
        help="a picture (PNG, JPEG or WebP), or a folder; may be repeated",
    )
    options.add_background_flag(group, needs=alone("--prior"))
    add(
        "--weights",
        type=weights,
        needs=alone("--prior"),
        metavar="X,...",
        help="mix all pictures into one, with a weight for each; weights may be negative (then write --weights=-1,2)",
    )
    add(
        "--noise_level",
        "--noise-level",
        dest="noise_level",
        type=noise_levels,
        default=[0],
        metavar="N,...",
        help=f"noise on the embedding, from 0 to {UNCLIP_LEVELS - 1}, one for all or one for each picture; more noise "
        "keeps less; default: 0",
    )
    add(
        "--mix-noise-level",
        dest="mix_noise_level",
        type=noise_level,
        metavar="N",
        needs=together("--weights"),
        help="with --weights, also add this much noise to the mixture; default: none",
    )
    add(
        "--clip-preprocess",
        dest="dialect",
        choices=DIALECTS,
        needs=alone("--prior"),
        help="how pictures are prepared for CLIP: ldm squeezes them to a square, as in training; huggingface crops "
        f"them, as diffusers does; default: {DIALECTS[0]}",
    )


def add_prior_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a prior."""
    add = parser.add_argument_group("what to make it from, without a picture").add_argument
    add(
        "--prior",
        metavar="PATH",
        help="a diffusers folder or hub repository with a prior, such as kakaobrain/karlo-v1-alpha, for unCLIP-L",
    )
    of_prior = together("--prior")
    add("--prior-prompt", needs=of_prior, metavar="TEXT", help="another text for the prior; default: the prompt")
    add(
        "--prior-steps",
        needs=of_prior,
        type=values.positive,
        metavar="N",
        help=f"steps of the prior; default: {PRIOR_STEPS}",
    )
    add(
        "--prior-scale",
        needs=of_prior,
        type=values.finite,
        metavar="X",
        help=f"guidance scale of the prior; default: {PRIOR_SCALE}",
    )


def add_part_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of parts that a checkpoint may lack."""
    add = parser.add_argument_group("what the checkpoint may lack").add_argument
    add(
        "--vision",
        metavar="PATH",
        needs=alone("--prior"),
        help="take CLIP's image tower from this file, folder or hub repository, such as openai/clip-vit-large-patch14",
    )
    add(
        "--noise-stats",
        metavar="PATH",
        help="take mean and standard deviation of the embeddings from this file or folder, such as Stability's "
        "ViT-L-14_stats.th",
    )


def weights(text: str) -> list[float]:
    """Returns numbers separated by commas whose sum is not 0, for argparse."""
    values = [float(one) for one in text.split(",")]
    if not all(map(math.isfinite, values)) or not sum(values):
        raise argparse.ArgumentTypeError(f"expected finite numbers whose sum is not 0, such as 1,0.5; got {text}")
    return values


def noise_levels(text: str) -> list[int]:
    """Returns noise levels separated by commas, for argparse."""
    return [noise_level(one) for one in text.split(",")]


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises as the other commands do."""
    # Check everything before weights are loaded and hours of work begin
    check_flags(args)
    job = Job(args, "variations")
    if job.checkpoint is None:
        raise ValueError("no unCLIP model is named: give its checkpoint with --ckpt (the built-in model is not one)")
    import sdjax
    from sdjax.tasks.resolve import check_size

    check_size(sdjax.ModelConfig("any"), args.H, args.W, windowed=args.window is not None)
    resolve_local(args.prior, args.vision, args.noise_stats)
    return (vary if args.prior is None else imagine)(args, job)


def check_flags(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that contradict each other."""
    if (args.init_img is None) == (args.prior is None):
        got = "neither" if args.prior is None else "both"
        raise ValueError(f"give either --init-img (pictures) or --prior (a text alone); got {got}")
    if args.prior is not None and args.prompt is None and args.from_file is None:
        raise ValueError("--prior needs a text: give it with --prompt or --from-file")


def vary(args: argparse.Namespace, job: Job) -> Made:
    """Makes pictures of pictures."""
    pictures = [picture for path in args.init_img for picture in input_pictures.read_pictures(path, args.background)]
    if args.weights is not None and len(args.weights) != len(pictures):
        raise ValueError(f"--weights needs one for each of the {len(pictures)} pictures; got {len(args.weights)}")
    levels = args.noise_level * (len(pictures) if len(args.noise_level) == 1 else 1)
    if len(levels) != len(pictures):
        raise ValueError(
            f"--noise_level needs one for all or one for each of the {len(pictures)} pictures; got {len(levels)}"
        )
    batches = job.make_batches(PROMPT, len(pictures) if args.weights is None else 1)
    import sdjax
    from sdjax.purpose import check_task
    from sdjax.tasks import variations

    if args.weights is not None:
        variations.check_weights(args.weights, len(pictures))

    def check(config: Any) -> None:
        check_task(config, "variations", "unclip")
        if config.vision is None:
            raise ValueError(f"{variations.WITHOUT}: give one with --vision")

    pipe = job.load(check, vision=args.vision, noise_stats=args.noise_stats)
    how, of_parts = {"dialect": args.dialect or DIALECTS[0]}, describe_parts(args)

    def make(batch: PromptBatch, **shared: Any) -> Any:
        which = batch.inputs if args.weights is None and len(pictures) > 1 else range(len(pictures))
        own = {"noise_level": [levels[number] for number in which], "height": args.H, "width": args.W, **how}
        if args.weights is not None:
            own |= {"weights": args.weights, "mix_noise_level": args.mix_noise_level}
        chosen = [pictures[number].pixels for number in which]
        return sdjax.image_variations(pipe, chosen, batch.prompts, **own, **shared)

    def describe(number: int) -> dict[str, Any]:
        if args.weights is None:
            return {"init_img": pictures[number].describe(), "noise_level": levels[number], **of_parts, **how}
        mixed = [
            {"init_img": picture.describe(), "weight": weight, "noise_level": level}
            for picture, weight, level in zip(pictures, args.weights, levels, strict=True)
        ]
        return {"mixed": mixed, "mix_noise_level": args.mix_noise_level, **of_parts, **how}

    return job.make(batches, make, describe)


def imagine(args: argparse.Namespace, job: Job) -> Made:
    """Makes pictures of texts, by way of a prior."""
    batches = job.make_batches(PROMPT)
    import sdjax
    from sdjax.purpose import check_task
    from sdjax.tasks import prior, variations

    (level,) = variations.check_levels(args.noise_level if len(args.noise_level) > 1 else args.noise_level[0], 1)
    steps = PRIOR_STEPS if args.prior_steps is None else args.prior_steps
    prior.make_rows(sdjax.PriorConfig(), steps)
    how = {
        "prior_prompt": args.prior_prompt,
        "prior_steps": steps,
        "prior_scale": PRIOR_SCALE if args.prior_scale is None else args.prior_scale,
        "noise_level": level,
    }
    loaded: list[Any] = []

    def check(config: Any) -> None:
        check_task(config, "variations", "unclip")
        loaded.append(sdjax.Prior.load(args.prior, dtype=job.dtype))  # after the check of the model
        variations.check_prior(config, loaded[0].config)

    pipe = job.load(check, noise_stats=args.noise_stats)
    of_parts = describe_parts(args)

    def make(batch: PromptBatch, **shared: Any) -> Any:
        sizes = {"height": args.H, "width": args.W}
        return sdjax.prior_to_image(pipe, loaded[0], batch.prompts, **how, **sizes, **shared)

    return job.make(batches, make, lambda _: {**of_parts, **how})


def describe_parts(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the identities of the parts that are not from the checkpoint."""
    from sdjax.loading import hub

    parts = {"prior": args.prior, "vision": args.vision, "noise_stats": args.noise_stats}
    return {name: recording.describe_model(path, hub.resolve(path)) for name, path in parts.items() if path is not None}


if __name__ == "__main__":
    sys.exit(main(["variations", *sys.argv[1:]]))
