"""`sdjax convert`: converts a checkpoint to another format, layout or dtype."""

import argparse
import sys

from sdjax.loading.run_layout import is_run
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import model_flags, options, values
from sdjax.scripts.shared.flags import Needs

IF_OUT_OF_MEMORY = "close other programs, or use a computer whose memory holds the model"

DESCRIPTION = """\
Converts a checkpoint without loss. Tensors keep their bytes unless --dtype changes
them; metadata and licence texts are kept. Reads a .ckpt, .safetensors or .gguf file,
a diffusers or an sdjax folder, or a repository of the hub, and never runs code
from a file. --quantise writes fewer bits a weight."""


OF_A_CHECKPOINT = Needs(
    lambda args: not is_run(args.source), "on a training's folder, which describes its model itself: leave it out"
)
OF_A_RUN = Needs(
    lambda args: is_run(args.source),
    "because IN is not a training's folder, the only kind with several checkpoints: leave it out",
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax convert`."""
    parser = options.make_command_parser("convert", DESCRIPTION, EXIT_STATUS)
    parser.add_argument(
        "source", metavar="IN", help="the checkpoint to read, as for --ckpt of txt2img; or a training's folder"
    )
    parser.add_argument("target", metavar="OUT", help="the file (ldm, gguf) or folder (native, diffusers) to write")
    parser.add_argument(
        "--to",
        choices=("auto", "native", "ldm", "gguf", "diffusers"),
        default="auto",
        help="the format to write; auto: ldm if OUT ends in .safetensors, gguf if in .gguf, else native "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--lossy",
        action="store_true",
        help="allow numbers that --dtype cannot hold; they become infinity or zero (otherwise they are an error)",
    )
    parser.add_argument(
        "--dtype", type=values.dtype, choices=options.DTYPES, help="cast the weights (default: no cast)"
    )
    parser.add_argument(
        "--quantise",
        type=str.lower,
        choices=options.QUANTISED,
        help="write the weights of UNet and text encoder in fewer bits: int8 or fp8 to a .safetensors file, the others "
        "to a .gguf file for stable-diffusion.cpp too",
    )
    parser.add_argument(
        "--manifest",
        needs=OF_A_CHECKPOINT,
        metavar="FILE",
        help="also write the SHA-256 of every tensor to this JSON file",
    )
    parser.add_argument(
        "--with-ema-names",
        needs=OF_A_CHECKPOINT,
        action="store_true",
        help="keep both sets of the UNet's weights if there are two; an ldm file then holds the averaged ones under "
        "model_ema. names, as training files do",
    )
    parser.add_argument(
        "--step",
        needs=OF_A_RUN,
        type=int,
        metavar="N",
        help="for a training's folder: the checkpoint of step N; default: the newest",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    model_flags.add_revision_flag(parser, needs=OF_A_CHECKPOINT)
    model_flags.add_reading_flags(parser, needs=OF_A_CHECKPOINT)
    return parser


def run(args: argparse.Namespace) -> None:
    """Converts, and prints the path of the result."""
    from sdjax.convert import convert
    from sdjax.convert.write.outputs import check_not_input
    from sdjax.loading import hub
    from sdjax.scripts.shared.job import note, resolve_local

    check_not_input(args.target, args.source)  # compares names: a source in a bucket is read from a copy
    said: list[str] = []
    resolve_local(args.source, revision=args.revision)
    resolve_local(args.vae)
    args.source = hub.resolve(args.source, args.revision, args.variant, said.append)
    if is_run(args.source):
        return export(args)
    vae = None if args.vae is None else hub.resolve(args.vae, say=said.append)
    report = convert(
        args.source, args.target, to=args.to, dtype=args.dtype, ema=args.ema, vae=vae, prediction=args.prediction,
        config=args.config, variant=args.variant, manifest=args.manifest, overwrite=args.overwrite,
        ema_names=args.with_ema_names, vocab=args.vocab, lossy=args.lossy, quantise=args.quantise,
    )  # fmt: skip
    for notice in dict.fromkeys([*said, *report.notices]):
        note(notice)
    print(args.target)


def export(args: argparse.Namespace) -> None:
    """Writes the model of a training run."""
    from sdjax.convert.write.conversion import kind_for_format
    from sdjax.convert.write.outputs import FILES, WRITING, check_not_input, check_output, layout_of
    from sdjax.convert.write.writing import write_bundle, written_without
    from sdjax.loading.run_folder import trained, trained_words
    from sdjax.scripts.shared.job import note

    layout = layout_of(args.target, args.to)
    kind = None if args.quantise is None else kind_for_format(args.quantise, layout)
    check_not_input(args.target, args.source)
    check_output(args.target, args.overwrite, WRITING, folder=layout not in FILES)
    step, made = trained(args.source, ema=args.ema, step=args.step)
    model = made.cast(args.dtype)
    model = model if kind is None else model.quantised(kind.name)
    write_bundle(model, args.target, layout, overwrite=args.overwrite, lossy=args.lossy)
    for notice in (f"step {step} of the training", *written_without(model, layout, args.dtype)):
        note(notice)
    if words := trained_words(args.source, ema=args.ema, step=args.step):
        note(
            f"written without the words {', '.join(words)}: models have no place for them; {args.source}/embeddings has"
        )
    print(args.target)


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
