"""`sdjax serve`: a page for the browser, and interfaces for programs, on this computer."""

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import Any

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import model_flags, options, runtime, values

IF_OUT_OF_MEMORY = "fewer --slots, --dtype bfloat16"

DESCRIPTION = """\
Serves a page for the browser at http://127.0.0.1:7860, and interfaces for
programs: our own, A1111's, OpenAI's and ComfyUI's. Requests of all of them share
the device: pictures of one size are made together, whatever else differs.

Without --ckpt and --models it draws with the small built-in model."""

EPILOG = f"""\
The models below --models can be chosen by requests: checkpoints, autoencoders,
LoRAs, embeddings, ControlNets, upscalers and so on, in the folders of A1111 or of
ComfyUI. Pictures are written to --outdir, and the queue and the history to
--state, which a later start continues.

Others can reach the server only with --host and a token or a password, from a file
or from the environment: SDJAX_TOKEN=TOKEN or SDJAX_USER=NAME:PASSWORD. It needs the
extra: pip install '.[server]' in the clone.

{EXIT_STATUS}"""

OUTDIR = "outputs/served"


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax serve`."""
    parser = options.make_command_parser("serve", DESCRIPTION, EPILOG)
    add = parser.add_argument_group("where it listens, and to whom").add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen at; default: %(default)s")
    add("--port", type=port, default=7860, metavar="N", help="the port, 0 for a free one; default: %(default)s")
    add(
        "--token-file",
        metavar="FILE",
        help="a file with a token that every request must have; it is made, with a random token, if it is not there",
    )
    add("--user-file", metavar="FILE", help="a file with NAME:PASSWORD that every request must have")
    add(
        "--origin", action="append", default=[], metavar="URL",
        help="a further page that may use the server, such as https://example.org; may be repeated",
    )  # fmt: skip
    add("--log-prompts", action="store_true", help="write prompts into the log; default: they are left out")
    add = parser.add_argument_group("models and files").add_argument
    add(
        "--ckpt",
        metavar="PATH",
        help="the first model, as for txt2img; default: the one used last, or the built-in one",
    )
    add(
        "--models", action="append", default=[], metavar="DIR",
        help="a folder with models, as A1111 or ComfyUI have it; may be repeated",
    )  # fmt: skip
    add("--outdir", default=OUTDIR, metavar="DIR", help="where pictures are written; default: %(default)s")
    add("--state", metavar="DIR", help="where the queue and the history are kept; default: OUTDIR/.state")
    group = parser.add_argument_group("computing")
    add = group.add_argument
    add(
        "--slots",
        type=values.positive,
        default=8,
        metavar="N",
        help="jobs that run at the same time; default: %(default)s",
    )
    add("--waiting", type=values.positive, default=100, metavar="N", help="jobs that may wait; default: %(default)s")
    add("--preview", default="linear", metavar="NAME", help="linear, or a TAESD of the library; default: %(default)s")
    add(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="type to compute in; default: as txt2img, by the device",
    )  # fmt: skip
    model_flags.add_quantise_flag(group)
    add("--device", metavar="NAME", help="cpu, gpu or tpu; default: the best there is")
    add(
        "--safety-checker",
        choices=("auto", "off"),
        default="auto",
        help="the model's own checker; default: %(default)s",
    )
    parser.set_defaults(precision=None)
    return parser


def port(text: str) -> int:
    """Returns a port's number. Raises argparse.ArgumentTypeError for another text."""
    number = values.natural(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"a port is from 0 to 65535; got {text}")
    return number


def run(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C. Raises as the other commands do."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ValueError(
            "sdjax serve needs starlette and uvicorn: pip install '.[server]' in the clone of sdjax, or `make serve`"
        ) from None
    settings = read_settings(args)
    devices = runtime.set_up_jax(args.device)
    from sdjax.serve.engine import Engine
    from sdjax.serve.library import Library
    from sdjax.serve.listening import listen
    from sdjax.serve.server import Server

    outputs = Path(args.outdir)
    state = outputs / ".state" if args.state is None else Path(args.state)
    library = Library(args.models, checkpoint=args.ckpt, state=state)
    first = None if args.ckpt is None else own_name(library, args.ckpt)
    engine = Engine(
        library, model=first, outputs=outputs, state=state, slots=args.slots, waiting=args.waiting,
        dtype=runtime.compute_dtype(args), quantise=args.quantise, preview=args.preview, devices=devices,
        safety_checker=args.safety_checker,
    )  # fmt: skip
    try:
        listen(Server(engine, library, settings), ready=lambda address: print(f"sdjax serves {address}", flush=True))
    finally:
        engine.close()
    print("stopped; what waits is made after the next start", flush=True)
    if any(thread.daemon and thread.name.startswith("sdjax") for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(0)  # a program is still being compiled, which cannot be stopped


def own_name(library: Any, path: str) -> str:
    """Returns the library's name of the checkpoint on the command line."""
    from sdjax.loading import builtin

    name = path if path in builtin.NAMES else (Path(path).name or path)
    names = [entry.name for entry in library.entries("checkpoint")]
    return name if name in names else path


def read_settings(args: argparse.Namespace) -> Any:
    """Returns the server's settings. Secrets come from files or the environment: others can read a command line."""
    from sdjax.serve.server import ServerSettings

    if args.token_file is not None:
        make_token(Path(args.token_file))
    token = secret(args.token_file, "SDJAX_TOKEN", "--token-file")
    user = secret(args.user_file, "SDJAX_USER", "--user-file")
    if user is not None and not all(user.partition(":")[::2]):
        raise ValueError("a user is NAME:PASSWORD, in the file of --user-file or in SDJAX_USER")
    name, _, password = (user or "").partition(":")
    return ServerSettings(
        args.host, args.port, token, (name, password) if user else None, tuple(args.origin), args.log_prompts
    )  # fmt: skip


def make_token(path: Path) -> None:
    """Writes a random token into a file that only its owner can read, if there is no such file."""
    import secrets

    if path.exists():
        return
    from sdjax.errors import doing

    with doing("writing the token into", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    print(f"a token was written into {path}: requests must have it", flush=True)


def secret(path: str | None, variable: str, flag: str) -> str | None:
    """Returns the first line of a file, or the environment's variable; None without both."""
    if path is None:
        return os.environ.get(variable) or None
    from sdjax.storage import text_files

    text = text_files.read(Path(path), f"the file of {flag}", 4096)
    line = text.splitlines()[0].strip() if text.strip() else ""
    if not line:
        raise ValueError(f"the file of {flag}, {path}, is empty")
    return line


if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
