"""What token merging costs in quality on the built-in model, and what it saves in a full-size attention layer.

    python benchmarks/token_merging.py

Quality is the mean absolute difference, in levels of 255, from the picture of the same prompt and seed without merging.
Two differences of other kinds stand beside it: between 20 and 50 steps, and between two seeds. Time is that of the
self-attention of Stable Diffusion 1's first level with merging, for maps of pictures of 512 x 512 and 1024 x 1024.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from sdjax.adapters import TokenMerging
from sdjax.adapters.token_merging import match, merge, targets, unmerge
from sdjax.nn.layers.multihead import Attention
from sdjax.train.builtin.evaluate import distance, draw_prompts

RATIOS = (0.1, 0.25, 0.5, 0.75)
STEPS = 20
WIDTH, HEADS = 320, 8  # of Stable Diffusion 1's first level
SIDES = (64, 128)  # of its maps
REPEATS = 3


def quality(count: int) -> list[tuple[str, float]]:
    """Returns the mean difference from `count` plain pictures of each ratio, and of two comparisons."""
    pipe, prompts = sdjax.load(), [prompt.text for prompt in draw_prompts(0, count, held_out=False)]

    def make(seed: int = 0, **options: object) -> np.ndarray:
        return sdjax.text_to_image(pipe, prompts, seed=seed, **{"num_steps": STEPS, **options})

    plain = make()
    rows = [(f"{ratio:.0%} merged", distance(make(patches=[TokenMerging(ratio)]), plain)) for ratio in RATIOS]
    rows.append((f"{STEPS} and 50 steps", distance(make(num_steps=50), plain)))
    return [*rows, ("two seeds", distance(make(seed=count), plain))]


def seconds(side: int, ratio: float) -> float:
    """Returns the time of one attention layer over a map of side x side, of two branches; the best of REPEATS."""
    layer = Attention(HEADS, biased=False)
    x = jax.random.normal(jax.random.key(0), (2, side * side, WIDTH))
    params = layer.init(jax.random.key(1), x[:, :4])

    @jax.jit
    def run(x: jax.Array, t: jax.Array) -> jax.Array:
        if not ratio:
            return layer.apply(params, x)
        joins = match(x, targets(t, (side, side)), side * side // 4, int(ratio * side * side))
        return unmerge(layer.apply(params, merge(x, joins)), joins)

    t, times = jnp.full(2, 500.0), []
    jax.block_until_ready(run(x, t))
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run(x, t))
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24, metavar="N", help="default: %(default)s")
    args = parser.parse_args()
    print(f"| | difference, levels ({args.pictures} pictures) |\n|---|---|")
    for name, value in quality(args.pictures):
        print(f"| {name} | {value:.2f} |")
    print(f"\n| merged | {' | '.join(f'{8 * side} x {8 * side}, ms' for side in SIDES)} |\n|---|---|---|")
    for ratio in (0.0, *RATIOS):
        print(f"| {ratio:.0%} | {' | '.join(f'{1000 * seconds(side, ratio):.0f}' for side in SIDES)} |", flush=True)


if __name__ == "__main__":
    main()
