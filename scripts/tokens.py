"""`sdjax tokens`: shows how a prompt is read, without a model and without JAX."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

try:
    from sdjax.scripts.main import EXIT_STATUS, main
except ImportError as error:
    sys.exit(f"sdjax must be installed first, by `make run` or `pip install .` in its folder ({error})")

from sdjax.scripts.shared import options, prompt_flags, values
from sdjax.tasks import describing

IF_OUT_OF_MEMORY = "a shorter prompt"

DESCRIPTION = """\
Shows how a prompt is read: its random choices, the prompts that AND joins, the
texts that change while sampling, and their chunks of 75 tokens with the weight of
each token, and what is cut off."""

EPILOG = f"""\
A line of a chunk has the weight and the tokens of this weight, separated by |.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax tokens`."""
    parser = options.make_command_parser("tokens", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("prompt", metavar="TEXT", help="the prompt; - reads standard input")
    add(
        "--steps",
        type=values.positive,
        default=50,
        metavar="N",
        help="number of steps that [from:to:when] counts; default: %(default)s",
    )
    add("--seed", type=values.seed, default=42, metavar="N", help="seed of the picture; default: %(default)s")
    add(
        "--tokenizer",
        metavar="DIR",
        help="a diffusers or transformers folder with a tokenizer; default: CLIP's",
    )
    add("--json", action="store_true", help="print JSON, with the token ids")
    prompt_flags.add_syntax_flags(add)
    prompt_flags.add_choice_flags(add)
    prompt_flags.add_embedding_flags(add)
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints how the prompt is read."""
    from sdjax.prompts.added_words import AddedWords
    from sdjax.prompts.chunks import Encoder
    from sdjax.prompts.tokenizer import Tokenizer

    prompt_flags.check_prompting(args)
    tokenizer = Tokenizer() if args.tokenizer is None else Tokenizer.load(args.tokenizer)
    text = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    final = describing.expanded(text, args.seed, prompt_flags.prompting(args)).get("expanded_prompt", text)
    words = prompt_flags.words_used(args, [final], None, args.prompt_syntax)
    if words:
        tokenizer = AddedWords.to(tokenizer, {one.word: len(one.vectors) for one in words})
    read = read_prompt(args, final, Encoder(tokenizer, pad=tokenizer.eos_token_id))
    if args.json:
        print(json.dumps(read, ensure_ascii=False, indent=1))
    else:
        print("\n".join(lines(read, tokenizer)))


def read_prompt(args: argparse.Namespace, final: str, encoder: Any) -> dict[str, Any]:
    """Returns how a prompt, with its random choices made, is read, as JSON has it."""
    from sdjax.prompts.added_words import without_words
    from sdjax.prompts.syntax import check_prompts

    language = prompt_flags.language(args)
    words = [word for word, _ in getattr(encoder.tokenizer, "added", ())]
    check_prompts([without_words(final, words)], language.syntax)
    prompts = []
    for part, weight in language.joined(final):
        first, texts = 1, []
        for end, one in language.schedule(part, args.steps):
            last = min(end + 1, args.steps)  # A1111 changes after call `end`, counted from 0
            chunks = [
                {"tokens": chunk.ids[1 : chunk.used + 1], "weights": chunk.weights[1 : chunk.used + 1]}
                for chunk in language.chunks(one, encoder)
            ]
            if first <= last:
                texts.append({"first_call": first, "last_call": last, "text": one, "chunks": chunks})
            first = last + 1
        prompts.append({"weight": weight, "texts": texts})
    cut = encoder.tokenizer.cut(final, length=encoder.length) if language.syntax == "plain" else ""
    settings = {"prompt_syntax": language.syntax, "emphasis": language.rule}
    return {"prompt": final, **settings, "room": encoder.room, "prompts": prompts, "cut": cut}


def lines(read: dict[str, Any], tokenizer: Any) -> Iterator[str]:
    """Yields the lines that a reader sees."""
    yield f"prompt: {read['prompt']}"
    yield f"syntax: {read['prompt_syntax']}, emphasis: {read['emphasis']}"
    for number, prompt in enumerate(read["prompts"], 1):
        if len(read["prompts"]) > 1 or prompt["weight"] != 1:
            yield f"prompt {number} of {len(read['prompts'])}, weight {prompt['weight']:g}"
        for text in prompt["texts"]:
            if len(prompt["texts"]) > 1:
                yield f"network calls {text['first_call']} to {text['last_call']}: {text['text']}"
            for at, chunk in enumerate(text["chunks"], 1):
                yield f"  chunk {at} of {len(text['chunks'])}: {len(chunk['tokens'])} of {read['room']} tokens"
                for weight, words in runs(chunk["weights"], tokenizer.words(chunk["tokens"])):
                    yield f"    {weight:<8.4g} {'|'.join(words)}"
    yield f"cut off: {read['cut']}" if read["cut"] else "cut off: nothing"


def runs(weights: Sequence[float], words: Sequence[str]) -> Iterator[tuple[float, list[str]]]:
    """Yields neighbouring words of one weight together."""
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or weights[end] != weights[start]:
            yield weights[start], [word.rstrip() for word in words[start:end]]
            start = end


if __name__ == "__main__":
    sys.exit(main(["tokens", *sys.argv[1:]]))
