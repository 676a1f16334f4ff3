"""A model's place as people type and paste it: a path, a repository of the hub, an address out of a browser.

Reads text, and looks whether files are there. `sdjax.convert.containers.local_models` looks into folders,
`sdjax.loading.hub` fetches.
"""

import dataclasses
import os
import re
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from sdjax.convert.errors import CheckpointError, printable, shown
from sdjax.storage import addresses

SINGLE_FILES = (".safetensors", ".ckpt", ".gguf")  # a whole model; the first that a folder or repository has is taken
WEIGHTS = (*SINGLE_FILES, ".pt", ".pth", ".bin", ".th")  # these too where a file is named

BUILTIN = ("builtin", "builtin-inpainting")  # the built-in models
HUB = "https://huggingface.co"
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co")
_HOSTS = ("civitai.com", "civitai.red", "civitai.green", "github.com", "gitlab.com", "modelscope.cn", "modelscope.ai")
_PAGES = ("tree", "blob", "resolve", "raw", "commit", "commits", "blame", "edit", "delete")  # .../PAGE/revision/path
_NO_PAGES = ("discussions", "community", "settings")
_NO_MODELS = ("datasets", "spaces", "collections", "papers", "docs", "blog", "buckets", "kernels")

CACHED = re.compile(r"models--(.+?)--(.+)")  # a repository's folder in the hub's cache
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REVISION = r"(?:refs/(?:pr|convert)/)?[A-Za-z0-9][A-Za-z0-9._+-]*"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_NAME = re.compile(rf"({_PART}/{_PART})(?:@({_REVISION}))?(?:/(.+))?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?(?=[^\\])")
_WEB = re.compile(r"(?i)(https?|hf|huggingface|file|ssh|git|git\+\w+|urn|civitai|air):")  # left to `_address`
_DRIVE = re.compile(r"([A-Za-z]):[\\/]+(.*)", re.DOTALL)
_AROUND = " \t\r\n\v\f\u00a0\u200b\u2060\ufeff\"'`<>\u201c\u201d\u2018\u2019\u00ab\u00bb"  # quotes, blanks, invisible


@dataclasses.dataclass(frozen=True)
class Place:
    """A `path` on this computer, or a `repository` of the hub, with a revision and a file or folder in it if named; or
    an `address` in a bucket.
    """

    path: Path | None = None
    repository: str = ""
    revision: str | None = None
    file: str | None = None
    address: str | None = None

    @property
    def name(self) -> str:
        """What messages and pictures call it."""
        if self.path is not None:
            return str(self.path)
        if self.address is not None:
            return self.address
        return self.repository if self.file is None else f"{self.repository}/{self.file}"


def is_repository(name: str) -> bool:
    """Returns whether a text is a repository's name at the hub, "owner/name"."""
    return _REPOSITORY.fullmatch(name) is not None


def is_single_file(name: str) -> bool:
    """Returns whether a file of that name holds a whole model."""
    return name.lower().endswith(SINGLE_FILES)


def exists(path: str | os.PathLike[str]) -> bool:
    """Returns whether something of that name is here, be it a link that leads nowhere."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # a null character in the name
        return False


def cached_repository(path: Path) -> str | None:
    """Returns the "owner/name" whose folder in the hub's cache a path lies in; None for one that lies elsewhere."""
    for part in reversed(path.parts):
        if match := CACHED.fullmatch(part):
            return f"{match[1]}/{match[2]}"
    return None


def why_missing(path: str | os.PathLike[str]) -> str:
    """Returns the words for a file that is not there: if a link of that name is, where it leads, and what to do."""
    if not os.path.islink(path):
        return "there is no such file"
    repository = cached_repository(Path(path).absolute())
    again = f"fetch it again by the name {repository}" if repository else "copy the files too that links lead to"
    return f"there is no such file: it is a link to {printable(os.readlink(path), limit=300)}, which is gone; {again}"


def read_place(given: Any) -> Place:
    """Returns the place that a text or path means. What is on this computer goes before the hub's.

    Understood are paths as shells and file managers write them (quotes, "~", "$HOME", "file://", backslashes, blanks
    around), "owner/name", "owner/name@revision" and "owner/name/FILE" of the hub, "hf://owner/name", and addresses of
    the hub's pages and files. An address never chooses another host: whatever it says, the hub is asked. gs:// and
    s3:// are addresses in buckets.

    Raises CheckpointError for an address of another kind, with what to do.
    """
    if not isinstance(given, str | bytes | os.PathLike):
        raise CheckpointError(f"a model's place is a path or a text; got {shown(given)}")
    text = os.fsdecode(given)
    if not text.strip(_AROUND):
        raise CheckpointError(f"a model's place is a path or a name; got {shown(text)}")
    bare = text.strip(_AROUND)
    if addresses.scheme(bare) is not None and not _WEB.match(bare):
        try:
            addresses.remote(bare)
        except addresses.AddressError as error:
            raise CheckpointError(str(error)) from None
        return Place(address=addresses.address(bare))
    found = written_otherwise(text)
    if found is not None:
        return Place(found)
    if not isinstance(given, str) and not re.match(r"(?i)(https?|hf|file):/", text):
        return Place(_expanded(text))  # a Path is never a name of the hub
    text = text.strip(_AROUND)
    if re.match(r"(?i)\(?(https?|hf)://", text):
        text = text.strip("(),.;" + _AROUND)  # of the sentence around it
    return _address(text) or _hub_name(text) or Place(_expanded(text))


def written_otherwise(text: str) -> Path | None:
    """Returns the path that is here under this or another spelling, None where there is none."""
    if exists(text):
        return Path(text)
    bare = text.strip(_AROUND)
    spellings = [bare, _of_file_address(bare)]
    spellings += [str(_expanded(spelling)) for spelling in spellings if spelling]
    for spelling in dict.fromkeys(spelling for spelling in spellings if spelling):
        drive = _DRIVE.fullmatch(spelling)
        slashed = spelling.replace("\\", "/")
        others = [f"/mnt/{drive[1].lower()}/{drive[2]}".replace("\\", "/")] if drive else []  # Windows's disks in WSL
        others += [slashed, re.sub(r"\\(.)", r"\1", spelling)]  # Windows's separators; a shell's escapes
        for path in (spelling, *others):
            path = path if exists(path) else path.rstrip("/")
            if path and exists(path):
                return Path(path)
    return None


def _expanded(text: str) -> Path:
    """Returns the path with "~", "~user", "$NAME" and "%NAME%" replaced by what they stand for, where that is known."""
    environ = {"HOME": os.path.expanduser("~"), "USERPROFILE": os.path.expanduser("~"), **os.environ}
    text = re.sub(r"%(\w+)%|\$\{(\w+)\}|\$(\w+)", lambda m: environ.get(m[1] or m[2] or m[3], m[0]), text)
    try:
        return Path(text.replace("~\\", "~/", 1) if text.startswith("~\\") else text).expanduser()
    except (RuntimeError, ValueError):  # no such user
        return Path(text)


def _of_file_address(text: str) -> str | None:
    """Returns the path in a file:// address; None for another text."""
    if not text.lower().startswith("file:"):
        return None
    rest = text[5:]
    host = ""
    if rest.startswith("//"):
        host, _, rest = rest[2:].partition("/")
        rest = f"/{rest}"
    if host.lower() not in ("", "localhost", "127.0.0.1"):
        return None if not host.startswith(("~", ".")) else urllib.request.url2pathname(host + rest)
    path = urllib.parse.unquote(rest)
    return path[1:] if _DRIVE.fullmatch(path[1:]) else path


def _address(text: str) -> Place | None:
    """Returns what an address means; None for a text that is none. Raises CheckpointError for another host's."""
    scheme, rest = "", text
    if (match := _SCHEME.match(text)) and not _DRIVE.fullmatch(text):
        scheme, rest = match[1].lower(), text[match.end() :]
        if scheme == "file":
            path = _of_file_address(text)
            if path is None:
                raise CheckpointError(
                    "a file:// address is of this computer, as file:///folder/model.safetensors; this one names another"
                )
            return Place(Path(path))
        if scheme in ("hf", "huggingface"):
            return _of_hub(rest.removeprefix("models/"), "", text)
        if scheme in ("urn", "civitai", "air"):
            raise _not_fetched("civitai.com")
        if scheme.removeprefix("git+") not in ("http", "https", "ssh", "git"):
            scheme, rest = "", text  # a name with a colon, or a place that others open
    elif text.lower().startswith("git@"):  # git@hf.co:owner/name
        scheme, rest = "ssh", text[4:].replace(":", "/", 1)
    rest = rest.lstrip("/")
    authority, _, path = rest.partition("/")
    host = authority.rpartition("@")[2].lower().rstrip(".")  # what stands before @ may be a secret, and is not shown
    named = host.partition(":")[0] if host not in _endpoint_hosts() else host
    if not scheme and named.removeprefix("www.") not in (*_HUB_HOSTS, *_HOSTS, *_endpoint_hosts()):
        return None
    if named not in (*_HUB_HOSTS, *_endpoint_hosts()):
        raise _not_fetched(named)
    path, _, query = path.partition("#")[0].partition("?")
    return _of_hub(path, query, host)


def _endpoint_hosts() -> tuple[str, ...]:
    """Returns the host that HF_ENDPOINT names, where it names one."""
    host = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()
    return (host,) if host else ()


def _not_fetched(host: str) -> CheckpointError:
    name = printable(host) or "another place"
    if "civitai" in name:
        what = "download the file there in a browser, logged in if it asks for that,"
    elif name.endswith(_HUB_HOSTS):
        what = "this is the address of one transfer; name the repository, owner/name, or download the file"
    else:
        what = "download the file"
    return CheckpointError(
        f"models are fetched from the Hugging Face hub alone, not from {name}: {what} and give its path"
    )


def _of_hub(path: str, query: str, text: str) -> Place:
    """Returns the repository, revision and file that the part of an address behind its host names."""
    parts = [urllib.parse.unquote(part) for part in path.split("/") if part]
    if parts[:2] == ["api", "models"]:
        parts = parts[2:]
    if parts and parts[0] in _NO_MODELS:
        raise CheckpointError(f"this is an address of the hub's {printable(parts[0])}, and no model: a model is named "
                              "owner/name")  # fmt: skip
    if len(parts) < 2:
        raise CheckpointError(f"{printable(text)} names no model: an address of one is {HUB}/owner/name")
    owner, (name, _, revision), rest = parts[0], parts[1].partition("@"), parts[2:]
    if not revision and rest and rest[0] in _PAGES:
        page, *rest = rest
        count = 3 if rest[:1] == ["refs"] and len(rest) > 2 else 1
        revision, rest = "/".join(rest[:count]), rest[count:]
        rest = [] if page.startswith("commit") else rest
    elif rest and rest[0] in _NO_PAGES:
        rest = []
    file = urllib.parse.parse_qs(query).get("show_file_info", ["/".join(rest)])[0]
    repository = f"{owner}/{name.removesuffix('.git')}"
    if not _is_repository(repository) or (revision and not re.fullmatch(_REVISION, revision)):
        raise CheckpointError(f"{shown(repository)} is no name of a repository: one is {HUB}/owner/name, or with a "
                              f"revision {HUB}/owner/name/tree/REVISION")  # fmt: skip
    return Place(repository=repository, revision=revision or None, file=file or None)


def _hub_name(text: str) -> Place | None:
    """Returns the repository of "owner/name", with @revision and /FILE where given; None for another text.

    None is a text that starts with a dot or slash, or has two parts and ends as checkpoints do.
    """
    match = _NAME.fullmatch(text.rstrip("/"))
    if match is None or not _is_repository(match[1]) or match[1].endswith(".git"):
        return None
    if (match[3] or match[1]).lower().endswith(WEIGHTS) != bool(match[3]):
        return None
    return Place(repository=match[1], revision=match[2], file=match[3])


def could_be_of_hub(text: Any) -> bool:
    """Returns whether a text is "owner/name" in the hub's spelling, whatever is on this computer."""
    return isinstance(text, str) and _hub_name(text) is not None


def _is_repository(name: str) -> bool:
    whole = _REPOSITORY.fullmatch(name) is not None and "--" not in name and ".." not in name
    return whole and all(len(part) <= 96 for part in name.split("/"))
