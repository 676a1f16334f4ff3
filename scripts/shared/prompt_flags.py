"""The flags that say how prompts are read. Imports nothing heavy: every --help reads it."""

import argparse
from collections.abc import Sequence
from typing import Any

from sdjax.scripts.shared import control_flags, mixture_flags, reference_flags, values
from sdjax.scripts.shared.flags import Needs, together

# The names of sdjax.prompts.language, emphasis and padding, repeated because importing them is slow. A test compares.
SYNTAXES = ("weights", "comfyui", "plain")
EMPHASES = ("original", "no_norm", "ignore", "none", "comfyui", "compel")
ALPHAS_0 = ("none", "rank")  # sdjax.convert.adapters.load.Alpha0
DORAS = ("linear", "trainer")  # sdjax.convert.adapters.kinds.Dora
PADDINGS = ("lengths", "a1111", "a1111_empty", "a1111_v0", "comfyui")
STYLED = Needs(lambda args: bool(args.styles), "without --style: add it, or leave this flag out")
FIELDS = (
    "prompt_syntax", "emphasis", "comma_backtrack", "old_prompt_editing", "clip_skip", "pad_contexts",
    "styles", "styles_file", "wildcards", "wildcard_seed",
    "lora_dir", "alpha_0", "dora", "merge", "word_embeddings", "embedding_dir", "hypernetworks", "hypernetwork_dir",
    "image_prompts", "controls", "regions", "references", "style_aligned",
)  # fmt: skip


def add_reading_of_prompts(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """Adds the flags that say how prompts are read. `named`: single pictures may name controls and image prompts."""
    add = parser.add_argument_group("how prompts are read").add_argument
    add_syntax_flags(add)
    add(
        "--clip-skip",
        type=clip_skip,
        metavar="N",
        help="which block of the text encoder is used: 1 (the last), 2, ... as AUTOMATIC1111 counts, -1, -2, ... as "
        "ComfyUI counts, or diffusers:1; default: the model's own",
    )
    add(
        "--pad-contexts",
        choices=PADDINGS,
        metavar="NAME",
        help=f"make prompts of unequal length equal as another tool does: {', '.join(PADDINGS)}; default: lengths, "
        "which pads nothing",
    )
    add_choice_flags(add)
    mixture_flags.add_mixture_flags(parser)
    add_files_of_prompts(parser)
    add_image_prompt_flags(parser, named=named)
    control_flags.add_control_flags(parser, named=named)
    add_region_flag(parser)
    reference_flags.add_reference_flags(parser)


def add_files_of_prompts(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of adapters, embeddings and hypernetworks."""
    add_adapter_flags(parser)
    add = parser.add_argument_group("embeddings and hypernetworks").add_argument
    add_embedding_flags(add)
    add_hypernetwork_flags(add)


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of adapters."""
    add = parser.add_argument_group("LoRA and its relatives").add_argument
    add_merged_adapters(add)
    add(
        "--lora-dir",
        metavar="DIR",
        help="a folder of such files: <lora:name:0.8> in a prompt applies DIR/name.safetensors to that picture",
    )
    add_reading_of_adapters(add)


def add_merged_adapters(add: Any) -> None:
    """Adds the flag of adapters that are merged into the model."""
    add(
        "--lora",
        action="append",
        metavar="FILE[:WEIGHT[:TEXT WEIGHT]]",
        help="merge this LoRA, or another kind of adapter, into the model for all pictures; may be repeated; without "
        "weights 1; the text encoder's weight is the UNet's unless given",
    )


def add_reading_of_adapters(add: Any) -> None:
    """Adds the flags that say what files of adapters mean."""
    add(
        "--alpha-0",
        choices=ALPHAS_0,
        metavar="NAME",
        needs=together("--lora", "--lora-dir"),
        help="what an alpha of 0 in a LoRA means: none, no change, as in AUTOMATIC1111 and ComfyUI; rank, a scale of "
        "1, as where LyCORIS or sd-scripts trained it; default: none",
    )
    add(
        "--dora",
        choices=DORAS,
        metavar="NAME",
        needs=together("--lora", "--lora-dir"),
        help="what DoRA does at weights other than 1: linear, that part of its change; trainer, as PEFT or LyCORIS "
        "compute it, where it was trained; default: linear, with --compat diffusers trainer",
    )


def add_embedding_flags(add: Any) -> None:
    """Adds the flags of embeddings (textual inversion)."""
    add(
        "--embedding",
        dest="word_embeddings",
        action="append",
        metavar="[WORD=]FILE",
        help="the vectors of a word (textual inversion): .pt, .bin, .safetensors, or a PNG card; the word is the "
        "file's name without its ending unless given; may be repeated",
    )
    add(
        "--embedding-dir",
        metavar="DIR",
        help="a folder of such files: their names are words of prompts, in ComfyUI's syntax embedding:name",
    )


def add_hypernetwork_flags(add: Any) -> None:
    """Adds the flags of hypernetworks."""
    add(
        "--hypernetwork",
        dest="hypernetworks",
        action="append",
        metavar="FILE[:STRENGTH]",
        help="apply this hypernetwork of AUTOMATIC1111's web UI; may be repeated; without a strength 1",
    )
    add(
        "--hypernetwork-dir",
        metavar="DIR",
        help="a folder of such files: <hypernet:name:0.5> in a prompt applies DIR/name.pt to that picture",
    )


def add_image_prompt_flags(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """Adds the flags of image prompts. `named`: also that of a folder whose files pictures name."""
    add = parser.add_argument_group("pictures beside the prompt").add_argument
    add(
        "--image-prompt",
        dest="image_prompts",
        action="append",
        metavar="ADAPTER,image=FILE[,KEY=VALUE...]",
        help="follow this picture beside the prompt, through an IP-Adapter's file; keys: image (again for several), "
        "weight (default 1), start and end (shares of the steps), blocks (style, composition, or weights with / "
        "between), mask, negative (pictures), embedding (.npy in place of image), encoder (image encoder; default: the "
        "folder image_encoder near the adapter); may be repeated",
    )
    if not named:
        return
    add(
        "--image-prompt-dir",
        metavar="DIR",
        needs=control_flags.OF_PICTURES,
        help="a folder of adapters and pictures: a line of --from-file, such as "
        '{"image_prompt": "ip-adapter_sd15,image=cat.png"}, and --sweep name files in it',
    )


def add_region_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of regional prompts."""
    parser.add_argument_group("parts of the picture").add_argument(
        "--region",
        dest="regions",
        action="append",
        metavar="PLACE[:WEIGHT]=PROMPT[ ### NEGATIVE]",
        help="a prompt for a part of the picture; PLACE is x,y,width,height in shares of the picture (in pixels if one "
        "is above 1), or a mask's file, white inside; WEIGHT: default 1; NEGATIVE: default the picture's; "
        "<lora:name:0.8> from --lora-dir works in this part only; may be repeated",
    )


def add_choice_flags(add: Any) -> None:
    """Adds the flags of styles and random choices."""
    add(
        "--style",
        dest="styles",
        action="append",
        metavar="NAME",
        help="add this style to the prompt and the negative prompt; may be repeated",
    )
    add(
        "--styles-file",
        metavar="FILE",
        needs=STYLED,
        help="the table of styles, as AUTOMATIC1111's; default: styles.csv",
    )
    add("--wildcards", metavar="DIR", help="a folder of text files: __name__ in a prompt is a line of DIR/name.txt")
    add(
        "--wildcard-seed",
        type=values.seed,
        metavar="N",
        help="seed of the choices in {a|b} and __name__; default: each picture's own seed",
    )


def add_syntax_flags(add: Any) -> None:
    """Adds the flags of syntax and emphasis."""
    add(
        "--prompt-syntax",
        choices=SYNTAXES,
        metavar="NAME",
        help="weights: AUTOMATIC1111's (word:1.3), [from:to:when], AND, BREAK, in chunks of 75 tokens; comfyui: "
        "ComfyUI's; plain: the text as it stands, cut at 75 tokens; default: weights",
    )
    add(
        "--emphasis",
        choices=EMPHASES,
        metavar="NAME",
        help=f"what weights do: {', '.join(EMPHASES)}; default: original, with --prompt-syntax comfyui comfyui",
    )
    add(
        "--comma-backtrack",
        type=values.natural,
        metavar="N",
        help="a prompt of several chunks is cut at a comma, if it is among the last N tokens of a chunk; 0 ignores "
        "commas; default: 20, as in AUTOMATIC1111",
    )
    add(
        "--old-prompt-editing",
        action="store_true",
        help="count the steps of [from:to:when] as AUTOMATIC1111 did before version 1.6: a number below 1 is a share "
        "of the steps, and a second pass counts from the start",
    )


def clip_skip(text: str) -> int | str:
    """Returns a clip skip, for argparse."""
    from sdjax.prompts.clip_skip import read_clip_skip

    try:
        value: int | str = int(text)
    except ValueError:
        value = text
    try:
        read_clip_skip(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


def prompting(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of `Request` that the flags set."""
    several = "styles", "word_embeddings", "hypernetworks", "image_prompts", "controls", "regions", "references"
    lists = {name: tuple(getattr(args, name, None) or ()) for name in several}
    return {name: getattr(args, name, None) for name in FIELDS} | lists  # not every command has all flags


def words_used(args: argparse.Namespace, prompts: Sequence[str], config: Any, syntax: str | None) -> Sequence[Any]:
    """Returns the embeddings of the flags whose words stand in prompts, for a model of this description or any."""
    if not args.word_embeddings and args.embedding_dir is None:
        return ()
    from sdjax.tasks.embeddings import embeddings_in

    return embeddings_in(prompts, args.word_embeddings or (), args.embedding_dir, (), config, syntax or "weights")


def check_prompting(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that contradict each other, and for styles and wildcards that cannot be read."""
    from sdjax.prompts.styles import NAME, choose_styles
    from sdjax.prompts.wildcards import Wildcards

    language(args)
    choose_styles(args.styles or [], args.styles_file or NAME)
    if args.wildcards is not None:
        Wildcards(args.wildcards)
    control_flags.check_files(getattr(args, "controls", None) or ())
    reference_flags.check_files(getattr(args, "references", None) or ())


def language(args: argparse.Namespace) -> Any:
    """Returns how prompts are read (`sdjax.prompts.language.Language`)."""
    from sdjax.prompts.language import Language

    usual, tool = "weights", getattr(args, "compat", None)
    if tool is not None:
        from sdjax.tasks.compat import profile_of

        usual = profile_of(tool).prompt_syntax
    return Language(args.prompt_syntax or usual, args.emphasis, args.comma_backtrack, args.old_prompt_editing)
