"""Builds batches of prompts and seeds from a command's flags. Imports nothing heavy."""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from sdjax.storage import text_files


class Batch(NamedTuple):
    """The pictures of one call: for each its prompt, its seed, and the number of its input picture."""

    prompts: list[str]
    seeds: list[int]
    inputs: list[int]


def make_batches(args: argparse.Namespace, default: str, num_inputs: int = 1) -> list[Batch]:
    """Returns the batches in the references' order: iterations, then chunks of at most `n_samples` pictures.

    Without --from-file, the prompt is --prompt or else `default`. It is used n_samples times with one input picture,
    or once with each of several. Raises ValueError for contradicting flags and seeds out of range.
    """
    if args.from_file is None:
        each = pictures_at_a_time(args) if num_inputs == 1 else 1
        prompts = [default if args.prompt is None else args.prompt] * each
    else:
        if args.prompt is not None:
            raise ValueError("--prompt and --from-file both give prompts; use one of them")
        prompts = [prompt for prompt in read_prompts(args.from_file) for _ in range(args.repeat or 1)]
    if len(prompts) != num_inputs and 1 not in (len(prompts), num_inputs):
        raise ValueError(
            f"--from-file holds one prompt, or one for each of the {num_inputs} pictures; got {len(prompts)}"
        )
    count, size = max(len(prompts), num_inputs), pictures_at_a_time(args, num_inputs)
    prompts = prompts * count if len(prompts) == 1 else prompts
    inputs = list(range(num_inputs)) if num_inputs > 1 else [0] * count
    batches, seed = [], args.seed
    for start in [*range(0, count, size)] * args.n_iter:
        chunk, given = prompts[start : start + size], inputs[start : start + size]
        first = args.seed if args.fixed_code else seed
        batches.append(Batch(chunk, list(range(first, first + len(chunk))), given))
        seed += len(chunk)
    last = max(batch.seeds[-1] for batch in batches)
    if last >= 2**64:
        raise ValueError(f"a seed is from 0 to 2**64 - 1; with one more for each picture, this run would reach {last}")
    return batches


def pictures_at_a_time(args: argparse.Namespace, num_inputs: int = 1) -> int:
    """Returns --n_samples or its default.

    For a folder the default is the smallest batch that does not increase the number of batches, at most the folder's
    default.
    """
    if args.n_samples is not None:
        return args.n_samples
    of_one, most = args.default_samples
    return of_one if num_inputs == 1 else -(-num_inputs // -(-num_inputs // most))


def read_prompts(path: str) -> list[str]:
    """Returns the non-empty lines of a file. Raises ValueError if there are none, or the file is not UTF-8 text."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"--from-file {path} cannot be read: {error.strerror}") from None
    lines = [line for line in text_files.lines(text_files.decode(data, f"--from-file {path}")) if line.strip()]
    if not lines:
        raise ValueError(f"--from-file {path} holds no prompt; write one in each line")
    return lines


def check_prompts(pipe: Any, prompts: list[str]) -> None:
    """Notes the parts of prompts that the text encoder will not see or does not understand."""
    from sdjax.prompts import syntax

    syntax.check_prompts(prompts)
    syntax.check_lengths(pipe.tokenizer, prompts, pipe.config.text.max_length)
