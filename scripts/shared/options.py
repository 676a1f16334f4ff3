"""Flags that the commands share. Imports nothing heavy: every --help reads it."""

import argparse
from collections.abc import Callable

from sdjax.checks.arguments import DTYPES
from sdjax.scripts.shared import flags, large_flags, previews, sampler_flags, values
from sdjax.scripts.shared.flags import Needs, alone
from sdjax.scripts.shared.parser import Parser
from sdjax.scripts.shared.prompt_flags import add_reading_of_prompts

DPM = "dpm_solver"  # the sampler of the references' --dpm_solver and --dpm: DPM-Solver++, multistep, order 2
PROMPT = "a painting of a virus monster playing guitar"
BUILTIN = ("builtin", "builtin-inpainting")  # sdjax.loading.builtin's names; a test compares them
BUILTIN_PROMPT = "a rocket on a green background"  # the built-in model knows no virus monsters
QUANTISED = ("int8", "fp8", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "q4_k")  # what sdjax quantises to
CHECKPOINT = "models/ldm/stable-diffusion-v1/model.ckpt"
WHITE = (255, 255, 255)  # the colour behind transparent pictures
WITHOUT_GUIDANCE = "at guidance scale 1, which means no guidance: leave it out, or choose another --scale"
GUIDED = Needs(lambda args: args.scale != 1 or bool(getattr(args, "guidance", ())), WITHOUT_GUIDANCE)
REPEATS = Needs(
    lambda args: args.from_file is not None,
    "without --from-file, whose lines it repeats; --n_iter repeats a single prompt",
)


def own_settings(args: argparse.Namespace) -> bool:
    """Returns whether pictures may have settings of their own, read later."""
    return any(getattr(args, name, None) is not None for name in ("from_file", "lines", "sweep"))


def make_command_parser(name: str, description: str, epilog: str) -> Parser:
    """Returns a subcommand's parser, with --debug."""
    parser = Parser(
        prog=f"sdjax {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.prepare(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_prompt_flags(
    parser: argparse.ArgumentParser,
    *,
    prompt: str = f'"{PROMPT}" (Stability\'s script has another), with the built-in model "{BUILTIN_PROMPT}"',
    n_iter: int = 2,
    stability_iter: str = " (Stability: 3)",
    n_samples: int = 3,
    folder_samples: int = 4,
    given: bool = False,
) -> None:
    """Adds the flags of prompts, their number and seeds. `given`: whether the command has input pictures."""
    add = parser.add_argument_group("what to make").add_argument
    add("--prompt", metavar="TEXT", help=f"what the picture shows; default: {prompt}")
    add_negative_flag(add)
    add(
        "--from-file",
        metavar="FILE",
        help="read prompts from this file, one in each line, or JSON lines with each picture's settings, such as "
        '{"prompt": "a cat", "steps": 30, "scale": 5}; empty lines are ignored, - is standard input; a batch has '
        "--n_samples of them" + ("; for a folder, line k is the prompt of picture k" if given else ""),
    )
    add(
        "--repeat",
        type=values.positive,
        metavar="N",
        needs=REPEATS,
        help="use every line of --from-file N times; default: 1",
    )
    add(
        "--sweep",
        action="append",
        metavar="NAME=V,V,...",
        help="make a picture for each of these values, such as scale=1.5,3,7.5, sampler=ddim,dpmpp_2m, "
        "steps=10-30(+10) or prompt_replace=cat,dog, all with one seed; given twice or three times, for all "
        "combinations; writes a labelled grid and a CSV table, and computes --n_samples pictures at once",
    )
    add(
        "--n_iter",
        type=values.positive,
        default=n_iter,
        metavar="N",
        help=f"make everything N times, with new seeds; default: %(default)s{stability_iter}, with --sweep 1",
    )
    add(
        "--n_samples",
        type=values.positive,
        default=None if given else n_samples,
        metavar="N",
        help=f"pictures in a batch; default: {n_samples}" + (f", for a folder up to {folder_samples}" if given else ""),
    )
    # `own`: arguments of the task that a line of --from-file may set for its picture. The others are for commands that
    # run this one: lines instead of --from-file, and the number of pictures that are computed together at least
    parser.set_defaults(own=(), lines=None, batch_of=1)
    if given:
        parser.set_defaults(default_samples=(n_samples, folder_samples))
    add("--seed", type=values.seed, default=42, metavar="N", help="seed of the first picture; default: %(default)s")
    add(
        "--fixed_code",
        action="store_true",
        help="use the same seeds in every iteration and every batch of --from-file (in the references only the "
        "starting noise is then the same)",
    )


def add_negative_flag(add: Callable) -> None:
    """Adds the flag of the negative prompt."""
    add(
        "--negative-prompt",
        default="",
        metavar="TEXT",
        needs=GUIDED,
        help="what to steer away from; default: the empty prompt",
    )


def add_size_flags(parser: argparse.ArgumentParser, size: str) -> None:
    """Adds the flags of a picture's height and width. `size` is the default in the help text."""
    add = parser.add_argument_group("size").add_argument
    add("--H", type=int, metavar="PIXELS", help=f"height in pixels, a multiple of 8 from 64 to 2048; default: {size}")
    add("--W", type=int, metavar="PIXELS", help="width, as --H")


def add_picture_flags(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """Adds the flags of the input picture. `aliases` are other names of --init-img."""
    group = parser.add_argument_group("what to make it from")
    group.add_argument(
        "--init-img",
        *aliases,
        dest="init_img",
        required=True,
        metavar="PATH",
        help="a picture (PNG, JPEG or WebP), or a folder of them",
    )
    add_background_flag(group)


def add_background_flag(parser: argparse._ActionsContainer, needs: Needs | tuple[Needs, ...] = ()) -> None:
    """Adds the flag of the colour behind transparent pictures, to a parser or a group."""
    parser.add_argument(
        "--background",
        type=values.colour,
        needs=needs,
        default=WHITE,
        metavar="R,G,B",
        help="the colour behind transparent pictures, levels from 0 to 255; default: 255,255,255, white",
    )


def add_sampling_flags(
    parser: argparse.ArgumentParser,
    references: str = "CompVis: 7.5, Stability: 9",
    *,
    scale: str = "the model's ({})",
    sampler: bool = True,
) -> None:
    """Adds the flags that say how prompts are read and how to sample.

    `references` are the references' guidance scales, `scale` the default one in the help text. `sampler`: whether the
    sampler can be chosen.
    """
    add_reading_of_prompts(parser, named=sampler)  # without a sampler there are no settings of single pictures
    add = parser.add_argument_group("how to sample").add_argument
    add(
        "--steps",
        "--ddim_steps",
        dest="steps",
        type=values.positive,
        default=50,
        metavar="N",
        help="number of steps, exact; default: %(default)s, or what a distilled model needs. (CompVis's DDIM and PLMS "
        "make more if N does not divide 1000: 31 for 30. --sampler-option spacing=compvis counts like them)",
    )
    if sampler:
        add_sampler_flags(add)
    sampler_flags.add_schedule_flags(add)
    add(
        "--scale",
        type=values.finite,
        metavar="X",
        help=f"guidance scale; 1 means no guidance; default: {scale.format(references)}",
    )
    add(
        "--guidance",
        action="append",
        default=[],
        metavar="NAME",
        help="a rule that changes guidance, such as apg, interval or pag; may be repeated, or written apg+interval; "
        "`sdjax guidance` lists them",
    )
    add(
        "--guidance-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        needs=Needs(lambda args: bool(args.guidance), "without --guidance: add it, or leave this flag out"),
        help="set an option of a rule, such as eta=0.5 or apg.eta=0.5; may be repeated",
    )
    add(
        "--weak-ckpt",
        metavar="PATH",
        needs=Needs(
            lambda args: own_settings(args) or any("autoguidance" in name for name in args.guidance),
            "without --guidance autoguidance: add it, or leave this flag out",
        ),
        help="the weaker model of --guidance autoguidance, as for --ckpt",
    )
    add(
        "--guidance-rescale",
        type=values.share,
        default=0.0,
        metavar="X",
        needs=GUIDED,
        help="from 0 to 1: how much of the guided prediction's contrast is brought back to that without guidance, so "
        "that large scales do not burn out; default: %(default)s",
    )
    large_flags.add_large_flags(parser)


def add_sampler_flags(add: Callable) -> None:
    """Adds the flags that choose a sampler and its options."""
    add(
        "--sampler",
        type=sampler_flags.known_sampler,
        metavar="NAME",
        help=f"one of {', '.join(sampler_flags.sampler_names())}, or the name that another tool has for it, such as "
        '"DPM++ 2M Karras", dpmpp_2m or DPMSolverMultistepScheduler (`sdjax samplers` lists them); default: ddim, '
        "or what a distilled model needs",
    )
    add("--plms", action="store_true", help="short for --sampler plms")
    add(
        "--dpm",
        "--dpm_solver",
        dest="dpm",
        action="store_true",
        help=f"short for --sampler {DPM}; overrides --plms, as in the references",
    )
    add(
        "--sampler-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set an option of the sampler, such as end=zero or order=3; may be repeated",
    )
    add(
        "--ddim_eta",
        type=values.finite,
        metavar="X",
        help="new noise in every step: 0 is none, 1 is as much as DDPM; default: the sampler's own, 0 for ddim",
    )


ONE_DEVICE = alone("--low-memory", why=", which computes on one device")


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where and how to compute."""
    add = parser.add_argument_group("where and how to compute").add_argument
    add(
        "--device",
        metavar="NAME",
        help="cpu, gpu, cuda, rocm or tpu, or one device such as cuda:1; default: all of the "
        "best kind (Stability: cpu)",
    )
    add(
        "--parallel",
        choices=("jit", "pmap"),
        default="jit",
        needs=ONE_DEVICE,
        help="spread a batch over the devices with one sharded program, or with jax.pmap; default: %(default)s",
    )
    add(
        "--split-picture",
        type=values.positive,
        default=1,
        metavar="N",
        needs=ONE_DEVICE,
        help="divide each picture over N devices, which have parts of its rows: a picture is finished sooner; "
        "default: %(default)s, whole pictures",
    )
    add(
        "--precision",
        choices=("full", "autocast"),
        default="autocast",
        help="full: float32; autocast: bfloat16 on gpu and tpu, float32 on cpu; default: %(default)s",
    )
    add("--dtype", type=values.dtype, choices=DTYPES, help="compute in this type on every device")
    add(
        "--exact",
        action="store_true",
        help="compute pictures one by one; then they have the same bits alone and in a batch (otherwise they agree to "
        "one level of 255)",
    )
    add(
        "--low-memory",
        action="store_true",
        help="leave the weights in their file and read each layer's when it runs: a picture then needs little memory "
        "and more time (docs/memory.md); computes on one device",
    )


def add_output_flags(parser: argparse.ArgumentParser, outdir: str) -> None:
    """Adds the flags that say what to write, and where."""
    group = parser.add_argument_group("what to write")
    add = group.add_argument
    add(
        "--outdir",
        type=values.folder,
        default=outdir,
        metavar="DIR",
        help="write pictures to DIR/samples and grids to DIR; default: %(default)s",
    )
    add("--skip_save", action="store_true", help="write no single pictures")
    add("--skip_grid", action="store_true", help="write no grid")
    add(
        "--n_rows",
        type=int,
        default=0,
        metavar="N",
        needs=alone("--skip_grid", "--sweep"),
        help="pictures in a row of the grid; default: --n_samples; for a folder, as many as the grid has rows",
    )
    add(
        "--watermark",
        metavar="TEXT",
        needs=Needs(
            lambda args: not (args.skip_save and args.skip_grid),
            "with --skip_save and --skip_grid, because nothing is written: leave one of them out",
        ),
        help="hide this text in every picture and grid of at least 256 x 256 pixels; default: none (CompVis always: "
        "StableDiffusionV1, Stability: SDV2)",
    )
    previews.add_preview_flags(group)
    add_safety_flag(group)


def add_safety_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag of the safety checker, to a parser or a group."""
    parser.add_argument(
        "--safety-checker",
        default="auto",
        metavar="PATH",
        help="replace every picture that this checker flags by a plain notice; a file, a folder or a hub repository, "
        "such as CompVis/stable-diffusion-safety-checker; auto: the checker of a diffusers folder on this computer, if "
        "it has one; off: none; default: %(default)s (CompVis's txt2img: always, Stability: never)",
    )
