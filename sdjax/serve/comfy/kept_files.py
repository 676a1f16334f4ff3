"""Files that a graph writes beside pictures: latents and checkpoints, each kind in a folder of its own, numbered.

Names from a graph never become paths: what is no letter or digit is replaced.
"""

from collections.abc import Callable
from pathlib import Path

from sdjax.pictures.image import new_numbered

LONGEST_STEM = 150  # bytes of a name without its number
MOST_LISTED = 1000
LATENTS, CHECKPOINTS = "latents", "checkpoints"  # folders
LATENT = ".latent"


def stem(prefix: str, otherwise: str = "ComfyUI") -> str:
    """Returns the beginning of a file's name from what a graph asks for."""
    name = "".join(one if one.isalnum() or one in "-_ ." else "_" for one in prefix)
    return name.encode()[:LONGEST_STEM].decode(errors="ignore").strip(" .") or otherwise


def keep(outputs: Path, folder: str, prefix: str, suffix: str, write: Callable[[Path], None]) -> dict[str, str]:
    """Has a new file written into a folder of the outputs, and returns {"filename", "subfolder", "type"}.

    `write(path)` raises FileExistsError if the path is taken. Nothing is overwritten.
    """
    prefix = f"{stem(prefix.removeprefix(f'{folder}/'))}_"
    made = new_numbered(outputs / folder, suffix, write, prefix=prefix)
    return {"filename": made.name, "subfolder": folder, "type": "output"}


def is_latent(name: str) -> bool:
    """Returns whether a name that a graph uses, perhaps with " [output]", is that of a latent's file."""
    return name.removesuffix(" [output]").removesuffix(" [input]").endswith(LATENT)


def written_latents(outputs: Path) -> list[str]:
    """Returns the latents among the outputs, "latents/NAME", the first thousand by name."""
    folder = outputs / LATENTS
    found = sorted(path.name for path in folder.glob(f"*{LATENT}")) if folder.is_dir() else []
    return [f"{LATENTS}/{name}" for name in found[:MOST_LISTED]]


def written_latent(outputs: Path, name: str, most: int) -> bytes:
    """Returns the content of a latent among the outputs. Raises KeyError if there is none of at most `most` bytes."""
    folder, _, plain = name.rpartition("/")
    if folder != LATENTS or stem(plain) != plain or not plain.endswith(LATENT):
        raise KeyError(name)
    path = outputs / LATENTS / plain
    if not path.is_file() or path.stat().st_size > most:
        raise KeyError(name)
    return path.read_bytes()
