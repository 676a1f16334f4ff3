"""The library: model files in folders, found by name. It is all that a request can choose from.

Two layouts are found below each root: AUTOMATIC1111's (`models/Stable-diffusion`, `models/Lora`, `embeddings`, ...) and
ComfyUI's (`models/checkpoints` or `checkpoints`, `loras`, `controlnet`, ...). Requests name files by their path below
the folder of their kind, so no path of the server is in a request or in an answer.
"""

import collections
import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from sdjax.checks.arguments import shown
from sdjax.loading import builtin
from sdjax.loading.hub import is_local
from sdjax.prompts.styles import NAME as STYLES
from sdjax.prompts.styles import Style, read_styles
from sdjax.storage import files
from sdjax.tasks.extra_files import files_below

FOLDERS: Mapping[str, tuple[str, ...]] = {  # below a root or its folder `models`; spelled as on the tools' disks
    "checkpoint": ("Stable-diffusion", "checkpoints", "diffusers"),
    "vae": ("VAE", "vae"),
    "taesd": ("VAE-approx", "vae_approx"),
    "lora": ("Lora", "LyCORIS", "loras"),
    "embedding": ("embeddings",),
    "hypernetwork": ("hypernetworks",),
    "control": ("ControlNet", "controlnet", "t2i_adapter"),
    "ip_adapter": ("ipadapter", "IpAdapter", "ControlNet"),
    "clip_vision": ("clip_vision",),
    "upscaler": ("ESRGAN", "RealESRGAN", "upscale_models"),
    "detector": ("adetailer", "ultralytics", "annotators"),
    "motion": ("animatediff_models", "animatediff"),
}
KINDS = tuple(FOLDERS)
ENDINGS = (".safetensors", ".sft", ".ckpt", ".gguf", ".pt", ".pth", ".bin")
NOT_MODELS = (".vae.safetensors", ".vae.pt", ".vae.ckpt")  # an autoencoder beside its checkpoint
MODEL_FOLDERS = ("model_index.json", "config.json")  # a folder with one of these is one model
MOST_FILES = 100_000  # of one kind
HASHES = "hashes.json"
LARGE = 2**30  # bytes; files above are hashed when they are first used, as reading them takes long


class UnknownFile(ValueError):
    """A name that the library does not have."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file or folder of the library.

    `name` is the path below the folder of its kind, with forward slashes and its ending, such as "sd/v1-5.ckpt".
    `size` is in bytes, 0 for a folder, and `modified` in seconds since 1970.
    """

    kind: str
    name: str
    path: Path
    size: int
    modified: float

    @property
    def stem(self) -> str:
        """The file's own name without folders and ending."""
        last = PurePosixPath(self.name).name
        ending = next((ending for ending in ENDINGS if last.lower().endswith(ending)), "")
        return last[: len(last) - len(ending)]


class Library:
    """The model files below `roots`.

    `checkpoint` is one more model: a path, or a repository of the hub. The built-in models are always there. `folders`
    are further folders of a kind. In `state` (a folder) the hashes of files are kept, as reading whole files takes
    long. Raises ValueError for a root that is no folder.
    """

    def __init__(
        self, roots: Sequence[str | os.PathLike[str]] = (), *, checkpoint: str | None = None,
        folders: Mapping[str, Sequence[str | os.PathLike[str]]] | None = None, state: Path | None = None,
    ) -> None:  # fmt: skip
        self._roots = [Path(root) for root in roots]
        for root in self._roots:
            if not root.is_dir():
                raise ValueError(f"{root} is no folder: name the folder that has your models")
        self._own = None if checkpoint is None or checkpoint in builtin.NAMES else checkpoint
        self._more = {kind: [Path(folder) for folder in several] for kind, several in (folders or {}).items()}
        self._hashes = None if state is None else state / HASHES
        self._lock = threading.RLock()
        self._kept: dict[str, str] | None = None
        self._to_hash: collections.deque[Entry] = collections.deque()
        self._hashing = False  # whether small files are hashed as they are found
        self._hasher: threading.Thread | None = None
        self._found: dict[str, list[Entry]] = {}

    def entries(self, kind: str) -> list[Entry]:
        """Returns the entries of a kind (one of `KINDS`), by name. They are looked for once, until `refresh`."""
        with self._lock:
            if kind not in self._found:
                self._found[kind] = self._look(kind)
            return list(self._found[kind])

    def refresh(self) -> None:
        """Looks for files again when they are next asked for."""
        with self._lock:
            self._found.clear()
        if self._hashing:
            self.start_hashing()

    def folders(self, kind: str) -> list[Path]:
        """Returns the folders that are there for a kind."""
        places = [*self._more.get(kind, ())]
        for root in self._roots:
            for base in (root / "models", root):
                at = {one.name: one for one in base.iterdir() if one.is_dir()} if base.is_dir() else {}
                lowered = {name.lower(): one for name, one in at.items()}
                for name in FOLDERS[kind]:
                    place = at.get(name) or lowered.get(name.lower())
                    if place is not None and place not in places:
                        places.append(place)
        return places

    def styles_file(self) -> Path | None:
        """Returns the first table of styles beside the models, styles.csv; None if there is none."""
        places = (base / STYLES for root in self._roots for base in (root, root / "models"))
        return next((place for place in places if place.is_file()), None)

    def styles(self) -> dict[str, Style]:
        """Returns the styles of that table by name. Raises ValueError if it cannot be read."""
        path = self.styles_file()
        if path is None:
            return {}
        try:
            return read_styles(path)
        except (OSError, ValueError):  # their sentences name the path
            raise ValueError(
                f"{STYLES} beside the models is no table with the columns name, prompt and negative_prompt"
            ) from None

    def find(self, kind: str, name: str) -> Entry:
        """Returns the entry of a name.

        That is its whole name, the name without ending or folders if only one entry has it, the name as A1111 shows it
        ("v1-5.ckpt [cc6cb27103]"), or such a hash alone. Raises UnknownFile, with the nearest names, for any other.
        """
        if not isinstance(name, str):
            raise UnknownFile(f"a file is named by a text; got {shown(name)}")
        entries = self.entries(kind)
        wanted = name.strip().replace("\\", "/")
        title, _, rest = wanted.partition(" [")
        exact = [one for one in entries if one.name == wanted] or [one for one in entries if one.name == title]
        if exact and (not rest or exact[0].name == wanted or self._is(exact[0], rest.rstrip("]"))):
            return exact[0]
        for spelled in _whole_names, _own_names:
            like = [one for one in entries if title in spelled(one)]
            like = like or [one for one in entries if title.lower() in [text.lower() for text in spelled(one)]]
            if len(like) > 1:
                several = ", ".join(shown(one.name) for one in like[:5])
                raise UnknownFile(f"{shown(name)} may be {several}: give the whole name")
            if like:
                return like[0]
        if len(wanted) in (8, 10, 64) and all(letter in "0123456789abcdef" for letter in wanted.lower()):
            known = [one for one in entries if (self._known_hash(one) or "").startswith(wanted.lower())]
            if known:
                return known[0]
        near = difflib.get_close_matches(title, [one.stem for one in entries], n=3)
        hint = f"; did you mean {' or '.join(map(shown, near))}?" if near else ""
        raise UnknownFile(f"there is no {kind.replace('_', ' ')} of the name {shown(name)}{hint}")

    def sha256(self, entry: Entry) -> str | None:
        """Returns the file's SHA-256 as hexadecimal digits, None for a folder. It is computed once and kept."""
        if not entry.path.is_file():
            return None
        known = self._known_hash(entry)
        if known is None:
            with open(entry.path, "rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
            self._keep_hash(entry, known)
        return known

    def start_hashing(self) -> None:
        """Hashes all files that are not large, in the background; after each `refresh` the new ones too."""
        self._hashing = True
        self.hash_soon([one for kind in KINDS for one in self.entries(kind) if 0 < one.size <= LARGE])

    def hash_soon(self, entries: Sequence[Entry]) -> None:
        """Has files hashed in the background, so that `title` shows the hashes and `find` knows them."""
        with self._lock:
            self._to_hash.extend(one for one in entries if one.size and self._known_hash(one) is None)
            if self._to_hash and self._hasher is None:
                self._hasher = threading.Thread(target=self._hash_all, name="hashes of files", daemon=True)
                self._hasher.start()

    def _hash_all(self) -> None:
        while True:
            with self._lock:
                if not self._to_hash:
                    self._hasher = None
                    return
                one = self._to_hash.popleft()
            with contextlib.suppress(
                OSError
            ):  # a file that cannot be read now, or a state folder that cannot be written
                self.sha256(one)

    def short_hash(self, entry: Entry) -> str | None:
        """Returns the first ten digits of the hash, as A1111 shows it; None if it is not known."""
        known = self._known_hash(entry)
        return None if known is None else known[:10]

    def title(self, entry: Entry) -> str:
        """Returns the name, with the short hash if that is known, as A1111 shows it."""
        digits = self.short_hash(entry)
        return entry.name if digits is None else f"{entry.name} [{digits}]"

    def _look(self, kind: str) -> list[Entry]:
        found: dict[str, Entry] = {}
        if kind == "checkpoint":
            for name in builtin.NAMES:
                found[name] = Entry(kind, name, Path(name), 0, 0.0)
            if self._own is not None:
                own = self._own_entry(self._own)
                found[own.name] = own
        for folder in self.folders(kind):
            whole: list[Path] = []
            for path in files_below(folder):
                if len(found) >= MOST_FILES:
                    break
                if any(place in path.parents for place in whole):
                    continue
                if path.name in MODEL_FOLDERS and path.parent != folder:
                    whole.append(path.parent)
                    path = path.parent
                    found = {name: one for name, one in found.items() if path not in one.path.parents}
                elif not path.name.lower().endswith(ENDINGS) or path.name.lower().endswith(NOT_MODELS):
                    continue
                entry = _entry(kind, path.relative_to(folder).as_posix(), path)
                if entry is not None:
                    found.setdefault(entry.name, entry)
        return sorted(found.values(), key=lambda one: (one.name not in builtin.NAMES, one.name.lower(), one.name))

    def _own_entry(self, place: str) -> Entry:
        path = Path(place)
        entry = _entry("checkpoint", path.name or place, path) if is_local(place) else None
        return entry or Entry("checkpoint", place, path, 0, 0.0)

    def _is(self, entry: Entry, digits: str) -> bool:
        known = self._known_hash(entry)
        return known is None or known.startswith(digits.lower())

    def _key(self, entry: Entry) -> str:
        return f"{entry.kind}/{entry.name}/{entry.size}/{entry.modified}"

    def _known_hash(self, entry: Entry) -> str | None:
        return self._read_hashes().get(self._key(entry))

    def _read_hashes(self) -> dict[str, str]:
        with self._lock:
            if self._kept is None:
                self._kept = {}
                if self._hashes is not None and self._hashes.is_file():
                    with contextlib.suppress(OSError, ValueError):  # what cannot be read is computed again
                        given = json.loads(self._hashes.read_text())
                        if isinstance(given, dict):
                            self._kept = {name: one for name, one in given.items() if isinstance(one, str)}
            return self._kept

    def _keep_hash(self, entry: Entry, digits: str) -> None:
        with self._lock:
            self._read_hashes()[self._key(entry)] = digits
            if self._hashes is not None:
                with files.new_file(self._hashes, overwrite=True) as path:
                    path.write_text(json.dumps(self._kept, indent=1))


def _whole_names(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.name[: len(entry.name) - len(PurePosixPath(entry.name).name) + len(entry.stem)]


def _own_names(entry: Entry) -> tuple[str, str]:
    return PurePosixPath(entry.name).name, entry.stem


def _entry(kind: str, name: str, path: Path) -> Entry | None:
    """Returns the entry of a path; None if it cannot be looked at."""
    try:
        about = path.stat()
    except OSError:
        return None
    return Entry(kind, name, path, about.st_size if path.is_file() else 0, about.st_mtime)
