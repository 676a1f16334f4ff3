"""The error of every sampler against the network's calls: on a mixture of Gaussians and on the built-in model.

    python benchmarks/samplers.py [--calls 6 10 16 24 40] [--only NAME ...]

Writes benchmarks/results/samplers.json and docs/sheets/sampler_errors.svg. Every sampler has its own settings and
schedule, with as many steps as fit into the number of calls.

On the mixture (three Gaussians of one pixel), the denoiser and the exact result are known: the probability flow keeps
quantiles. A sampler without noise has the root mean square of result - exact result. A sampler with noise makes other
pictures, so it has the distance of distributions: the same root mean square after sorting (Wasserstein-2), which is at
least about 0.01 for so many points. On the built-in model, only samplers without noise are measured, against 300 steps
of DPM-Solver++(2M), as the root mean square of the difference of latents over their deviation.
"""

import argparse
import functools
import json
import math
import pathlib
import platform
import xml.sax.saxutils

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

import sdjax
from sdjax.samplers import SAMPLERS, Coef, Sampler, Stateless, chunks, repeat, scan_rows
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.resolve import make_sampler

RESULTS = pathlib.Path(__file__).parent / "results"
PLOT = pathlib.Path(__file__).parents[1] / "docs" / "sheets" / "sampler_errors.svg"
CALLS = (6, 10, 16, 24, 40)
POINTS = 4096
WEIGHTS, MEANS, DEVIATIONS = (0.3, 0.5, 0.2), (-1.2, 0.4, 1.5), (0.25, 0.3, 0.15)
PROMPTS = ("a rocket on a green background", "a cat on a blue background")
REFERENCE, REFERENCE_STEPS = "dpmpp_2m", 300
NOISE = NoiseSchedule()
ALONE = ("lcm", "lcm_x0", "tcd", "dpm_solver_adaptive", "dpm_adaptive")  # for other weights, or with other counts


def denoise(x, row):
    """Returns E[x0 | x] of the mixture."""
    sigma = row.sigma.reshape(-1, 1) if jnp.ndim(row.sigma) else row.sigma
    x = x[..., None]
    w, m, s = (jnp.asarray(numbers) for numbers in (WEIGHTS, MEANS, DEVIATIONS))
    variance = s**2 + sigma**2
    posterior = jax.nn.softmax(jnp.log(w) - (x - m) ** 2 / (2 * variance) - jnp.log(variance) / 2, axis=-1)
    return jnp.sum(posterior * (s**2 * x + sigma**2 * m) / variance, axis=-1)


def exact(x, sigma):
    """Returns where the probability flow leads from x, [n], at noise sigma: the same quantile at no noise."""
    share = sum(w * ndtr((x - m) / math.hypot(s, sigma)) for w, m, s in zip(WEIGHTS, MEANS, DEVIATIONS))
    at = np.linspace(-4, 4, 200_001)
    table = sum(w * ndtr((at - m) / s) for w, m, s in zip(WEIGHTS, MEANS, DEVIATIONS))
    return np.interp(share, table, at)


@functools.partial(jax.jit, static_argnums=0)
def scan(rule, state, rows, keys):
    return scan_rows(rule, Stateless(denoise), state, rows, keys)


def fitting(name, calls, noise=NOISE):
    """Returns the sampler and its rows with the most steps that need at most so many calls, or None."""
    sampler = make_sampler(name, noise)
    for steps in range(calls + 1, 0, -1):
        try:
            rows = sampler.steps(noise, steps)
        except ValueError:
            continue
        if len(rows.index) <= calls:
            return sampler, steps, rows
    return None


def is_noisy(rows):
    """Returns whether the rows draw noise."""
    coef = rows.coef
    return isinstance(coef, Coef) and bool(np.any(coef.noise) or np.any(getattr(coef, "churn", 0)))


def on_mixture(name, calls):
    """Returns (calls, error, whether it draws noise) of a sampler on the mixture; None if it cannot be run so."""
    found = fitting(name, calls)
    if found is None:
        return None
    sampler, _, rows = found
    noise = np.random.default_rng(0).standard_normal(POINTS).astype(np.float32)[None]
    start = float(rows.sigma[0])
    x = np.asarray(sampler.initial(jnp.asarray(noise), rows)) / (
        math.hypot(1, start) if sampler.variance_preserving else start
    )
    true = start * x + sum(w * m for w, m in zip(WEIGHTS, MEANS))  # noise added to the mean: what a network expects
    state = sampler.rule.init(jnp.asarray(true))
    keys = jax.random.split(jax.random.key(1), 1)
    for part in chunks(rows, 10):
        state = scan(sampler.rule, state, repeat(part, 1), keys)
    last = float(rows.sigma_next[-1])
    got, want = np.asarray(state.x)[0], exact(true[0].astype(np.float64), start)
    if last > 0:  # the rest of the way is exact, so that the error is the sampler's
        got = exact(got.astype(np.float64), last)
    noisy = is_noisy(rows)
    difference = np.sort(got) - np.sort(want) if noisy else got - want
    return len(rows.index), float(np.sqrt(np.mean(difference**2))), noisy


def on_model(pipe, name, calls, reference):
    """Returns (calls, error) of a sampler without noise on the built-in model; None if it cannot be run so."""
    found = fitting(name, calls, pipe.schedule)
    if found is None or is_noisy(found[2]) or found[0].uses_unconditional:  # CFG++ makes another picture
        return None
    latents = np.asarray(latent(pipe, found[0], found[1]))
    return len(found[2].index), float(np.sqrt(np.mean((latents - reference) ** 2)) / np.std(reference))


def latent(pipe, sampler, steps):
    return sdjax.text_to_image(pipe, list(PROMPTS), seed=0, sampler=sampler, num_steps=steps, output="latent")


PANELS = (("mixture", "mixture of Gaussians, without noise"), ("noisy", "mixture of Gaussians, with noise"),
          ("model", "built-in model, without noise"))  # fmt: skip
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d5a97", "#e09f3e", "#3d405b", "#00a6a6", "#a23b72", "#6a994e", "#7f4f24")
WIDE, HIGH, LEFT, TOP = 420, 360, 52, 30


def plot(results):
    """Returns an SVG with a panel for each kind of error, both axes logarithmic, and the names in order of error."""
    out = []
    tallest = max(len(results[key]) for key, _ in PANELS)
    height = TOP + HIGH + 40 + 14 * tallest
    for number, (key, title) in enumerate(PANELS):
        curves = sorted(results[key].items(), key=lambda item: item[1][-1][1])
        if curves:
            out += panel(number * (WIDE + 20), title, curves)
    size = f'width="{3 * (WIDE + 20)}" height="{height}"'
    style = "text{font:11px sans-serif}polyline{fill:none;stroke-width:1.6}"
    body = "\n".join(out)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>\n<rect {size} fill="white"/>'
    return f"{head}\n{body}\n</svg>\n"


def panel(x, title, curves):
    """Returns the elements of one panel. `curves` are (name, [(calls, error), ...]), smallest error first."""
    calls = [point[0] for _, curve in curves for point in curve]
    errors = [max(point[1], 1e-6) for _, curve in curves for point in curve]
    low, high = 10 ** math.floor(math.log10(min(errors))), 10 ** math.ceil(math.log10(min(max(errors), 10)))
    first, last = min(calls), max(calls)

    def place(count, error):
        right = (math.log(count) - math.log(first)) / (math.log(last) - math.log(first) or 1)
        down = (math.log(high) - math.log(min(max(error, low), high))) / (math.log(high) - math.log(low))
        return x + LEFT + right * (WIDE - LEFT - 10), TOP + down * HIGH

    out = [f'<text x="{x + LEFT}" y="18" font-weight="bold">{title}</text>']
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        a, y = place(first, 10.0**power)
        b, _ = place(last, 10.0**power)
        out += [f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
                f'<text x="{a - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>']  # fmt: skip
    for count in sorted(set(calls)):
        if any(1 < other / count < 1.12 for other in calls):
            continue  # its label would touch the next one
        a, y = place(count, low)
        out.append(f'<text x="{a:.1f}" y="{y + 15:.1f}" text-anchor="middle">{count}</text>')
    out.append(
        f'<text x="{x + LEFT}" y="{TOP + HIGH + 30}">network calls; names from the smallest error at most calls</text>'
    )
    for number, (name, curve) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        dash = ("", ' stroke-dasharray="5 3"', ' stroke-dasharray="1 3"', ' stroke-dasharray="9 3 2 3"')[
            number // len(COLOURS) % 4
        ]
        points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve)
        y = TOP + HIGH + 44 + 14 * number
        label = xml.sax.saxutils.escape(f"{name}  {curve[-1][1]:.2g}")
        out += [f'<polyline points="{points}" stroke="{colour}"{dash}/>',
                f'<polyline points="{x + LEFT},{y - 4} {x + LEFT + 26},{y - 4}" stroke="{colour}"{dash}/>',
                f'<text x="{x + LEFT + 32}" y="{y}">{label}</text>']  # fmt: skip
    return out


def main():
    """Measures, and writes the results and the plot."""
    parser = argparse.ArgumentParser(description="Measures the error of every sampler against the network's calls.")
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS, metavar="N")
    parser.add_argument("--only", nargs="+", default=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "samplers.json", metavar="FILE")
    parser.add_argument("--plot", type=pathlib.Path, default=PLOT, metavar="FILE.svg")
    args = parser.parse_args()
    pipe = sdjax.load(dtype="float32")
    reference = np.asarray(latent(pipe, make_sampler(REFERENCE, pipe.schedule), REFERENCE_STEPS))
    results = {key: {} for key, _ in PANELS}
    for name in args.only:
        if name in ALONE or not isinstance(SAMPLERS[name](), Sampler):
            continue
        curve = [point for calls in args.calls if (point := on_mixture(name, calls)) is not None]
        if curve and all(math.isfinite(error) for _, error, _ in curve):
            kind = "noisy" if curve[-1][2] else "mixture"
            results[kind][name] = [(calls, float(f"{error:.3g}")) for calls, error, _ in curve]
        own = [point for calls in args.calls if (point := on_model(pipe, name, calls, reference)) is not None]
        if own:
            results["model"][name] = [(calls, float(f"{error:.3g}")) for calls, error in own]
        print(name, *(results[key].get(name) for key, _ in PANELS), flush=True)
    machine = {
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "sdjax": sdjax.__version__,
    }
    args.out.write_text(json.dumps({"settings": machine, **results}, indent=1) + "\n", encoding="utf-8")
    args.plot.write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
