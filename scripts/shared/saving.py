"""Steps before and after pictures are written: the watermark, the safety checker, the grid."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.scripts.shared.made import Made
from sdjax.tasks import recording
from sdjax.tasks.recording import texts

AUTO, OFF = "auto", "off"  # values of --safety-checker that are no paths


def check_watermark(text: str | None) -> None:
    """Raises ValueError for a watermark that cannot be written. Call it before work begins."""
    if text is not None and not text:
        raise ValueError("--watermark needs at least one character; got an empty text")


def check_outdir(folder: str | Path, side: int = 0) -> None:
    """Raises OSError if a picture of this side could not be written into the folder. Does not make the folder."""
    from sdjax.storage import files

    files.check_folder(Path(folder), "writing pictures into", 3 * side**2)


def mark(pixels: Any, text: str | None) -> Any:
    """Returns the picture, uint8 [h, w, 3], with the watermark; unchanged without a watermark or if it does not fit.

    If it does not fit, a note on standard error says so.
    """
    if text is None:
        return pixels
    from sdjax.pictures import watermark

    try:
        return watermark.embed(pixels, text)
    except ValueError as error:
        print(f"note: no watermark was written: {error}", file=sys.stderr)
        return pixels


def find_checker(choice: str, model: Path, *, on_hub: bool) -> str | None:
    """Returns the path of the checker that --safety-checker names (`auto`: the model's own); None if there is none.

    The hub's cache is not searched: its contents depend on earlier downloads.
    """
    from sdjax.tasks import safety

    if choice == OFF or (choice == AUTO and on_hub):
        return None
    if choice != AUTO:
        return choice
    found = safety.beside(model)
    return None if found is None else str(found)


def load_checker(path: Path, *, found: bool) -> Any:
    """Returns the safety checker, which computes in float32 like the references'. If it was `found`, a note says so.

    Raises sdjax.convert.CheckpointError if the path is not a safety checker.
    """
    import sdjax
    from sdjax.convert import CheckpointError

    if not found:
        return sdjax.SafetyChecker.load(path, dtype="float32")
    try:
        checker = sdjax.SafetyChecker.load(path, dtype="float32")
    except CheckpointError as error:
        raise CheckpointError(f"{error} (it is part of the model; --safety-checker off skips it)") from error
    print(
        f"note: pictures are checked by {path}, which is part of the model (--safety-checker off skips this)",
        file=sys.stderr,
    )
    return checker


def censor(checker: Any, pixels: Sequence[Any], names: Sequence[str]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Returns the pictures, uint8 [h, w, 3], with a notice in place of each flagged one, and all verdicts.

    Prints on standard error which of the `names` were flagged.
    """
    shown, verdict = checker.censor(pixels)
    for name, flag in zip(names, verdict.flags, strict=True):
        if flag:
            print(f"note: {name} was flagged by the safety checker; a notice replaces it", file=sys.stderr)
    verdicts = [
        {"flagged": bool(flag), "concepts": _rounded(concepts), "special": _rounded(special)}
        for flag, concepts, special in zip(*verdict, strict=True)
    ]
    return shown, verdicts


def _rounded(scores: Any) -> list[float]:
    return [round(float(score), 3) for score in scores]  # to three decimals, as the checker rounds them itself


def save_grid(folder: Path, made: Sequence[Made], columns: int, watermark: str | None = None) -> Path:
    """Writes the grid and returns its path. It has the first `parameters` and each picture's own settings."""
    import numpy as np

    from sdjax.pictures import image

    first = made[0].description
    own: list[str] = [key for key in ("prompt", "seed", "init_img", "mask", "safety") if key in first]
    own += ["expanded_prompt", "expanded_negative_prompt"]
    pictures = [{key: one.description[key] for key in own if key in one.description} for one in made]
    shared = {key: value for key, value in first.items() if key not in (*own, "batch")}
    plain = image.grid(np.stack([one.picture for one in made]), columns)
    pixels = mark(plain, watermark)  # the pictures in the grid are unmarked
    if pixels is not plain:
        shared["watermark"] = watermark
    chunks = texts(first) | {"sdjax": recording.to_json({"grid": {"columns": columns, "pictures": pictures}, **shared})}
    return image.save_numbered(folder, pixels, chunks, prefix="grid-", digits=4)
