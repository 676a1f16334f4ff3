"""Draws what the options of a training do to the weights of timesteps and to the learning rate.

    python docs/make_training_curves.py

Writes docs/sheets/training_curves.svg (docs/coming-from/kohya.md).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ScheduleConfig
from sdjax.schedule import NoiseSchedule
from sdjax.train.objectives.diffusion import DiffusionObjective
from sdjax.train.objectives.weighting import timestep_weights
from sdjax.train.optim import OptimConfig, learning_rate

FILE = Path(__file__).parent / "sheets" / "training_curves.svg"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#887700")
WIDTH, HEIGHT, LEFT, TOP = 300, 190, 46, 26  # of one plot, and of its margins, in pixels
POINTS = 101

LOSSES = {
    "plain": {}, "gamma=5.0": {"gamma": 5.0}, "debiased": {"debiased": True},
    "gamma=5.0, debiased": {"gamma": 5.0, "debiased": True}, "v_like=0.1": {"v_like": 0.1},
}  # fmt: skip
RATES = {
    "constant, cooldown=200": {"cooldown": 200}, "linear": {"decay": "linear"}, "cosine": {"decay": "cosine"},
    "cosine_with_restarts, cycles=3": {"decay": "cosine_with_restarts", "cycles": 3},
    "polynomial, power=2.0": {"decay": "polynomial", "power": 2.0},
}  # fmt: skip


def weights(**settings: float | bool) -> np.ndarray:
    """Returns the weights of epsilon's error at the timesteps of Stable Diffusion v1."""
    return timestep_weights(NoiseSchedule(ScheduleConfig()), DiffusionObjective(**settings), "epsilon")


def rates(**settings: float | str) -> np.ndarray:
    """Returns the learning rate of 1000 steps as a share of the full one."""
    rate = learning_rate(OptimConfig(steps=1000, learning_rate=1.0, warmup=100, **settings))
    return np.asarray(jax.vmap(rate)(jnp.arange(1000)))


def plot(curves: Mapping[str, np.ndarray], title: str, below: str, x: int, most: float) -> str:
    """Returns a plot's SVG elements. Values lie between 0 and `most`; higher ones are cut."""
    right, bottom = x + LEFT + WIDTH, TOP + HEIGHT
    parts = [f'<text x="{x + LEFT}" y="16" class="title">{title}</text>']
    for share in (0, 0.5, 1):
        y = bottom - share * HEIGHT
        parts.append(f'<path d="M{x + LEFT} {y}H{right}" class="grid"/>')
        parts.append(f'<text x="{x + LEFT - 6}" y="{y + 4}" text-anchor="end">{share * most:g}</text>')
        at = x + LEFT + share * WIDTH
        parts.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{round(share * 1000)}</text>')
    parts.append(f'<text x="{x + LEFT + WIDTH / 2}" y="{bottom + 32}" text-anchor="middle">{below}</text>')
    for i, (name, values) in enumerate(curves.items()):
        which = np.linspace(0, len(values) - 1, POINTS).round().astype(int)
        places = [
            f"{x + LEFT + WIDTH * n / 1000:.0f} {bottom - HEIGHT * min(values[n], most) / most:.1f}" for n in which
        ]
        parts.append(f'<path d="M{"L".join(places)}" stroke="{COLOURS[i]}" class="curve"/>')
        y = bottom + 54 + 16 * i
        parts.append(f'<path d="M{x + LEFT} {y - 4}h18" stroke="{COLOURS[i]}" class="curve"/>')
        parts.append(f'<text x="{x + LEFT + 26}" y="{y}">{name}</text>')
    return "\n".join(parts)


def main() -> None:
    """Draws and writes the file."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    losses = {name: weights(**settings) for name, settings in LOSSES.items()}
    falling = {name: rates(**settings) for name, settings in RATES.items()}
    size = f'width="{2 * (LEFT + WIDTH) + 20}" height="{TOP + HEIGHT + 130}"'
    style = "text{font:12px sans-serif}.title{font-weight:bold}.grid{stroke:#ddd}.curve{fill:none;stroke-width:1.8}"
    body = plot(losses, "Weight of an error of epsilon", "timestep", 0, 3.0)
    body += "\n" + plot(falling, "Learning rate, as a share of the full one", "step", LEFT + WIDTH + 10, 1.0)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>\n<rect {size} fill="white"/>'
    FILE.write_text(f"{head}\n{body}\n</svg>\n", encoding="utf-8")


if __name__ == "__main__":
    main()
