"""`sdjax evaluate-builtin`: how often the built-in model draws what the prompt says, measured from pixels."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import model_flags, options

WRITING = "writing the figures"
IF_OUT_OF_MEMORY = "close other programs"

DESCRIPTION = """\
Measures the built-in model, or another one from `make train-builtin`.
It makes pictures of prompts whose pair of subject and colour was never trained,
and of trained pairs, and reads from the pixels what they show. Prints tables, and
writes all figures as JSON and a picture of samples.

The reader compares the pictures with the emoji, so it needs NotoColorEmoji.ttf
(Debian, Ubuntu: apt install fonts-noto-color-emoji). The default takes a quarter
of an hour on two cores."""

EPILOG = f"""\
The same command, version and device give the same figures.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax evaluate-builtin`."""
    parser = options.make_command_parser("evaluate-builtin", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add(
        "--ckpt",
        metavar="FOLDER",
        help="the model, as sdjax.train.builtin.export writes it; default: the one in the package",
    )
    model_flags.add_quantise_flag(parser)
    add(
        "--prompts",
        type=at_least_four,
        default=200,
        metavar="N",
        help="number of prompts with held-out pairs, at least 4; all other numbers scale with it; default: %(default)s",
    )
    add("--seed", type=small_seed, default=0, metavar="N", help="choice of prompts and noise; default: 0")
    add(
        "--out",
        type=json_file,
        default="outputs/evaluate-builtin.json",
        metavar="FILE.json",
        help="file for the figures; a plot of them goes beside it, FILE.png; both are replaced; default: %(default)s",
    )
    add("--font", metavar="FILE", help="NotoColorEmoji.ttf, if it is not in one of the usual folders")
    add("--device", metavar="NAME", help="cpu, gpu, cuda, rocm or tpu; default: all of the best kind")
    return parser


def run(args: argparse.Namespace) -> None:
    """Evaluates, prints the tables and the paths of the files."""
    import json

    from sdjax.scripts.shared import runtime

    devices = runtime.set_up_jax(args.device)
    import sdjax
    from sdjax.convert.write.outputs import check_output
    from sdjax.loading import hub
    from sdjax.pictures import image
    from sdjax.storage.files import write_file
    from sdjax.train.builtin import emoji, evaluate, report

    emoji.find_font(args.font)  # before the hub is asked for anything
    picture = args.out.with_suffix(".png")
    for path in args.out, picture:
        check_output(path, True, WRITING)
    rendered: list[emoji.Sprites] = []

    def check(config: Any) -> None:
        rendered.append(emoji.Sprites.render(config.image_size, args.font))

    pipe = sdjax.load(None if args.ckpt is None else hub.resolve(args.ckpt), quantise=args.quantise, check=check)
    sprites = rendered[0]
    batch = min(evaluate.BATCH, evaluate.in_curves(args.prompts))
    figures, samples = evaluate.evaluate(
        evaluate.make_pictures(pipe, batch, devices=devices),
        evaluate.through_autoencoder(pipe, batch),
        sprites,
        prompts=args.prompts,
        seed=args.seed,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    figures = describe(pipe, devices, args.quantise) | figures
    text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
    write_file(args.out, text.encode(), overwrite=True, what=WRITING)
    plate = image.encode_png(report.plate(figures, samples))
    write_file(picture, plate, overwrite=True, what=image.WRITING)
    print(report.table(figures))
    print(f"\n{args.out}\n{picture}")


def describe(pipe: Any, devices: Sequence[Any] | None, quantised: str) -> dict[str, Any]:
    """Returns the model, the packages and the devices of the evaluation."""
    import jax

    from sdjax._version import __version__
    from sdjax.tasks import recording

    return {
        "model": recording.fingerprint(pipe.source),
        "guidance_scale": pipe.config.guidance_scale,
        "image_size": pipe.config.image_size,
        "dtype": pipe.dtype,
        "quantised": quantised,
        "versions": {"sdjax": __version__, "jax": jax.__version__},
        "device": (devices or jax.local_devices())[0].device_kind,
    }


def at_least_four(text: str) -> int:
    """Returns a number of prompts, for argparse."""
    value = int(text)
    if value < 4:
        raise argparse.ArgumentTypeError(f"expected a whole number from 4 up; got {text}")
    return value


def small_seed(text: str) -> int:
    """Returns a seed with room for the seeds counted from it, for argparse."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected a seed from 0 to 2**31 - 1; got {text}")
    return value


def json_file(text: str) -> Path:
    """Returns a file's path that ends in .json, for argparse."""
    path = Path(text)
    if path.suffix != ".json":
        raise argparse.ArgumentTypeError(f"expected a file name that ends in .json; got {text}")
    return path


if __name__ == "__main__":
    sys.exit(main(["evaluate-builtin", *sys.argv[1:]]))
