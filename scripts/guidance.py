"""Lists the rules of guidance: names, options with their defaults, and sources."""

import argparse
import inspect
import sys
import textwrap

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared.options import make_command_parser
from sdjax.spelling import meant

IF_OUT_OF_MEMORY = "close other programs"
WIDTH = 100


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command."""
    parser = make_command_parser(
        "guidance",
        "Lists the rules that --guidance takes, or shows the options of one of them.",
        "examples:\n  sdjax guidance\n  sdjax guidance apg\n"
        "  sdjax txt2img --guidance apg --guidance interval --guidance-option eta=0.5 --guidance-option stop=0.8\n\n"
        f"{EXIT_STATUS}",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this rule alone, with its options")
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints the table, or one rule. Raises ValueError for an unknown name."""
    from sdjax.diffusion.rules import GUIDANCE, PLAIN

    if args.name is None:
        print(f"{PLAIN:<22}plain classifier-free guidance: --scale and --guidance-rescale alone")
        for name, rule in GUIDANCE.items():
            first = (inspect.getdoc(rule) or "").partition("\n")[0]
            print(textwrap.fill(first, WIDTH, initial_indent=f"{name:<22}", subsequent_indent=" " * 22))
        print("\n`sdjax guidance NAME` shows the options of a rule. Several rules: --guidance NAME --guidance NAME.")
        return
    if args.name not in GUIDANCE:
        raise ValueError(
            f"there is no guidance {args.name!r}{meant(args.name, GUIDANCE)}; `sdjax guidance` lists the known ones"
        )
    show(args.name, GUIDANCE[args.name])


def show(name: str, rule: type) -> None:
    """Prints a rule with its options."""
    from sdjax.diffusion.rules import options_of

    print(f"{name}\n")
    print(textwrap.indent(inspect.getdoc(rule) or "", "  "))
    options = options_of(rule)
    print("\n  options:" if options else "\n  no options")
    for option in options:
        default = option.default if isinstance(option.default, str) else f"{option.default:g}"
        text = f"{option.meaning} ({option.values}); default: {default}"
        print(textwrap.fill(text, WIDTH, initial_indent=f"    {option.name:<16}", subsequent_indent=" " * 20))


if __name__ == "__main__":
    sys.exit(main(["guidance", *sys.argv[1:]]))
