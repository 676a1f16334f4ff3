"""What less work a step costs in quality and gains in work and time: DeepCache, T-GATE, token merging and others.

    python benchmarks/less_work.py                         # quality and work: half an hour on two cores
    python benchmarks/less_work.py --parts builtin sd1     # times: minutes on two cores with nothing else to do

Quality is measured with the built-in model: the share of pictures that `sdjax evaluate-builtin`'s reader finds right,
and the mean difference from the plain picture of the same seed. Work is the number of multiplications with additions
in the UNet's products, of single calls and of whole pictures, counted from the traced program; XLA's own count takes a
loop, such as attention's, once. Times are those of whole pictures, in turns with plain ones: of the built-in model
("builtin"), and of Stable Diffusion 1 with random weights at 512 x 512 ("sd1", which needs 8 GB of memory). There two
steps are enough, one of each kind: the ratios are those of pictures whose steps are half of the one kind, half of the
other. The text encoder is part of each time, and the decoder of the built-in model's.

Results go to benchmarks/results/less_work.json; `docs/make_less_work.py` makes the page's tables of them.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax import configs
from sdjax.adapters import DeepCache, TGate, make_settings, patched
from sdjax.adapters.deep_cache import plan
from sdjax.adapters.memory import Moment, Recall, Remembering
from sdjax.adapters.spans import Run
from sdjax.config import UNetConfig
from sdjax.evaluate.benchmark import device_name, random_model
from sdjax.nn import UNet
from sdjax.train.builtin import emoji, evaluate
from sdjax.train.builtin.reader import Reader

OUT = Path(__file__).parent / "results" / "less_work.json"
STEPS = 50
SIDES = (512, 1024)  # pixels
BATCH = 8  # timed pictures of the built-in model
SD1_DTYPE = "bfloat16"  # of the timed full-size model
ROUNDS = {"builtin": 7, "sd1": 3}
Kind: TypeAlias = tuple[str | None, bool, int]  # of a call: patch, whether its memory stands in for work, branches

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
# What is timed at full size
TWO_STEPS: dict[str, dict[str, Any]] = {
    "`deep_cache:interval=2`": {"patches": ["deep_cache:interval=2"]},
    "`t_gate:gate=0.5`": {"patches": ["t_gate:gate=0.5"]},
    "guidance `interval`, `stop=0.5`": {"guidance": "interval", "guidance_options": {"stop": 0.5}},
    "`token_merging:ratio=0.5`": {"patches": ["token_merging:ratio=0.5"]},
    "`token_downsampling:factor=2`": {"patches": ["token_downsampling:factor=2"]},
    "`hypertile:tile_size=256,swap_size=1`": {"patches": ["hypertile:tile_size=256,swap_size=1"]},
}
# Calls of the full-size network
CALLS: dict[str, Kind] = {
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
        pictures = evaluate.make_pictures(pipe, **{"num_steps": STEPS, **options})(texts, seeds)
        plain = pictures if plain is None else plain
        readings = evaluate.read(reader, pictures, prompts)
        right = sum(evaluate.is_right(*pair) for pair in zip(readings, prompts, strict=True))
        share = evaluate.share(right, count)
        rows.append({"name": name, **share, "distance": evaluate.distance(pictures, plain)})
        print(rows[-1], flush=True)
        yield rows


def caller(kind: Kind, config: UNetConfig, size: int) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """Returns a call of a network for latents of size x size, and the shapes of its arguments."""
    text, from_memory, branches = kind
    x = jax.ShapeDtypeStruct((branches, size, size, config.in_channels), jnp.float32)
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


@functools.cache
def count(kind: Kind, config: UNetConfig, size: int) -> int:
    """Returns the multiplications of a call."""
    call, shapes = caller(kind, config, size)
    return products(jax.make_jaxpr(call)(*shapes).jaxpr)


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
        for name, kind in CALLS.items():
            out[str(side)][name] = count(kind, configs.get("sd1").unet, side // 8)
            print(side, name, f"{out[str(side)][name] / 1e9:.0f} G", flush=True)
    return out


def calls_of(options: dict[str, Any]) -> list[tuple[int, Kind]]:
    """Returns the calls that a picture of QUALITY takes: how many of which kind."""
    steps = options.get("num_steps", STEPS)
    (patch,) = options.get("patches", [None])
    (setting,) = make_settings(patch) or (None,)
    if isinstance(setting, DeepCache):
        whole = len(plan(steps, setting.interval, setting.center, setting.power))
        return [(whole, (None, False, 2)), (steps - whole, (f"deep_cache:branch={setting.branch}", True, 2))]
    if isinstance(setting, TGate):
        before = int(setting.gate * steps)
        return [(before, (None, False, 2)), (steps - before, (patch, True, 1))]
    if options.get("guidance") == "interval":
        before = int(options["guidance_options"]["stop"] * steps)
        return [(before, (None, False, 2)), (steps - before, (None, False, 1))]
    return [(steps, (patch, False, 2))]


def work_of_pictures() -> dict[str, dict[str, float]]:
    """Returns the share of the plain picture's multiplications in the UNet, of each way to make one, by model."""
    out: dict[str, dict[str, float]] = {}
    networks = {"builtin": sdjax.load().config, "sd1": configs.get("sd1")}
    for name, config in networks.items():
        size = config.image_size // config.vae.factor
        plain = STEPS * count((None, False, 2), config.unet, size)
        out[name] = {
            row: sum(n * count(kind, config.unet, size) for n, kind in calls_of(options)) / plain
            for row, options in QUALITY.items()
            if name == "builtin" or "tile_size=32" not in row  # a tile of 32 pixels is one for small pictures
        }
        print(name, out[name], flush=True)
    return out


def timed(make: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Returns the seconds of each way to make pictures, and the median, least and greatest ratio to the plain one.

    In each round all take their turn, and a ratio is of two of one round. Every second round goes backwards.
    """
    taken: dict[str, list[float]] = {name: [] for name in make}
    for name, run in make.items():  # compiles
        start = time.perf_counter()
        run()
        print(f"{name}: first time {time.perf_counter() - start:.1f} s", flush=True)
    for i in range(rounds):
        for name in list(make)[:: -1 if i % 2 else 1]:
            start = time.perf_counter()
            make[name]()
            taken[name].append(time.perf_counter() - start)
        print(f"round {i + 1}", {name: round(several[-1], 2) for name, several in taken.items()}, flush=True)
    out: dict[str, dict[str, Any]] = {}
    for name, several in taken.items():
        shares = [own / plain for own, plain in zip(several, taken["plain"], strict=True)]
        out[name] = {"seconds": several, "ratio": statistics.median(shares), "low": min(shares), "high": max(shares)}
    return out


def time_builtin(rounds: int) -> dict[str, Any]:
    """Returns the times of batches of pictures of the built-in model, made in each way of QUALITY."""
    pipe = sdjax.load()

    def ready(options: dict[str, Any]) -> Callable[[], Any]:
        settings = {"num_steps": STEPS, "seed": 0, "num_images": BATCH, **options}
        return lambda: sdjax.text_to_image(pipe, "a cat on a blue background", **settings)

    ways = {"plain": {}, **QUALITY}
    return {"pictures": BATCH, "steps": STEPS, "rows": timed({name: ready(own) for name, own in ways.items()}, rounds)}


def time_sd1(rounds: int) -> dict[str, Any]:
    """Returns the times of latents of Stable Diffusion 1's size with random weights, made in each way of TWO_STEPS."""
    pipe = random_model(configs.get("sd1"), SD1_DTYPE)

    def ready(options: dict[str, Any]) -> Callable[[], Any]:
        settings = {"num_steps": 2, "seed": 0, "output": "latent", **options}
        return lambda: sdjax.text_to_image(pipe, "a cat on a blue background", **settings)

    ways = {"plain": {}, **TWO_STEPS}
    rows = timed({name: ready(own) for name, own in ways.items()}, rounds)
    return {"side": 512, "steps": 2, "dtype": SD1_DTYPE, "rows": rows}


TIMED = {"builtin": time_builtin, "sd1": time_sd1}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the chosen parts and writes them into the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("quality", "work", *TIMED), default=["quality", "work"])
    parser.add_argument("--pictures", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"of timed pictures; default: {ROUNDS}")
    parser.add_argument("--again", action="store_true", help="measure rows of quality that are there already too")
    args = parser.parse_args(argv)
    results = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    for part in args.parts:
        if part == "quality":
            of = {"pictures": args.pictures, "steps": STEPS}
            before = results.get("quality", {})
            same = before.items() >= of.items() and not args.again
            for rows in quality(args.pictures, before["rows"] if same else ()):
                results["quality"] = {**of, "rows": rows}
                write(results)
        elif part == "work":
            results["work"], results["work_of_pictures"] = work(), work_of_pictures()
        else:
            found = TIMED[part](ROUNDS[part] if args.rounds is None else args.rounds)
            results.setdefault("time", {})[part] = {"device": device_name(jax.devices()[0]), **found}
        write(results)


def write(results: dict[str, Any]) -> None:
    """Writes the results."""
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
