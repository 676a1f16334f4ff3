"""Controls and image prompts that a line of --from-file or --sweep names: files in folders that the flags give."""

import argparse
import difflib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from sdjax.checks.arguments import is_sequence, shown

FOLDERS = {"controls": "control_dir", "image_prompts": "image_prompt_dir"}  # the flags, by the settings
ENDINGS = (".safetensors", ".pth", ".ckpt", ".pt", ".bin")  # of networks, which names may leave out


def settings_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Returns the settings of FOLDERS that single pictures may have: those whose folder is given."""
    return tuple(name for name, flag in FOLDERS.items() if getattr(args, flag, None) is not None)


def placed(own: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Returns a picture's own settings with files of the folders in place of names.

    Raises ValueError for names that are not there, and for any that lead out of the folder.
    """
    readers = {"controls": _control, "image_prompts": _image_prompt}
    out = dict(own)
    for name in settings_of(args):
        if own.get(name) is not None:
            folder = _folder(getattr(args, FOLDERS[name]), FOLDERS[name])
            several = list(own[name]) if is_sequence(own[name]) else [own[name]]
            if wrong := [one for one in several if not isinstance(one, str)]:
                raise ValueError(f"{name} are texts, as the flag takes them; got {shown(wrong[0])}")
            out[name] = tuple(readers[name](one, folder) for one in several)
    return out


def _folder(folder: str, flag: str) -> Path:
    flag = f"--{flag.replace('_', '-')}"
    if not Path(folder).is_dir():
        raise ValueError(f"{flag} {folder} is no folder")
    return Path(folder)


def _control(text: str, folder: Path) -> str:
    """Returns the text of a control with files in the place of names."""
    from sdjax.loading.builtin import EDGES
    from sdjax.tasks.controls import read_text
    from sdjax.tasks.flag_texts import quoted

    use: Any = read_text(text)
    network = EDGES if use.network == EDGES else _file(folder, use.network, ENDINGS)
    pictures = {name: _file(folder, value) for name in ("mask", "hidden") if (value := getattr(use, name)) is not None}
    hint = None if use.hint is None else _file(folder, use.hint)
    words = {"start": use.start, "end": use.end, "mode": use.mode, "resize": use.resize, **pictures, **use.options}
    further = [*words.items(), *(("annotator", _file(folder, one)) for one in use.annotators)]
    made = (
        "" if hint is None and use.preprocess is None else f"={'' if use.preprocess is None else use.preprocess + ':'}"
    )
    options = "".join(f",{name}={quoted(str(value))}" for name, value in further)
    return f"{quoted(network)}:{use.weight}{made}{quoted(hint or '')}{options}"


def _image_prompt(text: str, folder: Path) -> str:
    """Returns the text of an image prompt with files in the place of names."""
    from sdjax.tasks.flag_texts import quoted
    from sdjax.tasks.image_prompt_texts import FILES, pairs

    made = []
    for key, value in pairs(text):
        file = _file(folder, value, ENDINGS if key in ("adapter", "encoder") else ()) if key in FILES else value
        made.append(quoted(file) if key == "adapter" else f"{key}={quoted(file)}")
    return ",".join(made)


def _file(folder: Path, name: str, endings: tuple[str, ...] = ()) -> str:
    """Returns the path of a file in a folder or below it; one of the `endings` may be left out."""
    path = PurePath(name)
    if not name or path.is_absolute() or path.drive or ".." in path.parts:
        raise ValueError(f"names are those of files in {folder}; got {shown(name)}")
    for ending in ("", *endings):
        if (folder / f"{name}{ending}").exists():
            return str(folder / f"{name}{ending}")
    there = [one.stem if one.suffix in endings else one.name for one in folder.iterdir()]
    near = difflib.get_close_matches(name, there, 1)
    raise ValueError(f"{folder} has no file {shown(name)}{f'; did you mean {near[0]}?' if near else ''}")
