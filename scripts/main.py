"""The `sdjax` command: runs a subcommand, and turns errors into a sentence and an exit status.

Nothing heavy is imported before a subcommand has read its arguments, so that --help is fast.
"""

import argparse
import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from sdjax import errors
from sdjax._version import __version__
from sdjax.checks.notes import Note
from sdjax.scripts.shared import flags, xla_flags
from sdjax.scripts.shared.failures import FAILED, INTERRUPTED, OK, OUT_OF_MEMORY, describe
from sdjax.scripts.shared.parser import Parser
from sdjax.scripts.shared.wording import in_flags, translate
from sdjax.spelling import nearest

COMMANDS = {
    "txt2img": ("txt2img", "make pictures from a prompt"),
    "img2img": ("img2img", "make pictures from a picture and a prompt"),
    "edit": ("edit", "change a picture as an instruction says"),
    "relight": ("relight", "change the light on what a picture shows"),
    "inpaint": ("inpaint", "replace a part of a picture, or continue it beyond its edges"),
    "detail": ("detail", "make parts of a picture again at full size, such as faces"),
    "depth2img": ("depth2img", "make pictures that keep the shapes of a picture"),
    "variations": ("variations", "make pictures that show the same as your pictures, or a mixture"),
    "upscale": ("upscale", "make a picture larger"),
    "invert": ("invert", "write the starting noise that a picture comes from"),
    "run": ("run_workflow", "run a workflow of ComfyUI"),
    "animate": ("animate", "make an animation between prompts"),
    "serve": ("serve", "serve a page for the browser, and interfaces for programs"),
    "reproduce": ("reproduce", "read how a picture was made, and make it again"),
    "tokens": ("tokens", "show how a prompt is read: chunks, weights, what is cut"),
    "hint": ("hint", "make hints for ControlNets from pictures"),
    "watermark": ("watermark", "read or write the invisible watermark"),
    "train": ("train", "train or fine-tune a model"),
    "cache-latents": ("cache_latents", "compute the latents of a training set once"),
    "convert": ("convert", "convert a checkpoint to another format"),
    "lora": ("lora", "extract, merge, resize and convert adapters"),
    "merge": ("merge", "mix checkpoints, and merge adapters into them"),
    "reproduce-merge": ("reproduce_merge", "run the recipe of a merged checkpoint again"),
    "inspect": ("inspect_checkpoint", "show what a checkpoint holds"),
    "samplers": ("samplers", "list samplers and schedules by their names in every tool"),
    "guidance": ("guidance", "list the rules of guidance and their options"),
    "card": ("card", "write the model card of a model"),
    "push": ("push", "upload a model to the Hugging Face hub"),
    "export": ("export", "write a model as programs that run without its code"),
    "run-exported": ("run_exported", "make pictures with an exported model"),
    "compile": ("compile", "compile a model's programs before they are needed"),
    "plan": ("plan", "print the memory that pictures need"),
    "benchmark": ("benchmark", "measure how fast this computer is"),
    "evaluate": ("evaluate", "judge models: FID, CLIP score and others over settings"),
    "evaluate-builtin": ("evaluate_builtin", "measure how well the built-in model draws"),
}

EXIT_STATUS = """\
exit status:
  0    done
  1    failed for another reason: a file cannot be read or written, the disk is
       full, internal error
  2    bad usage or input: an unknown flag, a value out of range, flags that
       contradict each other or the model
  3    bad checkpoint: missing, damaged, of an unknown kind, or not a whole model
  4    the model made no picture: not-a-number, or one flat colour
  5    out of memory
  130  interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `sdjax` with these arguments (by default the process's) and returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in sys.stdout, sys.stderr:  # a prompt or file name may hold characters that the console cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    argv = _read_help(argv)
    if argv[0] not in COMMANDS:
        _end_without_command(argv)
    name, rest = argv[0], argv[1:]
    if "jaxlib" not in sys.modules:
        # Without this, XLA greets the user of a large model with "Very slow compile? If you want to file a bug ..."
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal messages only; errors are raised too
    command = importlib.import_module(f"sdjax.scripts.{COMMANDS[name][0]}")
    parser = command.make_parser()
    args = parser.parse_args(rest)
    try:
        with contextlib.redirect_stdout(_Output(sys.stdout)), notes_shown():
            flags.check(args)
            xla_flags.check()
            command.run(args)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("sdjax: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it; Python would raise again when it flushes
        _drop_output()
        return FAILED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        status, sentence = describe(error)
        sentence = in_flags(sentence, "model.{}" if name == "train" else "{}")
        sentence = translate(sentence, [flag for action in parser._actions for flag in action.option_strings])
        if status == OUT_OF_MEMORY:
            sentence = f"{sentence}\n(to save memory: {command.IF_OUT_OF_MEMORY})"
        print(f"sdjax {name}: {sentence}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return status
    return OK


def _read_help(argv: list[str]) -> list[str]:
    """Returns the arguments with every request for help as --help: none, `help`, `help COMMAND`, `COMMAND help`."""
    if not argv or argv in (["help"], ["help", "help"]):
        return ["--help"]
    if argv[0] == "help":
        return [argv[1], "--help"] if argv[1] in COMMANDS else argv[1:]
    if argv[0] in COMMANDS and argv[1:] == ["help"] and not os.path.exists("help"):
        return [argv[0], "--help"]
    return argv


def _end_without_command(argv: list[str]) -> NoReturn:
    """Handles arguments without a command: prints help or version, or what is wrong, and exits with status 2."""
    parser = make_parser()
    if not argv[0].startswith("-"):
        near = nearest(argv[0], [*COMMANDS, "--version"])
        parser.error(f"there is no command {argv[0]!r}" + (f"; did you mean {near}?" if near else ""))
    options = {flag for action in parser._actions for flag in action.option_strings}
    if argv[0] not in options:
        near = nearest(argv[0], options)
        meant = f"did you mean {near}?" if near else "a command comes first, as `sdjax txt2img`"
        parser.error(f"unrecognized arguments: {argv[0]}; {meant}")
    parser.parse_args(argv[:1])
    raise AssertionError("--help and --version end by themselves")


class _Output:
    """Standard output. Its errors say what was being done."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with errors.doing("writing to", "standard output"):
            return self.stream.write(text)

    def flush(self) -> None:
        with errors.doing("writing to", "standard output"):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _drop_output() -> None:
    """Discards the rest of standard output, which Python would otherwise fail to write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def notes_shown() -> Iterator[None]:
    """Shows the library's notes on standard error while a command runs: each text, and each subclass of Note, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        usual, shown = warnings.showwarning, set()

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if not issubclass(category, Note):
                usual(message, category, *where, **more)
            elif (once := str(message) if category is Note else category) not in shown:
                shown.add(once)
                print(f"note: {in_flags(str(message))}", file=sys.stderr)

        warnings.showwarning = show
        yield


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax` itself, which knows the subcommands' names only."""
    parser = Parser(
        prog="sdjax",
        description="Stable Diffusion v1 and v2 in JAX and Flax.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"`sdjax COMMAND --help` shows the flags of a command.\n\n{EXIT_STATUS}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sdjax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for name, (_, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
