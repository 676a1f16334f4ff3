"""Makes the sheet and the tables of docs/less-work.md: pictures of the built-in model, and the benchmark's results.

python docs/make_less_work.py            # the sheet and the tables
python docs/make_less_work.py --tables   # the tables alone, from benchmarks/results/less_work.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from make_pictures import place
from PIL import Image

import sdjax

HERE = Path(__file__).parent
PAGE, SHEET = HERE / "less-work.md", HERE / "sheets" / "less-work.png"
RESULTS = HERE.parent / "benchmarks" / "results" / "less_work.json"
START, END = "<!-- {} -->\n", "<!-- end -->\n"
STEPS = 50
PROMPTS = ("a cat on a blue background", "a strawberry on a white background", "a fox and a mushroom")
SCALE, GAP = 2, 2  # of the sheet's pictures
COLUMNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "`deep_cache:interval=3,branch=1`": {"patches": ["deep_cache:interval=3,branch=1"]},
    "`t_gate:gate=0.6`": {"patches": ["t_gate:gate=0.6"]},
    "guidance `interval`, `stop=0.5`": {"guidance": "interval", "guidance_options": {"stop": 0.5}},
    "`token_merging:ratio=0.25`": {"patches": ["token_merging:ratio=0.25"]},
    "`token_downsampling:factor=2`": {"patches": ["token_downsampling"]},
    "`hypertile:tile_size=32,swap_size=1`": {"patches": ["hypertile:tile_size=32,swap_size=1"]},
}


def sheet() -> bytes:
    """Returns the pictures: a row for each prompt, a column for each method."""
    pipe = sdjax.load()
    columns = [
        sdjax.text_to_image(pipe, list(PROMPTS), seed=[0] * len(PROMPTS), num_steps=STEPS, **options)
        for options in COLUMNS.values()
    ]
    return place([[column[i] for column in columns] for i in range(len(PROMPTS))], SCALE)


def differences(sheet: np.ndarray) -> list[float]:
    """Returns the mean difference of each column of the sheet from the first one, in levels of 255."""
    side = (sheet.shape[1] + GAP) // len(COLUMNS)
    columns = [sheet[:, i * side : (i + 1) * side - GAP].astype(np.int16) for i in range(len(COLUMNS))]
    used = np.arange(sheet.shape[0]) % side < side - GAP
    return [float(np.abs(column - columns[0])[used].mean()) for column in columns]


def table(rows: list[list[str]]) -> str:
    """Returns a table in Markdown. The first row is its head."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Returns the tables of the page by their marks."""
    found = results["quality"]
    counted, timed = results["work_of_pictures"], results.get("time", {})
    heads = ["", f"right, of {found['pictures']} pictures", "95 % interval", "difference, levels of 255"]
    quality = [
        [*heads, "work", "work in Stable Diffusion 1", *(["time"] if {"builtin", "sd1"} <= timed.keys() else [])]
    ]
    for row in found["rows"]:
        plain = row["name"] == "plain"
        name = f"plain, {found['steps']} steps" if plain else row["name"]
        ends = f"{row['low']:.0%} to {row['high']:.0%}"
        shares = [1.0 if plain else counted[model].get(row["name"]) for model in ("builtin", "sd1")]
        cells = ["" if share is None else f"{share:.0%}" for share in shares]
        times = [as_ratio(timed["builtin"]["rows"][row["name"]])] if len(quality[0]) > 6 else []
        quality.append([name, f"{row['share']:.0%}", ends, f"{row['distance']:.1f}", *cells, *times])
    sides = list(results["work"])
    heads = [f"{side} x {side}, work in 10⁹" for side in sides]
    work = [["a call", *heads]]
    for name in results["work"][sides[0]]:
        counts = []
        for side in sides:
            own, plain = (results["work"][side][which] for which in (name, "plain"))
            counts.append(f"{own / 1e9:,.0f} ({own / plain:.0%})")
        work.append([name, *counts])
    shown = np.asarray(Image.open(SHEET).convert("RGB"))
    rows = [[name, f"{value:.1f}"] for name, value in zip(COLUMNS, differences(shown), strict=True)]
    sheet_table = table([["", "difference, levels of 255"], *rows[1:]])
    made = {"quality": table(quality), "sheet": sheet_table, "work": table(work)}
    if {"builtin", "sd1"} <= timed.keys():
        made["time"] = time_text(timed["builtin"], timed["sd1"])
    return made


TIMES = """\
The times above are those of {pictures} pictures of the built-in model at once, {steps} steps each ({device}). All ways
took their turn in each of {rounds} rounds. A time is the median of its ratios to the plain pictures of the same round,
with the least and the greatest ratio. Below are those of a full-size Stable Diffusion 1 with random weights at
{side} x {side} in {dtype}, {sd1_rounds} rounds. It makes two steps: one whole call and one between for DeepCache, one
before and one after the end of guidance. The decoder is not part of it.

"""


def time_text(builtin: dict[str, Any], sd1: dict[str, Any]) -> str:
    """Returns how times were measured, and the table of the full-size model."""
    rounds, sd1_rounds = (len(one["rows"]["plain"]["seconds"]) for one in (builtin, sd1))
    text = TIMES.format(**{**sd1, **builtin, "rounds": rounds, "sd1_rounds": sd1_rounds})
    rows = [[name, as_ratio(row)] for name, row in sd1["rows"].items() if name != "plain"]
    return text + table([["a picture of two steps", "time, of the plain one's"], *rows])


def as_ratio(row: dict[str, Any]) -> str:
    """Returns a ratio to the plain picture's time: the median, and the least and greatest."""
    return f"{row['ratio']:.0%} ({row['low']:.0%} to {row['high']:.0%})"


def replaced(text: str, made: dict[str, str]) -> str:
    """Returns the page with the tables between their marks replaced."""
    for kind, one in made.items():
        before, mark, rest = text.partition(START.format(kind))
        _, end, after = rest.partition(END)
        text = before + mark + one + end + after
    return text


def main() -> None:
    """Writes the tables and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="write the tables alone")
    args = parser.parse_args()
    if not args.tables:
        SHEET.write_bytes(sheet())
    made = tables(json.loads(RESULTS.read_text(encoding="utf-8")))
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
