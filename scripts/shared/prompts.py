"""Builds batches of prompts, seeds and settings from a command's flags. Imports nothing heavy."""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sdjax.scripts.shared import named_files, prompt_flags
from sdjax.storage import text_files

JSON_LINES = (".jsonl", ".ndjson")
MAX_BYTES = 64 * 2**20  # of a file of prompts
Check = Callable[[dict[str, Any]], None]


class PromptBatch(NamedTuple):
    """The pictures of one call: for each its prompt, its seed, the number of its input picture, and its own settings.

    `settings[i]` has the fields of `sdjax.Request` that a line of --from-file or --sweep sets for picture i alone.
    """

    prompts: list[str]
    seeds: list[int]
    inputs: list[int]
    settings: list[dict[str, Any]]

    def part(self, which: Sequence[int]) -> "PromptBatch":
        """Returns some of the pictures."""
        return PromptBatch(
            [self.prompts[i] for i in which],
            [self.seeds[i] for i in which],
            [self.inputs[i] for i in which],
            [self.settings[i] for i in which],
        )


def make_batches(
    args: argparse.Namespace, default: str, num_inputs: int = 1, axes: Sequence[Any] = (), *, check: Check
) -> list[PromptBatch]:
    """Returns the batches in the references' order: iterations, then chunks of at most `n_samples` pictures.

    Without --from-file, the prompt is --prompt or else `default`. It is used n_samples times with one input picture,
    or once with each of several. Each picture without a seed of its own uses the next seed. With `axes` of a sweep
    (`sdjax.tasks.sweep`), a batch has all combinations of their values for one prompt and one input picture. Raises
    ValueError for contradicting flags, seeds out of range, and own settings for which `check` raises it.
    """
    from sdjax.tasks.sweep import cells

    pictures = _pictures(args, default, 1 if axes or num_inputs > 1 else pictures_at_a_time(args), check)
    n_iter = 1 if axes and "n_iter" not in args.given else args.n_iter
    if len(pictures) != num_inputs and 1 not in (len(pictures), num_inputs):
        raise ValueError(
            f"--from-file holds one prompt, or one for each of the {num_inputs} pictures; got {len(pictures)}"
        )
    count = max(len(pictures), num_inputs)
    size = 1 if axes else pictures_at_a_time(args, num_inputs)
    pictures = pictures * count if len(pictures) == 1 else pictures
    inputs = list(range(num_inputs)) if num_inputs > 1 else [0] * count
    batches, seed = [], args.seed
    for start in [*range(0, count, size)] * n_iter:
        chunk, given = pictures[start : start + size], inputs[start : start + size]
        first = args.seed if args.fixed_code else seed
        seeded = [{**one, "seed": one.get("seed", first + i)} for i, one in enumerate(chunk)]
        seed += len(chunk)
        if axes:  # the pictures of one plot have one seed
            seeded = cells(axes, seeded[0])
            given = given * len(seeded)
        settings = [{name: value for name, value in one.items() if name not in ("prompt", "seed")} for one in seeded]
        for own in settings if axes else []:
            check(own)
        settings = [named_files.placed(own, args) for own in settings]
        batches.append(PromptBatch([one["prompt"] for one in seeded], [one["seed"] for one in seeded], given, settings))
    last = max(seed for batch in batches for seed in batch.seeds)
    if last >= 2**64:
        raise ValueError(f"a seed is from 0 to 2**64 - 1; with one more for each picture, this run would reach {last}")
    return batches


def _pictures(args: argparse.Namespace, default: str, each: int, check: Check) -> list[dict[str, Any]]:
    """Returns the settings of each picture of one iteration, with its prompt. --prompt is used `each` times."""
    if args.lines is not None:
        for line in args.lines:
            check(line)
        return args.lines
    if args.from_file is None:
        return [{"prompt": default if args.prompt is None else args.prompt}] * each
    lines = [
        line
        for line in read_lines(args.from_file, (*args.own, *named_files.settings_of(args)), check)
        for _ in range(args.repeat or 1)
    ]
    if args.prompt is not None and any("prompt" in line for line in lines):
        raise ValueError("--prompt and --from-file both give prompts; use one of them")
    return [{"prompt": default if args.prompt is None else args.prompt, **line} for line in lines]


def pictures_at_a_time(args: argparse.Namespace, num_inputs: int = 1) -> int:
    """Returns --n_samples or its default.

    For a folder the default is the smallest batch that does not increase the number of batches, at most the folder's
    default.
    """
    if args.n_samples is not None:
        return args.n_samples
    of_one, most = args.default_samples
    return of_one if num_inputs == 1 else -(-num_inputs // -(-num_inputs // most))


def read_lines(path: str, own: Collection[str], check: Check) -> list[dict[str, Any]]:
    """Returns the settings of each line of a file: {"prompt": line}, or those of a JSON object.

    The file holds JSON lines if its name ends in .jsonl, or its first line is a JSON object. `own` are the task's own
    settings (OF_TASK) that a line may have. Raises ValueError if there are no lines, the file is not UTF-8 text, or a
    line's settings are wrong, which `check` decides too.
    """
    numbered = list(_numbered(path))
    if not (path.lower().endswith(JSON_LINES) or _is_object(numbered[0][1])):
        return [{"prompt": text} for _, text in numbered]
    from sdjax.tasks import settings

    read = []
    for number, text in numbered:
        try:
            read.append(settings.from_json(text, own))
            check(read[-1])
        except ValueError as error:
            raise ValueError(f"--from-file {path}, line {number}: {error}") from None
    return read


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def read_prompts(path: str) -> list[str]:
    """Returns the non-empty lines of a file. Raises ValueError if there are none, or the file is not UTF-8 text."""
    return [text for _, text in _numbered(path)]


def _numbered(path: str) -> Iterator[tuple[int, str]]:
    """Yields the non-empty lines of a file with their numbers, counted from 1."""
    name = f"--from-file {path}"
    if path == "-":
        text = text_files.decode(sys.stdin.buffer.read(), name)
    else:
        text = text_files.read(path, name, MAX_BYTES)
    lines = text_files.lines(text)
    if not any(line.strip() for line in lines):
        raise ValueError(f"--from-file {path} holds no prompt; write one in each line")
    yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def check_prompts(pipe: Any, prompts: list[str], args: argparse.Namespace) -> None:
    """Notes the parts of prompts that the text encoder will not see or does not understand."""
    from sdjax.prompts.added_words import without_words
    from sdjax.prompts.extra_networks import read_tags
    from sdjax.tasks import adapters, hypernetworks
    from sdjax.tasks.compat import profile_of
    from sdjax.tasks.contexts import note_texts

    syntax = args.prompt_syntax or profile_of(getattr(args, "compat", None)).prompt_syntax
    tags = [*(adapters.TAGS if args.lora_dir else ()), *(hypernetworks.TAGS if args.hypernetwork_dir else ())]
    words = [one.word for one in prompt_flags.words_used(args, prompts, pipe.config, syntax)]
    note_texts(pipe, [without_words(read_tags(prompt, tags).text, words) for prompt in prompts], syntax)
