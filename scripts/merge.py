"""`sdjax merge`: mixes checkpoints, and merges adapters into them."""

import argparse
import sys
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options, values
from sdjax.scripts.shared.flags import Needs, together

IF_OUT_OF_MEMORY = "close other programs, or use a computer whose memory holds a few tensors of each model"

METHODS = (  # of sdjax.convert.merge.table; a test compares them
    "weighted_sum", "add_difference", "train_difference", "slerp", "cosine_a", "cosine_b", "task_arithmetic",
    "magnitude_prune", "ties", "dare_linear", "dare_ties",
)  # fmt: skip
TRIMMING = ("magnitude_prune", "ties", "dare_linear", "dare_ties")

DESCRIPTION = """\
Mixes checkpoints of one kind, tensor by tensor from their files, and merges adapters
into them. The models are called A, B, C, ... in the order in which they are named.
Each tensor is computed in float32 and rounded once. The result keeps A's type, its
tokenizer, its noise tables and, unless --vae-from says otherwise, its autoencoder.
Its metadata holds the recipe, which `sdjax reproduce-merge` runs again."""

EPILOG = f"""\
examples:
  sdjax merge a.safetensors b.safetensors --ratio 0.3 --out mix.safetensors
  sdjax merge inpainting.ckpt mine.ckpt v1-5.ckpt --method add_difference --out made.safetensors
  sdjax merge a.safetensors --lora style.safetensors:0.8 --out styled.safetensors

{EXIT_STATUS}"""


def _methods(*names: str) -> Needs:
    return Needs(lambda args: args.method in names, f"without --method {' or '.join(names)}: leave it out")


MIXING = Needs(lambda args: len(args.models) > 1, "with one model: name others, or leave it out")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax merge`."""
    parser = options.make_command_parser("merge", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("models", nargs="+", metavar="FILE", help="the checkpoints, as for --ckpt of txt2img")
    add("--out", required=True, metavar="OUT", help="the .safetensors file or the folder to write")
    group = parser.add_argument_group("how to merge")
    add = group.add_argument
    add("--method", choices=METHODS, default=None, needs=MIXING, help="default: weighted_sum; see docs/merging.md")
    add("--ratio", type=_numbers, needs=MIXING, metavar="R[,R...]", help="the ratio, or with methods for any number of "
        "models one for each after A; default: 0.5 for weighted_sum, slerp and cosine, else 1")  # fmt: skip
    add("--blocks", type=_numbers, needs=MIXING, metavar="N,N,...", help="the ratios of the UNet's blocks: 25 numbers, "
        "IN00 to IN11, M00, OUT00 to OUT11, or 26 with BASE (the text encoder) first")  # fmt: skip
    add("--ratio-of", action="append", type=_pattern, needs=MIXING, metavar="REGEX=R[,R...]", help="the ratio of "
        "tensors in whose names, as single files spell them, this is found; may be repeated")  # fmt: skip
    add("--density", type=float, needs=_methods(*TRIMMING), metavar="D", help="the share of a difference that is kept")
    add("--sign", choices=("total", "frequency"), needs=_methods("ties", "dare_ties"),
        help="which sign wins: that of the sum, or that of most models; default: total")  # fmt: skip
    add("--seed", type=values.seed, needs=_methods("dare_linear", "dare_ties"), metavar="N",
        help="seed of what is drawn; default: 0")  # fmt: skip
    add("--text-from", needs=MIXING, metavar="LETTER", help="take the text encoder of this model; default: merge")
    add("--vae-from", needs=MIXING, metavar="LETTER", help="take the autoencoder of this model, or merge; default: A")
    add("--vae", metavar="PATH", needs=Needs(lambda args: args.vae_from is None, "with --vae-from: leave one out"),
        help="take the autoencoder from this file or folder")  # fmt: skip
    add("--lora", action="append", metavar="FILE[:W[:TEXT W]]", help="merge an adapter into the result, at "
        "this weight (default: 1), and that of its text encoder part; may be repeated")  # fmt: skip
    group = parser.add_argument_group("how to read and write")
    add = group.add_argument
    add("--to", choices=("auto", "native", "ldm", "gguf", "diffusers"), default="auto", help="as for sdjax convert")
    add("--dtype", type=values.dtype, choices=options.DTYPES, help="the type to write; default: A's")
    add("--lossy", action="store_true", needs=together("--dtype"), help="as for sdjax convert")
    add(
        "--ema",
        choices=("auto", "yes", "no"),
        default="auto",
        help="use the averaged weights; default: if there are any",
    )
    add("--prediction", choices=("epsilon", "v", "x0"), help="what the models predict, if they do not say so")
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    """Returns numbers between commas, for argparse."""
    return tuple(values.finite(one) for one in text.split(","))


def _pattern(text: str) -> tuple[str, tuple[float, ...]]:
    """Returns a pattern and its ratios, for argparse."""
    pattern, equals, ratios = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"expected REGEX=RATIO, such as attn2=0.3; got {text}")
    return pattern, _numbers(ratios)


def run(args: argparse.Namespace) -> None:
    """Merges, and prints the path of the result."""
    from sdjax.convert import MergeSettings, merge_models
    from sdjax.loading import hub
    from sdjax.scripts.shared.job import note, resolve_local
    from sdjax.tasks.adapters import split_weights

    method = args.method or ("weighted_sum" if len(args.models) > 1 else None)
    given: dict[str, Any] = {
        "ratios": args.ratio, "blocks": args.blocks, "density": args.density, "sign": args.sign, "seed": args.seed,
        "patterns": tuple(args.ratio_of or ()), "text_from": args.text_from, "vae_from": args.vae_from,
    }  # fmt: skip
    settings = MergeSettings(method, **{name: value for name, value in given.items() if value is not None})
    settings.check_models(len(args.models))
    said: list[str] = []
    for path in (*args.models, args.vae):
        resolve_local(path)
    models = [hub.resolve(path, say=said.append) for path in args.models]
    vae = None if args.vae is None else hub.resolve(args.vae, say=said.append)
    loras = [split_weights(text) for text in args.lora or ()]
    notices = merge_models(
        models, args.out, settings, loras=loras, vae=vae, dtype=args.dtype, to=args.to, ema=args.ema,
        prediction=args.prediction, overwrite=args.overwrite, lossy=args.lossy,
    )  # fmt: skip
    for notice in dict.fromkeys([*said, *notices]):
        note(notice)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
