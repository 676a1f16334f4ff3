"""A training step on the CPU with glibc's allocator with its defaults, and set to keep memory and use huge pages.

    python benchmarks/allocator.py --out benchmarks/results/allocator_cpu.json

XLA's CPU backend asks for a program's working memory at every call and gives it back afterwards. glibc hands large
blocks back to the system at once, so that every step touches new pages, each a fault. TUNABLES tell it not to. Both
settings train the same UNet in processes of their own, which take turns.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

TUNABLES = ":".join(
    f"glibc.malloc.{name}"
    for name in ("hugetlb=1", "mmap_max=0", "trim_threshold=34359738368", "top_pad=268435456", "arena_max=1")
)


def train(steps, batch):
    """Prints the median seconds of a step, and page faults a step."""
    import jax
    import numpy as np
    from training import MODEL, SIDE, ours

    from sdjax.evaluate.benchmark import device_name, random_model

    rng = np.random.default_rng(0)
    given = {"moments": rng.normal(size=(batch, SIDE, SIDE, 8)), "context": rng.normal(size=(batch, 77, 128))}
    step = ours(random_model(MODEL, "float32").params, {name: x.astype(np.float32) for name, x in given.items()})
    for _ in range(3):
        step()
    faults, times = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / steps
    print(json.dumps({"seconds": statistics.median(times), "faults": faults, "device": device_name(jax.devices()[0])}))


def main():
    """Measures, prints and writes OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.out is None:
        return train(args.steps, args.batch)
    rows = {"as it is": [], "told": []}
    for _ in range(args.turns):
        for name, tunables in zip(rows, ("", TUNABLES), strict=True):
            environment = {**os.environ, "GLIBC_TUNABLES": tunables}
            flags = ["--batch", str(args.batch), "--steps", str(args.steps)]
            run = subprocess.run(
                [sys.executable, __file__, *flags], env=environment, stdout=subprocess.PIPE, check=True
            )
            rows[name].append(json.loads(run.stdout))
    found = {
        "device": rows["told"][0].pop("device"), "batch": args.batch, "tunables": TUNABLES,
        "seconds": {name: statistics.median(row["seconds"] for row in of) for name, of in rows.items()},
        "faults": {name: statistics.median(row["faults"] for row in of) for name, of in rows.items()},
    }  # fmt: skip
    found["ratio"] = found["seconds"]["as it is"] / found["seconds"]["told"]
    print(json.dumps(found, indent=1))
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
