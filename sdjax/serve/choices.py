"""What a request can choose from: files, samplers, schedules and so on, and what the current model does by default."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jax

from sdjax import names, preprocessors
from sdjax._version import __version__
from sdjax.adapters.table import PATCHES
from sdjax.checks.arguments import shown
from sdjax.diffusion.rules import GUIDANCE
from sdjax.noise import NOISE_SOURCES
from sdjax.pictures import open_picture, resize
from sdjax.pictures.image import encode_png
from sdjax.prompts.chunks import Encoder
from sdjax.prompts.language import Language
from sdjax.prompts.tokenizer import Tokenizer
from sdjax.serve.engine.options import BUILT_IN_CONTROLS
from sdjax.serve.engine.tasks import FILTERS
from sdjax.serve.library import KINDS, Entry, Library, UnknownFile
from sdjax.tasks.compat import TOOLS
from sdjax.tasks.resolve import USUAL_SAMPLER
from sdjax.tasks.two_pass import UPSCALES

if TYPE_CHECKING:
    from sdjax.serve.server import Server

CARDS = (".preview.png", ".png", ".preview.jpg", ".jpg", ".preview.webp", ".webp")  # pictures beside a file
CARD_SIDE = 384  # pixels
FLAWED = "the picture beside the file cannot be shown"
_lock = threading.Lock()


def choices(server: "Server") -> dict[str, Any]:
    """Returns the names that settings may have, and the defaults of the current model."""
    return {
        "samplers": [{"name": name, "title": _title(name, known.names)} for name, known in names.SAMPLERS.items()],
        "schedules": [{"name": name, "title": _title(name, known)} for name, known in names.SCHEDULES.items()],
        "guidance": list(GUIDANCE),
        "patches": list(PATCHES),
        "upscales": list(UPSCALES),
        "enlargers": list(FILTERS),
        "controls": list(BUILT_IN_CONTROLS),
        "preprocessors": [
            {
                "name": name, "title": f"{name}: {one.purpose}", "needs": list(one.needs),
                "options": {key: [o.default, o.low, o.high, o.purpose] for key, o in one.options.items()},
            }
            for name, one in preprocessors.PREPROCESSORS.items()
        ],
        "tools": list(TOOLS),
        "noise_sources": list(NOISE_SOURCES),
        "styles": _styles(server.library),
        "defaults": defaults(server),
    }  # fmt: skip


def defaults(server: "Server") -> dict[str, Any]:
    """Returns what the current model does where settings say nothing. The model is read if it is not there."""
    models = server.engine.models
    try:
        config = models.lease("choices", None).pipe.config
    except (ValueError, OSError):
        return {}  # a damaged model: the job that wants it says so
    finally:
        models.release("choices")
    side = config.image_size
    return {
        "model": models.current, "height": side, "width": side, "num_steps": 20,
        "guidance_scale": config.guidance_scale, "sampler": USUAL_SAMPLER,
    }  # fmt: skip


def status(server: "Server") -> dict[str, Any]:
    """Returns the server's version, its model and device, and how many jobs run and wait.

    `warmed` says whether the programs that are compiled ahead are there: from then on, nothing of the model's own size
    is compiled.
    """
    device = server.engine.device.mesh.devices.flat[0]
    jobs = server.engine.jobs()
    memory = device.memory_stats() or {}
    return {
        "version": __version__, "jax": jax.__version__, "model": server.engine.models.current,
        "loaded": server.engine.models.loaded, "warmed": server.engine.warmed.is_set(),
        "device": device.device_kind, "platform": device.platform, "devices": server.engine.device.mesh.size,
        "memory": {name: memory[name] for name in ("bytes_in_use", "bytes_limit") if name in memory},
        "running": sum(job.state == "running" for job in jobs), "waiting": sum(job.state == "waiting" for job in jobs),
    }  # fmt: skip


def files(library: Library, kind: str) -> list[dict[str, Any]]:
    """Returns the files of a kind. Raises UnknownFile for a kind that there is not."""
    _check_kind(kind)
    out = []
    for one in library.entries(kind):
        about = {"name": one.name, "title": library.title(one), "size": one.size, "modified": one.modified}
        if _card_of(one) is not None:
            about["preview"] = f"/api/v1/library/{kind}/card?name={quote(one.name, safe='')}"
        out.append(about)
    return out


def card(library: Library, kind: str, name: str) -> bytes:
    """Returns the picture beside a file, as a small PNG file. Raises UnknownFile without one."""
    _check_kind(kind)
    entry = library.find(kind, name)
    path = _card_of(entry)
    if path is None:
        raise UnknownFile(f"there is no picture beside {shown(entry.name)}")
    try:
        pixels = open_picture(path).pixels
    except (OSError, ValueError):  # their sentences name the path
        raise UnknownFile(FLAWED) from None
    share = min(1.0, CARD_SIDE / max(pixels.shape[:2]))
    height, width = (max(1, round(side * share)) for side in pixels.shape[:2])
    return encode_png(resize(pixels, height, width))


def tokens(prompt: str) -> dict[str, Any]:
    """Returns the number of tokens of a prompt, of the chunks that they fill, and the room in these chunks."""
    encoder = _encoder()
    chunks = Language().chunks(prompt, encoder)
    return {"tokens": sum(chunk.used for chunk in chunks), "chunks": len(chunks), "limit": encoder.room * len(chunks)}


def _encoder() -> Encoder:
    with _lock:
        if not _kept:
            tokenizer = Tokenizer()
            _kept.append(Encoder(tokenizer, pad=tokenizer.eos_token_id))
        return _kept[0]


_kept: list[Encoder] = []


def _styles(library: Library) -> list[str]:
    try:
        return list(library.styles())
    except ValueError:
        return []  # a damaged table: a request for one of its styles says so


def _title(name: str, known: names.Names) -> str:
    """Returns the name that A1111 shows, for a list that people read."""
    shown_as = known.of("a1111")
    return f"{shown_as[0]} ({name})" if shown_as else name


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UnknownFile(f"the library has {', '.join(KINDS)}; got {shown(kind)}")


def _card_of(entry: Entry) -> Path | None:
    base = entry.path.with_name(entry.stem) if entry.path.is_file() else None
    return (
        None
        if base is None
        else next((one for one in (base.with_name(base.name + end) for end in CARDS) if one.is_file()), None)
    )
