"""`sdjax lora`: makes adapters out of checkpoints and other adapters."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options, values
from sdjax.scripts.shared.flags import Needs

IF_OUT_OF_MEMORY = (
    "close other programs, or use a computer whose memory holds the adapter and a few layers of the model"
)

DESCRIPTION = """\
Makes adapters (LoRA, LoCon) out of checkpoints and other adapters:

  extract A B     an adapter that turns the model A into the model B
  merge FILE ...  the sum of adapters, each FILE or FILE:WEIGHT: exact, with all ranks
                  added up, unless --rank, --energy or --ratio limits them
  resize FILE     the same adapter with a smaller rank
  convert FILE    the same adapter in the names of another tool, its numbers unchanged

The new adapter is written to --out. Nothing is overwritten, and no code of a file
is ever run."""

EPILOG = f"""\
examples:
  sdjax lora extract v1-5.safetensors mine.safetensors --out mine-lora.safetensors --rank 32
  sdjax lora merge style.safetensors:0.8 light.safetensors:-0.3 --out both.safetensors
  sdjax lora resize big.safetensors --energy 0.95 --out small.safetensors
  sdjax lora convert mine.safetensors --to peft --out mine-peft

{EXIT_STATUS}"""

NAMES = ("kohya", "diffusers", "diffusers-old", "peft")  # write_names.LAYOUTS; a test compares them


def _for(*actions: str) -> Needs:
    names = " and ".join(actions)
    return Needs(lambda args: args.action in actions, f"with this action, only with {names}: leave it out")


def _limited(args: argparse.Namespace) -> bool:
    return any(value is not None for value in (args.rank, args.energy, args.ratio))


RANKED, EXTRACTING = _for("extract", "merge", "resize"), _for("extract")
IN_KOHYAS = Needs(lambda args: args.to == "kohya", "with these names, which cannot hold them: use --to kohya")
LIMITED = Needs(_limited, "without --rank, --energy or --ratio: add one of them, or leave this flag out")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax lora`."""
    parser = options.make_command_parser("lora", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("action", choices=("extract", "merge", "resize", "convert"), help="what to do")
    add("files", nargs="+", metavar="FILE", help="the checkpoints or adapters to read; see above")
    add("--out", required=True, metavar="OUT", help="the .safetensors file to write; for --to peft the folder")
    add(
        "--to",
        choices=NAMES,
        default="kohya",
        help="whose names the tensors get; kohya's hold every kind of change and are read by every tool "
        "(default: %(default)s)",
    )
    add(
        "--dtype",
        type=values.dtype,
        choices=options.DTYPES,
        help="the type of the numbers; default: that of the first file; for extract float16",
    )
    add(
        "--ckpt",
        metavar="PATH",
        needs=_for("merge", "resize", "convert"),
        help="the checkpoint of the model that the adapters are for; default: Stable Diffusion 1 or 2, whichever fits",
    )
    add = parser.add_argument_group("ranks").add_argument
    add("--rank", type=values.positive, metavar="N", needs=RANKED, help="the largest rank of a layer")
    add(
        "--energy",
        type=values.share,
        metavar="SHARE",
        needs=RANKED,
        help="as small a rank for each layer as keeps this share of the sum of squared singular values; 0.95 has a "
        "relative error of sqrt(1 - 0.95), 22 percent",
    )
    add(
        "--ratio",
        type=values.finite,
        metavar="X",
        needs=RANKED,
        help="keep singular values that are larger than the layer's largest divided by X",
    )
    add(
        "--conv-rank",
        type=values.positive,
        metavar="N",
        needs=(RANKED, LIMITED),
        help="the largest rank of convolutions larger than 1x1; default: as the others; for extract: leave them out, "
        "unless --energy or --ratio limits them",
    )
    add(
        "--clamp-quantile",
        type=values.share,
        metavar="Q",
        needs=(RANKED, LIMITED),
        help="limit all numbers to this quantile of them, as kohya's tools do with 0.99; default: no limit, which is "
        "more accurate",
    )
    add = parser.add_argument_group("what to extract").add_argument
    add(
        "--targets",
        metavar="REGEX",
        needs=EXTRACTING,
        help='only layers in whose diffusers name this occurs, such as "attn2" or "unet/.*to_[qkv]"; default: all',
    )
    add(
        "--whole",
        action="store_true",
        needs=(EXTRACTING, IN_KOHYAS),
        help="also keep the differences of biases and norms, whole",
    )
    add(
        "--min-difference",
        type=values.finite,
        default=0.01,
        metavar="X",
        needs=EXTRACTING,
        help="leave the text encoder out if none of its numbers differs by more (default: %(default)s, as kohya's)",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        needs=RANKED,
        help="where to compute: cpu, gpu, cuda, rocm or tpu, or one device such as cuda:1; default: the best",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Makes the adapter, writes it and prints its path."""
    from sdjax.convert.adapters.write import WRITING, check_target
    from sdjax.convert.write.outputs import check_not_input, check_output
    from sdjax.scripts.shared import runtime

    counts = {"extract": (2, "two checkpoints, the original and the tuned one"), "resize": (1, "one adapter"),
              "convert": (1, "one adapter")}  # fmt: skip
    wanted, what = counts.get(args.action, (len(args.files), ""))
    if len(args.files) != wanted:
        raise ValueError(f"sdjax lora {args.action} takes {what}; got {len(args.files)} files")
    if args.action in ("extract", "resize") and not _limited(args):
        raise ValueError(f"sdjax lora {args.action} needs --rank, --energy or --ratio, which say how much to keep")
    check_target(args.out, args.to)
    check_not_input(args.out, *args.files)
    if Path(args.out).exists():
        raise FileExistsError(f"{args.out} exists; choose another name")
    check_output(args.out, False, WRITING, folder=args.to == "peft")
    keep, conv_keep = _limits(args)
    devices = runtime.set_up_jax(args.device)
    import jax

    with jax.default_device(devices[0] if devices else None):
        (extract if args.action == "extract" else combine)(args, keep, conv_keep)
    print(args.out)


def _limits(args: argparse.Namespace) -> tuple[Any, Any]:
    """Returns which singular values linear layers and convolutions keep; None if all."""
    from sdjax.adapters.factoring import Truncation

    if not _limited(args):
        return None, None
    by_share = args.energy is not None or args.ratio is not None
    keep = Truncation(args.rank, args.energy, args.ratio)
    conv_rank = args.conv_rank or (args.rank if by_share else None)
    conv_keep = Truncation(conv_rank, args.energy, args.ratio) if conv_rank is not None or by_share else None
    return keep, conv_keep


def extract(args: argparse.Namespace, keep: Any, conv_keep: Any) -> None:
    """Writes the difference of two checkpoints as an adapter."""
    from sdjax.convert import load_model
    from sdjax.convert.adapters.extraction import extract
    from sdjax.convert.adapters.write import write_adapter
    from sdjax.loading import hub
    from sdjax.scripts.shared.job import note, resolve_local

    resolve_local(*args.files)
    original, tuned = (load_model(hub.resolve(path, say=note)) for path in args.files)
    found = extract(
        original, tuned, keep, conv_keep, targets=args.targets, whole=args.whole, clamp_quantile=args.clamp_quantile,
        min_difference=args.min_difference,
    )  # fmt: skip
    for notice in found.notices:
        note(notice)
    _report(found.adapter, found.kept)
    told = {"modelspec.title": Path(args.out).stem, "sdjax.extracted_from": " to ".join(_names(args.files))}
    write_adapter(args.out, found.adapter, tuned.config, to=args.to, dtype=args.dtype or "float16", metadata=told)


def combine(args: argparse.Namespace, keep: Any, conv_keep: Any) -> None:
    """Writes the sum of adapters, one with smaller ranks, or one in other names."""
    from sdjax.adapters.combining import combine
    from sdjax.convert.adapters.write import write_adapter
    from sdjax.convert.names import tables
    from sdjax.scripts.shared.job import note

    weighted = [_weighted(text) if args.action == "merge" else (text, 1.0) for text in args.files]
    _check_distinct([path for path, _ in weighted])
    config, loaded = _load([path for path, _ in weighted], args.ckpt)
    for one in loaded:
        for notice in one.notices:
            note(notice)
    first, adapter = loaded[0], loaded[0].adapter
    metadata, embeddings, dtype = dict(first.metadata), dict(first.embeddings), args.dtype
    if args.action != "convert":
        types = (delta.down.dtype.name for delta in adapter.values() if hasattr(delta, "down"))
        dtype = dtype or next((name for name in types if name in options.DTYPES), None)
        pairs = [(one.adapter, weight) for one, (_, weight) in zip(loaded, weighted)]
        shapes = {parameter.path: parameter.shape for parameter in tables.parameters(config)}
        found = combine(pairs, keep, conv_keep, args.clamp_quantile, shapes)
        adapter = found.adapter
        _report(adapter, found.kept)
        for key in ("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_network_module"):
            metadata.pop(key, None)
    if args.action == "merge":
        names = _names([path for path, _ in weighted])
        recipe = " + ".join(f"{weight:g} * {name}" for name, (_, weight) in zip(names, weighted))
        metadata = {"modelspec.title": Path(args.out).stem, "sdjax.merged_from": recipe}
        embeddings = _embeddings(loaded)
    write_adapter(args.out, adapter, config, to=args.to, dtype=dtype, metadata=metadata, embeddings=embeddings)


def _embeddings(loaded: list[Any]) -> dict[str, Any]:
    """Returns the bundled embeddings of all adapters. Raises ValueError if two have different ones for a word."""
    import numpy as np

    found: dict[str, Any] = {}
    for one in loaded:
        for word, rows in one.embeddings.items():
            if word in found and not np.array_equal(found[word], rows):
                raise ValueError(f"two of the adapters bundle different embeddings for {word!r}; leave one of them out")
            found[word] = rows
    return found


def _names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def _check_distinct(paths: list[str]) -> None:
    """Raises ValueError if a file is given twice."""
    seen: dict[Path, str] = {}
    for path in paths:
        place = Path(path).resolve()
        if place in seen:
            raise ValueError(f"{path} is given twice; give it once, with the sum of its weights")
        seen[place] = path


def _weighted(text: str) -> tuple[str, float]:
    """Returns the file and the weight of FILE or FILE:WEIGHT."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return path, values.finite(weight)
    except (ValueError, argparse.ArgumentTypeError):
        raise ValueError(f"expected FILE or FILE:WEIGHT with a finite number; got {text!r}") from None


def _load(paths: list[str], checkpoint: str | None) -> tuple[Any, list[Any]]:
    """Returns the model's description and the adapters, all of one model."""
    from sdjax.convert import load_adapter, load_model
    from sdjax.convert.adapters.load import load_for_released
    from sdjax.loading import hub

    if checkpoint is not None:
        config = load_model(hub.resolve(checkpoint)).config
        return config, [load_adapter(path, config) for path in paths]
    return load_for_released(*paths)


def _report(adapter: Any, kept: Any) -> None:
    """Prints the ranks and how much of the change they keep."""
    from sdjax.scripts.shared.job import note

    ranks = sorted(int(delta.up.shape[0]) for delta in adapter.values() if hasattr(delta, "up"))
    if not ranks:
        return
    spread = f"rank {ranks[0]}" if ranks[0] == ranks[-1] else f"ranks {ranks[0]} to {ranks[-1]}"
    lost = f"; of a layer's energy at least {min(kept.values()):.1%} is kept" if kept else ""
    note(f"{len(ranks)} layers of {spread}{lost}")


if __name__ == "__main__":
    sys.exit(main(["lora", *sys.argv[1:]]))
