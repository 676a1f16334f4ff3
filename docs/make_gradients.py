"""Guides pictures of the built-in model by a colour: gradients of a loss on the picture, of the starting noise.

    python docs/make_gradients.py

Writes docs/sheets/gradients.png and prints the losses, and the memory for 10 and 40 steps (docs/gradients.md).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from make_pictures import place

import sdjax
from sdjax.pictures.image import to_uint8
from sdjax.tasks.differentiable import Differentiable

FILE = Path(__file__).parent / "sheets" / "gradients.png"
PROMPT, SEED, STEPS = "a rocket on a green background", 1, 20
COLOURS = {"red": (1.0, -0.8, -0.8), "blue": (-0.8, -0.6, 1.0), "yellow": (1.0, 0.8, -0.8)}
ITERATIONS, SHOWN, LENGTH = 24, 6, 0.15  # LENGTH: of a move, as a share of the noise's own length


def loss(noise: jax.Array, run: Differentiable, colour: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean squared distance of the picture's pixels from a colour, and the picture."""
    image = run.replace(noise=noise).image()
    return jnp.mean((image - colour) ** 2), image


step = jax.jit(jax.value_and_grad(loss, has_aux=True))


def guide(run: Differentiable, name: str) -> list[np.ndarray]:
    """Returns the pictures on the way to a colour."""
    noise, colour, shown = run.noise, jnp.array(COLOURS[name]), []
    length = jnp.linalg.norm(noise)
    for i in range(ITERATIONS + 1):
        (value, image), gradient = step(noise, run, colour)
        if i % SHOWN == 0:
            shown.append(to_uint8(np.asarray(image[0])))
            print(f"{name}, iteration {i}: {float(value):.3f}", flush=True)
        noise = noise - LENGTH * length * gradient / jnp.linalg.norm(gradient)
        noise = noise * length / jnp.linalg.norm(noise)
    return shown


def main() -> None:
    """Makes and writes the sheet, and prints the memory."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    pipe = sdjax.load()
    devices = jax.devices()[:1]
    run = sdjax.differentiable(pipe, PROMPT, seed=SEED, num_steps=STEPS, devices=devices)
    FILE.write_bytes(place([guide(run, name) for name in COLOURS]))
    for steps in (10, 40):
        other = sdjax.differentiable(pipe, PROMPT, seed=SEED, num_steps=steps, devices=devices)
        compiled = step.lower(other.noise, other, jnp.array(COLOURS["red"])).compile()
        print(f"{steps} steps: {compiled.memory_analysis().temp_size_in_bytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
