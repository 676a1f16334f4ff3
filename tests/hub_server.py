"""A small stand-in for the Hugging Face hub: the few of its addresses that fetching a model asks for."""

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
    """

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.cut: set[str] = set()
        self.refused: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.address = ""

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
