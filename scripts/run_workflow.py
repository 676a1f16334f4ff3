"""`sdjax run`: runs ComfyUI's workflow files, and pictures that one is embedded in."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sdjax.checks.arguments import DTYPES
from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options, values

IF_OUT_OF_MEMORY = "smaller pictures (--set NODE.width=512), --dtype bfloat16"

DESCRIPTION = """\
Runs a workflow of ComfyUI: a JSON file in API form or as its editor saves it, or a
picture (PNG, JPEG, WebP) with a workflow in it. Writes the pictures of SaveImage, and
prints their paths. Nodes and inputs that are not known are listed before anything runs."""

EPILOG = f"""\
A workflow names its models by their files in ComfyUI's folders. --model says what
they are here; the first one that fits a name decides:
  --model v1-5-pruned-emaonly-fp16.safetensors=v1-5.safetensors
  --model 'lora:*=film.safetensors'    every LoRA
  --model '*=builtin'                  every checkpoint and autoencoder that is left
The kinds before a colon: checkpoint vae lora embedding hypernetwork control
clip_vision upscaler.

Pictures that a workflow reads are files in --input-dir. --set changes an input of a
node, which --dry-run lists: --set 3.steps=10 --set 5.width=256.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax run`."""
    parser = options.make_command_parser("run", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("workflow", metavar="FILE", help="the workflow: a JSON file, or a picture with one in it")
    add(
        "--model",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=FILE",
        help="the file that a name in the workflow stands for: as for --ckpt of txt2img, or of another kind; may be "
        "repeated",
    )
    add("--input-dir", default="input", metavar="DIR", help="folder of the pictures to read; default: %(default)s")
    add("--outdir", default="outputs/workflow-samples", metavar="DIR", help="folder to write to; default: %(default)s")
    add(
        "--set",
        action="append",
        default=[],
        type=pair,
        metavar="NODE.INPUT=VALUE",
        help="another value for an input of a node; may be repeated",
    )
    add("--dry-run", action="store_true", help="check the workflow, list its nodes, and run nothing")
    add("--dtype", type=values.dtype, choices=DTYPES, help="compute in this type; default: bfloat16 on gpu and tpu")
    return parser


def pair(text: str) -> tuple[str, str]:
    """Returns the two sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"invalid value: expected NAME=VALUE; got {text!r}")
    return name, value


def run(args: argparse.Namespace) -> None:
    """Runs the workflow. Raises ValueError for a workflow that cannot be run, and as the other commands do."""
    from sdjax.pictures.opening import read_file
    from sdjax.scripts.shared.saving import check_outdir
    from sdjax.serve.comfy.checking import check
    from sdjax.serve.comfy.plain_host import PlainHost
    from sdjax.serve.comfy.reading import read_workflow
    from sdjax.serve.comfy.running import run as run_graph

    graph = read_workflow(read_file(args.workflow))
    for name, value in args.set:
        number, dot, key = name.rpartition(".")
        if not dot:
            raise ValueError(f"--set takes NODE.INPUT=VALUE, such as 3.steps=10; got {name}={value}")
        graph = graph.replace(number, key, value)
        check_input(graph.nodes[number].kind, key)
    host = PlainHost(args.model, Path(args.input_dir), Path(args.outdir), args.dtype, show=print)
    if args.dry_run:
        for line in listed(graph):
            print(line)
        check(graph, host)
        return
    checked = check(graph, host)
    check_outdir(args.outdir)
    run_graph(checked, host)


def check_input(kind: str, key: str) -> None:
    """Raises ValueError if a known node has no input of this name."""
    from sdjax.serve.comfy.nodes import NODES

    if kind in NODES and NODES[kind].input(key) is None:
        known = ", ".join(one.name for one in NODES[kind].inputs)
        raise ValueError(f"{kind} has no input {key!r} to --set; it has {known}")


def listed(graph: Any) -> list[str]:
    """Returns one line for each node: its id, its class, and its own inputs."""
    from sdjax.serve.comfy.graph import Link

    lines = []
    for number, node in graph.nodes.items():
        own = [f"{name}={value!r}" for name, value in node.inputs.items() if not isinstance(value, Link)]
        lines.append(f"{number} {node.kind} {' '.join(own)}".rstrip())
    return lines


if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
