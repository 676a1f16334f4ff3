"""Reports an evaluation: tables in Markdown, and one picture with samples and the curve over guidance scales."""

import textwrap
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from sdjax.train.builtin.evaluate import FigurePictures

TARGETS = {  # what the built-in model should reach
    ("reader", "background"): 0.99, ("reader", "subject"): 0.99,
    ("autoencoder", "background"): 0.97, ("autoencoder", "subject"): 0.97,
    ("held_out", "background"): 0.95, ("held_out", "subject_of_one"): 0.85,
}  # fmt: skip
_SETS = {
    "reader": "real pictures", "autoencoder": "real pictures through the autoencoder",
    "held_out": "pictures of held-out pairs", "trained": "pictures of trained pairs",
}  # fmt: skip
_MEASURES = {
    "background": "background", "subject": "subjects", "subject_of_one": "the subject of one",
    "subject_of_two": "each subject of two", "both_of_two": "both subjects of two",
}  # fmt: skip


def table(figures: dict[str, Any]) -> str:
    """Returns the figures as tables in Markdown."""
    lines = ["| read from | what is right | share | of | 95 % | wanted |", "|---|---|---|---|---|---|"]
    for part, name in _SETS.items():
        sampled = part in ("held_out", "trained")
        for measure in ("background", *(list(_MEASURES)[2:] if sampled else ["subject"])):
            target = TARGETS.get((part, measure))
            wanted = "" if target is None else f"{target:.0%}"
            lines.append(f"| {name} | {_MEASURES[measure]} | {_row(figures[part][measure])} | {wanted} |")
    lines += ["", "| steps | background | subject of one | read as with 50 | distance to 50, of that between prompts |"]
    lines += ["|---|---|---|---|---|"]
    for row in figures["steps"]:
        lines.append(
            f"| {row['steps']} | {_percent(row['background'])} | {_percent(row['subject_of_one'])} | "
            f"{_percent(row['read_alike'])} | {row['ratio']:.1%} |"
        )
    lines += ["", "| guidance scale | background | subject of one | each subject of two |", "|---|---|---|---|"]
    for row in figures["scales"]:
        cells = " | ".join(_percent(row[name]) for name in ("background", "subject_of_one", "subject_of_two"))
        lines.append(f"| {row['scale']} | {cells} |")
    seeds = figures["seeds"]
    lines += [
        "",
        f"Pictures of one prompt from other seeds differ by {seeds['distance_between_seeds']:.1f} levels of 255 "
        f"(at least {seeds['least_distance_between_seeds']:.1f}), pictures of other prompts by "
        f"{seeds['distance_between_prompts']:.1f}: a ratio of {seeds['ratio']:.2f}.",
    ]
    return "\n".join(lines)


def _percent(share: dict[str, Any]) -> str:
    return "" if share["share"] is None else f"{share['share']:.1%}"


def _row(share: dict[str, Any]) -> str:
    if share["share"] is None:
        return " | 0 | "
    return f"{_percent(share)} | {share['count']} | {share['low']:.1%} to {share['high']:.1%}"


CELL = 112  # pixels of a sample's side in the plate
GAP = 8
CAPTION = 30  # pixels below a sample, for two lines of text
WIDTH = GAP + 10 * (CELL + GAP)
CURVES = {"background": (46, 92, 214), "subject_of_one": (214, 40, 46), "subject_of_two": (246, 140, 28)}
INK, FAINT, WRONG = (40, 40, 40), (205, 205, 205), (214, 40, 46)


def plate(figures: dict[str, Any], samples: FigurePictures) -> UInt8[np.ndarray, "h w 3"]:
    """Returns one picture, uint8 [h, WIDTH, 3], that shows samples and accuracy over guidance scales.

    It shows samples of held-out pairs, with a red frame around those that were read as something else. Below them is
    one prompt with several seeds, steps and scales, and the curve.
    """
    prompts, few = samples.prompts, len(samples.seeds)
    texts = [prompt.text for prompt in prompts]
    shown = range(min(40, len(prompts)))
    strips = [
        _strip("Pairs of subject and colour that were held out (red: not read as asked for)",
               samples.pictures[: len(shown)], texts, [not samples.right[i] for i in shown])
    ]  # fmt: skip
    rows = min(5, few)
    of_seeds = [samples.seeds[i, k] for i in range(rows) for k in (0, 1)]
    strips.append(_strip("Other seeds", of_seeds, [text for text in texts[:rows] for _ in (0, 1)]))
    names, pictures = [], []
    for i in range(min(3, few)):
        for n, made in samples.steps.items():
            names.append(f"{n} steps: {texts[i]}")
            pictures.append(made[i])
    strips.append(_strip("Numbers of steps", pictures, names))
    for i in range(min(2, few)):
        pictures = [made[i] for made in samples.scales.values()]
        strips.append(_strip(f"Guidance scales: {texts[i]}", pictures, [str(scale) for scale in samples.scales]))
    strips.append(_curve(figures["scales"]))
    return np.concatenate([np.asarray(strip) for strip in strips])


def _strip(title: str, pictures: Any, texts: list[str], framed: list[bool] | None = None) -> PillowImage.Image:
    """Returns pictures side by side, ten in a row, each with its text below."""
    columns = (WIDTH - GAP) // (CELL + GAP)
    rows = -(-len(pictures) // columns)
    canvas = PillowImage.new("RGB", (WIDTH, 24 + rows * (CELL + CAPTION + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 4), title, INK, ImageFont.load_default(14))
    for i, picture in enumerate(pictures):
        left, top = GAP + i % columns * (CELL + GAP), 24 + i // columns * (CELL + CAPTION + GAP)
        if framed is not None and framed[i]:
            draw.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), WRONG)
        canvas.paste(PillowImage.fromarray(picture).resize((CELL, CELL), PillowImage.Resampling.LANCZOS), (left, top))
        lines = textwrap.wrap(texts[i], 22)[:2]
        draw.text((left, top + CELL + 3), "\n".join(lines), INK, ImageFont.load_default(10), spacing=2)
    return canvas


def _curve(scales: list[dict[str, Any]]) -> PillowImage.Image:
    """Returns the plot of shares over guidance scales."""
    canvas = PillowImage.new("RGB", (WIDTH, 300), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    draw.text((GAP, 4), "Share that is read as asked for, by guidance scale", INK, ImageFont.load_default(14))
    left, top, right, bottom = 60, 40, WIDTH - 220, 260
    first, last = scales[0]["scale"], scales[-1]["scale"]

    def place(scale: float, value: float) -> tuple[float, float]:
        return left + (scale - first) / (last - first) * (right - left), bottom - value * (bottom - top)

    for tenth in range(0, 11, 2):
        y = place(first, tenth / 10)[1]
        draw.line((left, y, right, y), FAINT)
        draw.text((left - 8, y), f"{tenth * 10} %", INK, font, anchor="rm")
    for row in scales:
        draw.text((place(row["scale"], 0)[0], bottom + 8), str(row["scale"]), INK, font, anchor="mt")
    for k, (name, colour) in enumerate(CURVES.items()):
        points = [place(row["scale"], row[name]["share"]) for row in scales if row[name]["share"] is not None]
        draw.line(points, colour, 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        draw.line((right + 20, top + 10 + 20 * k, right + 40, top + 10 + 20 * k), colour, 2)
        draw.text((right + 48, top + 10 + 20 * k), _MEASURES[name], INK, font, anchor="lm")
    return canvas
