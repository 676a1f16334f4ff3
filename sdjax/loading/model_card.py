"""The model card of a model: a README.md with what is known about it, as the hub shows it.

A card says what the files say, and where they say nothing it says so. It names no folder of this computer.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from sdjax.config import ModelConfig
from sdjax.convert.checkpoint import open_checkpoint
from sdjax.convert.containers.places import read_place
from sdjax.convert.containers.reading import read_path
from sdjax.convert.errors import CheckpointError, OtherKindError, printable
from sdjax.convert.inspection import Inspection, inspect
from sdjax.convert.model import load_model
from sdjax.loading.run_layout import ADAPTER, CHECKPOINTS, CONTROL, EMBEDDINGS, IMAGE_PROMPT, is_run
from sdjax.storage import manifest

# Licences that the texts of released models name, and the hub's words for them
LICENCES = (
    (re.compile(r"(?i)open ?rail\+\+-?m"), "openrail++"),
    (re.compile(r"(?i)creativeml open ?rail-?m"), "creativeml-openrail-m"),
    (re.compile(r"(?i)apache license\s+version 2\.0"), "apache-2.0"),
    (re.compile(r"(?i)sil open\s+font license,?\s+version 1\.1"), "ofl-1.1"),
    (re.compile(r"(?i)\bmit license\b"), "mit"),
)
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
VALUES = {  # of the flags of txt2img that take a file which is no whole model
    "--lora": "{}", "--embedding": "{}", "--hypernetwork": "{}", "--control": "{}=hint.png",
    "--image-prompt": "{},image=picture.png",
}  # fmt: skip
LEARNED = {ADAPTER: "--lora", CONTROL: "--control", IMAGE_PROMPT: "--image-prompt"}  # by a training, and its flag
MOST_TAGS = 20  # of a training set that a card lists
MOST_FOLDERS = 20

Rows = Sequence[tuple[str, object]]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known about a model. `training` and `data` are rows of tables, empty for a model that is no training's.

    `place` is the name of its file or folder. What is used beside a model has `additions`, (flag of txt2img, file's
    name) pairs, or `advice`, the end of a sentence on how it is used. `licence` is the hub's word for the licence; None
    if nothing says which one it is. `licence_file` is the name of its text beside the card; None if there is none.
    """

    title: str
    settings: Rows
    licence: str | None = None
    licence_file: str | None = None
    training: Rows = ()
    data: Rows = ()
    start: str | None = None  # the repository of the model that training started from
    diffusers: bool = False
    place: str = "model"
    additions: Sequence[tuple[str, str]] = ()
    advice: str | None = None


def read_facts(path: Path, variant: str | None = None) -> Facts:
    """Returns the facts about a model: a checkpoint of any layout or the folder of a training. Reads no weights.

    Raises CheckpointError if it cannot be read.
    """
    if is_run(path):
        return _facts_of_run(path)
    found = inspect(path, variant)
    named = found.metadata.get("modelspec.license", "")
    if found.adapter or (found.kind is not None and found.family is None):
        kind, _, advice = (found.kind or "").partition("; ")
        rows = [("what it is", kind), *(("", line) for line in found.adapter)]
        flag = next((flag for flag in VALUES if f"by {flag} " in advice), None)
        return Facts(
            path.stem, rows, *_licence(licence_texts(path, variant), named),
            additions=[(flag, path.name)] if flag else [], advice=advice or None,
        )  # fmt: skip
    bundle = load_model(read_path(path, variant))
    place = path.resolve().name if path.is_dir() else path.name
    title = place if path.is_dir() else path.stem
    settings = [*settings_of(bundle.config), *_parts(found)]
    return Facts(
        title, settings, *_licence(bundle.licences, named), diffusers=found.layout == "diffusers", place=place
    )  # fmt: skip


def licence_texts(path: Path, variant: str | None = None) -> Mapping[str, str]:
    """Returns the licences of a model or a training by file name: texts in a file's header, or files beside it.

    Raises CheckpointError if the model cannot be read.
    """
    if is_run(path):
        from sdjax.loading.run_folder import read_start

        return read_start(path).licences
    try:
        return open_checkpoint(read_path(path, variant)).licences
    except OtherKindError:
        return {}


def settings_of(config: ModelConfig) -> Rows:
    """Returns the settings that somebody needs who makes pictures with a model."""
    schedule = config.schedule
    return [
        ("family", config.name),
        ("picture size", f"{config.image_size} x {config.image_size}"),
        ("predicts", schedule.prediction),
        ("guidance scale", f"{config.guidance_scale:g}"),
        ("latent", f"{config.vae.latent_channels} channels, 1/{config.vae.factor} of the picture's side"),
        ("noise schedule ends without signal", "yes" if schedule.zero_terminal_snr else "no"),
        *([("few steps", config.few_step)] if config.few_step else []),
    ]


def _parts(found: Inspection) -> Rows:
    rows = []
    for name, part in found.parts.items():
        if name not in ("beside", "unknown", "other UNet"):
            rows.append((name, f"{part['elements']:,} parameters, {', '.join(part['dtypes'])}"))
    return rows


def _licence(texts: Mapping[str, str], named: str = "") -> tuple[str | None, str | None]:
    """Returns the hub's word for a licence, and the name of its text. `named` is what a file's metadata call it."""
    name = next(iter(texts), None)
    return _word([*texts.values(), named]) or ("other" if name else None), name


def _word(texts: Iterable[str]) -> str | None:
    """Returns the hub's word for the first licence that the beginnings of texts name."""
    return next((word for text in texts for pattern, word in LICENCES if pattern.search(text[:2000])), None)


def _facts_of_run(folder: Path) -> Facts:
    """Returns the facts about a training: the settings of its start model, what was trained, and on what."""
    from sdjax.loading import hub
    from sdjax.loading.run_folder import read_settings, read_start
    from sdjax.loading.training_metadata import read_statistics

    settings, start = read_settings(folder), read_start(folder)
    steps, given = manifest.steps(folder / CHECKPOINTS), settings["model"].get("path")
    if not steps:
        raise CheckpointError("the training has written no checkpoint yet", folder)
    optim, named = settings["optim"], given or settings["model"].get("scratch")
    average = (settings.get("ema") or {}).get("decay")
    training: list[tuple[str, object]] = [
        ("started from", PurePath(str(named)).name if named else "random parameters"),
        ("trained parts", ", ".join(settings["train"])),
        ("what learns", _kind(settings.get("trainable"), "whole parts")),
        ("objective", _kind(settings.get("objective"), "denoising")),
        ("steps", steps[-1]),
        ("batch size", settings["batch_size"]),
        ("optimiser", f"{optim['name']}, learning rate {optim['learning_rate']:g}"),
        ("moving average", "none" if average is None else f"decay {average:g}"),
        ("seed", settings["seed"]),
    ]
    return Facts(
        folder.resolve().name, settings_of(start.config), *_licence(start.licences), training,
        data_rows(read_statistics(folder)), read_place(given).repository if hub.is_hub_name(given) else None,
        place=folder.resolve().name, additions=learned_files(folder),
    )  # fmt: skip


def learned_files(folder: Path) -> list[tuple[str, str]]:
    """Returns what a training wrote that is used beside a model, as (flag of txt2img, name in the folder) pairs."""
    words = sorted((folder / EMBEDDINGS).glob("*.safetensors"))
    found = [(flag, name) for name, flag in LEARNED.items() if (folder / name).is_file()]
    return [*found, *(("--embedding", f"{EMBEDDINGS}/{one.name}") for one in words)]


def _kind(settings: Any, usual: str) -> str:
    kind = settings.get("kind") if isinstance(settings, Mapping) else None
    return str(kind or usual)


def data_rows(statistics: Mapping[str, Any]) -> Rows:
    """Returns the statistics of a training set (`sdjax.train.data.statistics`) as rows."""
    if "sizes" not in statistics:
        return []
    sizes, folders, tags = statistics["sizes"], statistics.get("folders", {}), statistics.get("tags", {})
    counted: dict[str, int] = {}
    for each in tags.values():
        for tag, count in each.items():
            counted[tag] = counted.get(tag, 0) + count
    most = sorted(counted.items(), key=lambda item: -item[1])[:MOST_TAGS]
    rows: list[tuple[str, object]] = [
        ("pictures in an epoch", sum(count for _, _, count in sizes)),
        ("batches in an epoch", statistics.get("batches", "not noted")),
        ("sizes", ", ".join(f"{w} x {h} ({count})" for w, h, count in sizes[:MOST_FOLDERS])),
    ]
    rows += [
        (f"folder {name}", f"{one['pictures']} pictures, each {one['repeats']} times")
        for name, one in list(folders.items())[:MOST_FOLDERS]
    ]
    return [*rows, *([("frequent tags", ", ".join(f"{tag} ({n})" for tag, n in most))] if most else [])]


def make_card(
    facts: Facts, *, repository: str | None = None, licence: str | None = None, evaluation: str | None = None
) -> str:
    """Returns the text of a card. `licence` is used instead of the one found; `evaluation` is a Markdown table.

    Raises ValueError for a licence that is not a word of the hub's form, such as openrail++ or apache-2.0.
    """
    if licence is not None and not LICENCE_ID.fullmatch(licence):
        raise ValueError(f"a licence is one of the hub's words, such as openrail++, apache-2.0, other; got {licence!r}")
    word = licence or facts.licence
    said = {
        **({"license": word} if word else {}),
        **({"license_name": "see-the-file", "license_link": facts.licence_file}
           if word == "other" and facts.licence_file else {}),
        "library_name": "diffusers" if facts.diffusers else "sdjax",
        "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion", "text-to-image", "sdjax"],
        **({"base_model": facts.start} if facts.start else {}),
    }  # fmt: skip
    head = [f"{key}: {json.dumps(value)}" for key, value in said.items()]  # JSON is YAML too, with safe quotes
    training = table(facts.training) if facts.training else ["The files do not say how it was trained."]
    data = table(facts.data) if facts.data else ["The files do not say what it was trained on."]
    judged = [evaluation] if evaluation else ["It was not evaluated, or the result was not given."]
    if word is None:
        legal = ["No licence is stated. Without one, others may not use the model."]
    else:
        legal = [f"{word}" + (f": see {cell(facts.licence_file)}." if facts.licence_file else ".")]
    sections = [
        ("Use", _usage(facts, repository)), ("Settings", table(facts.settings)), ("Training", training),
        ("Training data", data), ("Evaluation", judged), ("Licence", legal),
    ]  # fmt: skip
    lines = ["---", *head, "---", "", f"# {cell(facts.title)}"]
    for title, body in sections:
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _usage(facts: Facts, repository: str | None) -> list[str]:
    """Returns an example: of Python for a whole model, else of the command line."""
    if not facts.additions and facts.advice is None:
        return ["```python", "import sdjax", "", f"pipe = sdjax.load({json.dumps(repository or facts.place)})",
                'images = sdjax.text_to_image(pipe, "a prompt", seed=1)', "```"]  # fmt: skip
    folder = "" if repository is None else repository.partition("/")[2]
    code = [] if repository is None else [f"hf download {repository} --local-dir {folder}"]
    if facts.additions:
        files = [(flag, PurePosixPath(folder, name)) for flag, name in facts.additions]
        uses = (f"{flag} {_quoted(VALUES[flag].format(name))}" for flag, name in files)
        code.append(f'sdjax txt2img --ckpt {_quoted(facts.start or "MODEL")} {" ".join(uses)} --prompt "a prompt"')
    said = [] if facts.additions else [f"To use the file, {cell(facts.advice)}."]
    return [*(["```sh", *code, "```"] if code else []), *said]


def _quoted(text: str) -> str:
    return shlex.quote(printable(text, limit=1000))


def table(rows: Rows) -> list[str]:
    """Returns rows as the lines of a Markdown table."""
    return ["| | |", "|---|---|", *(f"| {cell(name)} | {cell(value)} |" for name, value in rows)]


def cell(value: object) -> str:
    """Returns a value as text in a table. What has a meaning in Markdown or HTML stands for itself."""
    text = printable(str(value), limit=1000)
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", text)


def states_licence(card: str) -> bool:
    """Returns whether a card's head names a licence. Only this one is shown by the hub."""
    head = card.split("---", 2)[1] if card.startswith("---") and card.count("---") > 1 else ""
    return re.search(r"(?m)^license:[ \t]*[^\s#]", head) is not None
