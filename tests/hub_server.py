"""A small stand-in for the Hugging Face hub: the few of its addresses that fetching and uploading a model ask for."""

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager


class Hub:
    """Repositories by name, and what was asked for.

    `commits`: (repository, branch, tag or commit) -> commit; `files`: commit -> {name: content}. What is in `cut` is
    sent by half, once. `refused`: repository -> status and error code of every answer.

    `private`: repositories that were made, and whether they are private. `tokens`: the tokens that may write. `large`:
    files sent as LFS objects, by their SHA-256. Files of more than `lfs_from` bytes are to be sent so.
    """

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.cut: set[str] = set()
        self.refused: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.address = ""
        self.private: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.lfs_from = 10_000

    def add(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Returns the commit of a new revision that holds `files`."""
        content = repr((repository, sorted(files.items()))).encode()
        commit = hashlib.sha1(content).hexdigest()
        self.files[commit] = files
        self.commits |= {(repository, revision): commit, (repository, commit): commit}
        return commit

    def sent(self) -> list[str]:
        """Returns the names of the files whose content was asked for, and forgets them."""
        names = [path.split("/resolve/")[1].partition("/")[2] for method, path, _ in self.asked
                 if method == "GET" and "/resolve/" in path]  # fmt: skip
        self.asked.clear()
        return sorted(names)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Runs the hub at a free port of this computer, its `address`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
            hub.asked.append((self.command, path, self.headers.get("Range")))
            parts = path.removeprefix("api/models/").split("/")
            repository, rest = "/".join(parts[:2]), parts[2:]
            if repository in hub.refused:
                status, code = hub.refused[repository]
                return self.answer(status, b"{}", {"X-Error-Code": code} if code else {})
            if not any(name == repository for name, _ in hub.commits):
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            revision = rest[1] if len(rest) > 1 else "main"
            commit = hub.commits.get((repository, revision))
            if commit is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = hub.files[commit]
            if path.startswith("api/"):
                return self.answer(200, json.dumps(self.described(repository, commit, files, rest)).encode())
            name = "/".join(rest[2:])
            if name not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            tag = hashlib.sha256(files[name]).hexdigest()
            return self.answer(200, files[name], {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}, name)

        def do_PUT(self) -> None:
            data = self.body()
            hub.large[hashlib.sha256(data).hexdigest()] = data
            self.answer(200, b"")

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_POST(self) -> None:
            path, data = urllib.parse.urlsplit(self.path).path.strip("/"), self.body()
            hub.asked.append(("POST", path, None))
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in hub.tokens:
                return self.answer(401, b"{}")
            if path == "api/validate-yaml":
                return self.said({"errors": [], "warnings": []})
            if path == "api/repos/create":
                return self.create(json.loads(data))
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}}}
                    for one in json.loads(data)["objects"] if one["oid"] not in hub.large
                ]  # fmt: skip
                return self.said({"transfer": "basic", "objects": objects})
            owner, name, act, revision = path.removeprefix("api/models/").split("/")
            if act == "preupload":
                modes = [
                    {"path": one["path"], "shouldIgnore": False, "oid": None,
                     "uploadMode": "lfs" if one["size"] > hub.lfs_from else "regular"}
                    for one in json.loads(data)["files"]
                ]  # fmt: skip
                return self.said({"files": modes})
            if act == "branch":
                hub.commits[f"{owner}/{name}", revision] = hub.commits[f"{owner}/{name}", "main"]
                return self.said({})
            assert act == "commit"
            return self.commit(f"{owner}/{name}", revision, [json.loads(line) for line in data.splitlines()])

        def create(self, asked: dict) -> None:
            repository = f"{asked['organization']}/{asked['name']}"
            if repository in hub.refused:
                return self.answer(hub.refused[repository][0], b"{}")
            if repository in hub.private:
                return self.answer(409, json.dumps({"url": f"{hub.address}/{repository}"}).encode())
            hub.private[repository] = asked.get("visibility") == "private" or bool(
                asked.get("private")
            )  # the latter: older versions
            hub.add(repository, {})
            return self.said({"url": f"{hub.address}/{repository}"})

        def commit(self, repository: str, revision: str, lines: list[dict]) -> None:
            files = dict(hub.files[hub.commits[repository, revision]])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                else:
                    files[value["path"]] = base64.b64decode(value["content"])
            made = hub.add(repository, files, revision)
            return self.said({"commitUrl": f"{hub.address}/{repository}/commit/{made}", "commitOid": made})

        def said(self, answer: object) -> None:
            return self.answer(200, json.dumps(answer).encode())

        def described(self, repository: str, commit: str, files: dict[str, bytes], rest: list[str]) -> object:
            if rest[:1] == ["tree"]:
                sizes = ((name, len(data), hashlib.sha1(data).hexdigest()) for name, data in files.items())
                return [{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in sizes]
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            return {"id": repository, "modelId": repository, "sha": commit, "private": False, "siblings": siblings}

        def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
            start = 0
            if (asked := self.headers.get("Range")) and self.command == "GET":
                start = int(asked.removeprefix("bytes=").split("-")[0])
                status = 206
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            if name in hub.cut:
                hub.cut.discard(name)
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data[start:])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
