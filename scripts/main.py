"""The `sdjax` command: finds the subcommand, and turns what goes wrong into a sentence and an exit status.

Nothing heavy is imported before a subcommand has read its arguments, so that every --help answers at once.
"""

import argparse
import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from sdjax import files
from sdjax._version import __version__
from sdjax.notes import Note
from sdjax.scripts import flags
from sdjax.scripts.wording import in_flags

EXTRAS = {  # the modules that come with them, as a user would miss them
    "train": ("optax", "orbax", "grain", "array_record", "tensorflow_datasets", "tensorboardX"),
    "beam": ("apache_beam",),
}
COMMANDS = {
    "txt2img": ("txt2img", "make pictures from a prompt"),
    "img2img": ("img2img", "make pictures from a picture and a prompt"),
    "inpaint": ("inpaint", "make a part of a picture anew, or continue it beyond its edges"),
    "depth2img": ("depth2img", "make pictures that keep the shapes of a picture"),
    "variations": ("variations", "make pictures of what pictures show, and mixtures"),
    "upscale": ("upscale", "make a picture four times as large"),
    "animate": ("animate", "make an animation between prompts"),
    "watermark": ("watermark", "read or write the invisible watermark"),
    "train": ("train", "train or fine-tune a model"),
    "cache-latents": ("cache_latents", "compute the latents of a training set once"),
    "convert": ("convert", "convert a checkpoint to another format"),
    "inspect": ("inspect_checkpoint", "say what a checkpoint holds"),
    "benchmark": ("benchmark", "measure how fast this computer is"),
    "evaluate-builtin": ("evaluate_builtin", "measure the built-in model from pixels"),
}

OK, FAILED, BAD_INPUT, BAD_CHECKPOINT, BAD_IMAGE, OUT_OF_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
EXIT_STATUS = """\
exit status:
  0    done
  1    failed for another reason: a file that cannot be read or written, a disk
       that is full, internal error
  2    bad usage or input: an unknown flag, a value out of range, flags that
       contradict each other or the model
  3    bad checkpoint: missing, damaged, of an unknown kind, not a whole model
  4    the model made no picture: not-a-number, or one flat colour
  5    out of memory
  130  interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of `sdjax` with these arguments, the process's own by default."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in sys.stdout, sys.stderr:  # a prompt or file name may hold what the console cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not argv or argv[0] not in COMMANDS:
        make_parser().parse_args(argv or ["--help"])  # prints and exits, but for the names in COMMANDS
        return BAD_INPUT
    name, rest = argv[0], argv[1:]
    if "jaxlib" not in sys.modules:
        # Else the first that a user sees of a large model is XLA's "Very slow compile? If you want to file a bug ..."
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal messages only; errors are raised too
    command = importlib.import_module(f"sdjax.scripts.{COMMANDS[name][0]}")
    args = command.make_parser().parse_args(rest)
    try:
        flags.check(args)
        with notes_shown():
            command.run(args)
        with files.doing("writing to", "standard output"):
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("sdjax: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; Python would complain once more when it flushes
        _drop_output()
        return FAILED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        status, sentence = describe(error)
        sentence = in_flags(sentence, "model.{}" if name == "train" else "{}")
        if status == OUT_OF_MEMORY:
            sentence = f"{sentence}\n(what helps: {command.IF_OUT_OF_MEMORY})"
        print(f"sdjax {name}: {sentence}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return status
    return OK


def _drop_output() -> None:
    """Sends what is left of standard output nowhere, where Python would fail to write it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def notes_shown() -> Iterator[None]:
    """Shows the library's notes on standard error while a command runs, each text once."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        usual, shown = warnings.showwarning, set()

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if not issubclass(category, Note):
                usual(message, category, *where, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                print(f"note: {in_flags(str(message))}", file=sys.stderr)

        warnings.showwarning = show
        yield


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax` itself, which knows the subcommands' names only."""
    parser = argparse.ArgumentParser(
        prog="sdjax",
        description="Stable Diffusion v1 and v2 in JAX and Flax.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"`sdjax COMMAND --help` says what a command takes.\n\n{EXIT_STATUS}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sdjax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (_, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    return parser


def describe(error: Exception) -> tuple[int, str]:
    """Returns the exit status and the sentence for what a command raised."""
    text = str(error) or type(error).__name__
    if _is(error, "sdjax.convert.errors", "CheckpointError"):
        return BAD_CHECKPOINT, text
    if _is(error, "sdjax.generate", "ImageError"):
        return BAD_IMAGE, text
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY, text if error.args else "out of memory"
    if isinstance(error, RuntimeError) and ("RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()):
        return OUT_OF_MEMORY, f"the device has too little memory ({text.splitlines()[0]})"
    if isinstance(error, ValueError):
        return BAD_INPUT, text
    if isinstance(error, OSError):
        return FAILED, files.sentence(error)
    if isinstance(error, FloatingPointError):
        return FAILED, text
    if isinstance(error, ModuleNotFoundError) and error.name is not None and (extra := _extra_of(error.name)):
        return (
            FAILED,
            f"this needs {error.name}, which is not installed: in the clone of sdjax, pip install '.[{extra}]'",
        )
    return FAILED, f"internal error: {type(error).__name__}: {text}\n(--debug shows where; please report it)"


def _extra_of(module: str) -> str | None:
    """Returns the extra of this package that a missing module belongs to."""
    name = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if name in modules), None)


def _is(error: Exception, module: str, name: str) -> bool:
    # What a module that was never imported defines cannot have been raised; importing it now would take a second
    return module in sys.modules and isinstance(error, getattr(sys.modules[module], name))


if __name__ == "__main__":
    sys.exit(main())
