"""The flags of a command that runs on several hosts at once, one process on each."""

import argparse
from typing import Any

from sdjax.scripts.shared import values
from sdjax.scripts.shared.flags import Needs, alone


def add_host_flags(parser: argparse.ArgumentParser, needs: tuple[Needs, ...] = ()) -> None:
    """Adds the flags; all have the conditions `needs`."""
    add = parser.add_argument_group("many hosts").add_argument
    add(
        "--hosts",
        choices=("one", "auto"),
        default="one",
        needs=(*needs, alone("--coordinator")),
        help="auto: JAX finds the other hosts; default: %(default)s",
    )
    add("--coordinator", metavar="ADDRESS:PORT", needs=needs, help="address of the first process")
    add("--num-hosts", type=values.positive, metavar="N", needs=needs, help="number of processes")
    add("--host", type=int, metavar="I", needs=needs, help="number of this process, from 0 on")


def join_hosts(args: argparse.Namespace, **more: Any) -> None:
    """Joins this process to the others. `more` are arguments of `jax.distributed.initialize`.

    Raises ValueError for flags that do not fit together.
    """
    given = [args.coordinator, args.num_hosts, args.host]
    if given == [None] * 3 and args.hosts == "one":
        return
    if None in given and given != [None] * 3:
        raise ValueError("--coordinator, --num-hosts and --host must be given together")
    import jax

    if jax.config.jax_platforms == "cpu" or not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # used by CPUs alone
    jax.distributed.initialize(args.coordinator, args.num_hosts, args.host, **more)
