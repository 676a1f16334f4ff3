"""What less work a step costs in quality and gains in work and time: DeepCache, T-GATE, token merging and others.

    python benchmarks/less_work.py                    # quality and work: half an hour on two cores
    python benchmarks/less_work.py --parts time       # seconds of full-size calls: needs 8 GB of memory

Quality is measured with the built-in model: the share of pictures that `sdjax evaluate-builtin`'s reader finds right,
and the mean difference from the plain picture of the same seed. Work is the number of multiplications with additions
in the products of a full-size UNet (Stable Diffusion 1), counted from its traced program; XLA's own count takes a loop,
such as attention's, once. Time is that of calls of this UNet with random weights, each beside a plain one.

Results go to benchmarks/results/less_work.json; `docs/make_less_work.py` makes the page's tables of them.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import configs
from sdjax.adapters import make_settings, patched
from sdjax.adapters.memory import Moment, Recall, Remembering
from sdjax.adapters.spans import Run
from sdjax.evaluate.benchmark import device_name
from sdjax.nn import UNet
from sdjax.train.builtin import emoji, evaluate
from sdjax.train.builtin.reader import Reader

OUT = Path(__file__).parent / "results" / "less_work.json"
STEPS = 50
SIDES = (512, 1024)  # pixels
PAIRS = 3  # of timed calls

# What is measured for quality: a name for the table, and the options of `sdjax.text_to_image`
QUALITY: dict[str, dict[str, Any]] = {
    "25 steps": {"num_steps": 25},
    "17 steps": {"num_steps": 17},
    "`deep_cache:interval=2`": {"patches": ["deep_cache:interval=2"]},
    "`deep_cache:interval=3`": {"patches": ["deep_cache:interval=3"]},
    "`deep_cache:interval=5`": {"patches": ["deep_cache:interval=5"]},
    "`deep_cache:interval=3,branch=1`": {"patches": ["deep_cache:interval=3,branch=1"]},
    "`t_gate:gate=0.4`": {"patches": ["t_gate:gate=0.4"]},
    "`token_merging:ratio=0.5`": {"patches": ["token_merging:ratio=0.5"]},
    "`token_downsampling:factor=2`": {"patches": ["token_downsampling:factor=2"]},
    "`hypertile:tile_size=32,swap_size=1`": {"patches": ["hypertile:tile_size=32,swap_size=1"]},
    "guidance `interval`, `stop=0.4`": {"guidance": "interval", "guidance_options": {"stop": 0.4}},
    "`t_gate:gate=0.6`": {"patches": ["t_gate:gate=0.6"]},
    "`token_merging:ratio=0.25`": {"patches": ["token_merging:ratio=0.25"]},
    "`deep_cache:interval=5,center=15,power=1.4`": {"patches": ["deep_cache:interval=5,center=15,power=1.4"]},
}
# Calls of the full-size network: a name, the patch, whether the patch's memory stands in for work, and how many
# branches of guidance
CALLS: dict[str, tuple[str | None, bool, int]] = {
    "plain": (None, False, 2),
    "without guidance": (None, False, 1),
    "`deep_cache`, `branch=0`, a call between": ("deep_cache", True, 2),
    "`deep_cache`, `branch=1`, a call between": ("deep_cache:branch=1", True, 2),
    "`t_gate`, behind the gate": ("t_gate", True, 1),
    "`token_merging:ratio=0.5`": ("token_merging:ratio=0.5", False, 2),
    "`token_downsampling:factor=2`": ("token_downsampling:factor=2", False, 2),
    "`hypertile:tile_size=256,swap_size=1`": ("hypertile:tile_size=256,swap_size=1", False, 2),
}


def quality(count: int, known: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields the share of right pictures and the difference from the plain ones, of each way to make them.

    It yields all rows so far whenever there is another one. Rows that are `known` are not measured again.
    """
    pipe = sdjax.load()
    reader = Reader(emoji.Sprites.render(pipe.config.image_size))
    prompts = evaluate.draw_prompts(0, count, held_out=False)
    texts, seeds = [prompt.text for prompt in prompts], list(range(count))
    rows: list[dict[str, Any]] = []
    plain = None
    for name, options in {"plain": {}, **QUALITY}.items():
        if plain is not None and (found := [row for row in known if row["name"] == name]):
            rows += found
            continue
        start = time.process_time()
        pictures = evaluate.make_pictures(pipe, **{"num_steps": STEPS, **options})(texts, seeds)
        seconds = time.process_time() - start
        plain = pictures if plain is None else plain
        readings = evaluate.read(reader, pictures, prompts)
        right = sum(evaluate.is_right(*pair) for pair in zip(readings, prompts, strict=True))
        share = evaluate.share(right, count)
        rows.append({"name": name, **share, "distance": evaluate.distance(pictures, plain), "cpu_seconds": seconds})
        print(rows[-1], flush=True)
        yield rows


def caller(name: str, side: int) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """Returns a call of the full-size network, and the shapes of its arguments."""
    text, from_memory, branches = CALLS[name]
    config = configs.get("sd1").unet
    x = jax.ShapeDtypeStruct((branches, side // 8, side // 8, 4), jnp.float32)
    t = jax.ShapeDtypeStruct((branches,), jnp.float32)
    context = jax.ShapeDtypeStruct((branches, 77, config.context_dim), jnp.float32)
    network = UNet(config)
    params = jax.eval_shape(network.init, jax.random.key(0), x, t, context)["params"]
    settings = make_settings(text)

    def call(params: Any, x: jax.Array, t: jax.Array, context: jax.Array, memory: Any) -> jax.Array:
        patches = [one.patch for one in settings]
        own = [
            jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a)[None], branches, 0), one.numbers(Run()))
            for one in settings
        ]
        if from_memory:
            zeros = jnp.zeros(branches, jnp.int32)
            own = [Recall(memory, None, Moment(zeros, zeros, zeros))]
        with patched(patches, None, own):
            return network.apply({"params": params}, x, t, context)

    memory = None
    if from_memory:
        (patch,) = (one.patch for one in settings)
        assert isinstance(patch, Remembering)
        memory = jax.eval_shape(functools.partial(patch.begin, config, x.shape, jnp.float32))
    return call, (params, x, t, context, memory)


def products(jaxpr: Any) -> int:
    """Returns the multiplications of a program's matrix products and convolutions. Of several branches, the most."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [_inner(value) for value in eqn.params.values()]
        inner = [one for several in inner for one in several]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([left[axis] for axis in contracted]))
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            total += int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod(kernel)) // kernel[numbers.rhs_spec[0]]
        elif eqn.primitive.name == "cond":
            total += max(map(products, inner))
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(map(products, inner))
        else:
            total += sum(map(products, inner))
    return total


def _inner(value: Any) -> Iterator[Any]:
    """Yields the programs inside a parameter of an operation."""
    for one in value if isinstance(value, tuple | list) else (value,):
        one = getattr(one, "jaxpr", one)
        if hasattr(one, "eqns"):
            yield one


def work() -> dict[str, dict[str, int]]:
    """Returns the multiplications of each call, by the picture's side."""
    out: dict[str, dict[str, int]] = {}
    for side in SIDES:
        out[str(side)] = {}
        for name in CALLS:
            call, shapes = caller(name, side)
            out[str(side)][name] = products(jax.make_jaxpr(call)(*shapes).jaxpr)
            print(side, name, f"{out[str(side)][name] / 1e9:.0f} G", flush=True)
    return out


def seconds(side: int, pairs: int, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the times of each call and of a plain call right before it, and the median of their ratios."""
    rng = np.random.default_rng(0)
    some = (0.02 * rng.standard_normal(2**20)).astype(np.float32)

    def filled(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(np.resize(some, leaf.shape), leaf.dtype), tree)

    def compiled(name: str, params: Any) -> Callable[[], Any]:
        call, (_, *shapes) = caller(name, side)
        rest = filled(shapes)
        run = jax.jit(call)
        jax.block_until_ready(run(params, *rest))
        return lambda: jax.block_until_ready(run(params, *rest))

    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    params = filled(caller("plain", side)[1][0])
    plain = compiled("plain", params)
    out: dict[str, dict[str, Any]] = {}
    for name in names:
        run = compiled(name, params)
        both = [(timed(plain), timed(run)) for _ in range(pairs)]
        ratio = statistics.median(b / a for a, b in both)
        out[name] = {"plain": [a for a, _ in both], "seconds": [b for _, b in both], "ratio": ratio}
        print(name, out[name], flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the chosen parts and writes them into the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("quality", "work", "time"), default=["quality", "work"])
    parser.add_argument("--pictures", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--side", type=int, default=512, metavar="PIXELS", help="of timed calls; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N", help="timed calls; default: %(default)s")
    others = [name for name in CALLS if name != "plain"]
    parser.add_argument("--calls", nargs="+", choices=others, default=others, help="timed calls; default: all")
    parser.add_argument("--again", action="store_true", help="measure rows of quality that are there already too")
    args = parser.parse_args(argv)
    results = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    results["device"] = device_name(jax.devices()[0])
    for part in args.parts:
        if part == "quality":
            of = {"pictures": args.pictures, "steps": STEPS}
            before = results.get("quality", {})
            same = before.items() >= of.items() and not args.again
            for rows in quality(args.pictures, before["rows"] if same else ()):
                results["quality"] = {**of, "rows": rows}
                write(results)
        elif part == "work":
            results["work"] = work()
        else:
            results["time"] = {"side": args.side, "calls": seconds(args.side, args.pairs, args.calls)}
        write(results)


def write(results: dict[str, Any]) -> None:
    """Writes the results."""
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
