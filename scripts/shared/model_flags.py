"""The flags that choose a checkpoint and say how it is read. Imports nothing heavy: every --help reads it."""

import argparse
from pathlib import Path

from sdjax.scripts.shared import options
from sdjax.scripts.shared.flags import Needs

ONE_OF_OUR_OWN = Needs(
    lambda args: args.ckpt not in options.BUILTIN and (args.ckpt is not None or Path(options.CHECKPOINT).is_file()),
    "on the built-in model, which has one set of files: name another model with --ckpt, or leave it out",
)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which checkpoint to use."""
    group = parser.add_argument_group("the model")
    add = group.add_argument
    add(
        "--ckpt",
        metavar="PATH",
        help="a .ckpt, .safetensors or .gguf file, a diffusers or sdjax folder, or a repository of the Hugging Face "
        f"hub, owner/name or owner/name/FILE; default: {options.CHECKPOINT} if it exists, as in CompVis's script, else "
        "the small built-in model, builtin (for inpaint builtin-inpainting, unless --method is blend), which draws "
        "emoji on plain backgrounds",
    )
    add_revision_flag(group)
    add("--C", type=int, metavar="N", help="channels of the latent; only checked against the model (references: 4)")
    add(
        "--f",
        type=int,
        metavar="N",
        help="pixels for each entry of the latent; only checked against the model (references: 8)",
    )
    add_quantise_flag(group)


def add_place_argument(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, with --revision and --variant: a checkpoint that is named without a flag. `place` reads them."""
    parser.add_argument(
        "path", metavar="MODEL", help="the checkpoint, as for --ckpt of txt2img; builtin: the small one"
    )
    add_revision_flag(parser)
    add_variant_flag(parser)


def place(args: argparse.Namespace) -> str | Path:
    """Returns the model's place on this computer, or a name of the built-in models. Raises as `hub.resolve`."""
    from sdjax.loading import hub
    from sdjax.scripts.shared.job import note

    if args.path in options.BUILTIN:
        return str(args.path)
    return hub.resolve(args.path, args.revision, args.variant, note)


def add_quantise_flag(parser: argparse._ActionsContainer) -> None:
    """Adds the flag that holds a loaded model in fewer bits, to a parser or a group."""
    parser.add_argument(
        "--quantise",
        type=str.lower,
        choices=("auto", "no", *options.QUANTISED),
        default="auto",
        help="hold the weights of UNet and text encoder in fewer bits: half the memory of bfloat16 for int8, fp8 and "
        "q8_0, a third for the others; no: in --dtype; default: as in the file",
    )


def add_reading_flags(parser: argparse.ArgumentParser, *, needs: Needs | None = None) -> None:
    """Adds the flags that say how a checkpoint is read; all but --ema have the condition `needs`."""
    group = parser.add_argument_group("how the checkpoint is read")
    add_variant_flag(group, needs=ONE_OF_OUR_OWN if needs is None else needs)
    condition: Needs | tuple[Needs, ...] = needs or ()
    add = group.add_argument
    add(
        "--config",
        needs=condition,
        metavar="FILE",
        help="the model's original ldm YAML, or a name from sdjax.configs; default: found from the checkpoint (each of "
        "the references' defaults fits one model)",
    )
    add(
        "--prediction",
        needs=condition,
        choices=("epsilon", "v", "x0"),
        help="what the network predicts, if neither the checkpoint nor a config says so",
    )
    add(
        "--ema",
        choices=("auto", "yes", "no"),
        default="auto",
        help="use the averaged weights; auto: if the checkpoint has them; default: "
        "%(default)s (references' configs: no)",
    )
    add(
        "--vae",
        needs=condition,
        metavar="PATH",
        help="take the autoencoder from this file, folder or hub repository, such as stabilityai/sd-vae-ft-mse",
    )
    add(
        "--vocab",
        needs=condition,
        metavar="FILE",
        help="the vocab.txt of bert-base-uncased; the LAION-400M model needs it, and its checkpoint lacks it",
    )


def add_revision_flag(parser: argparse._ActionsContainer, needs: Needs | tuple[Needs, ...] = ()) -> None:
    """Adds the flag that chooses among a repository's revisions, to a parser or a group."""
    parser.add_argument(
        "--revision", metavar="NAME", needs=needs, help="branch, tag or commit of a hub repository; default: main"
    )


def add_variant_flag(parser: argparse._ActionsContainer, needs: Needs | tuple[Needs, ...] = ()) -> None:
    """Adds the flag that chooses among a folder's sets of weights, to a parser or a group."""
    parser.add_argument(
        "--variant", metavar="NAME", needs=needs, help="variant of a diffusers folder's files, such as fp16"
    )
