"""A Google Cloud Storage of this computer: the calls that gcsfs and tensorstore make, over objects in memory."""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
import urllib.parse
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENVIRONMENT = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING",
               "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT")  # fmt: skip


class Bucket(ThreadingHTTPServer):
    """Serves objects; `objects` has their bytes and generation by "bucket/name". Uploads of `torn` names break off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.generation, self.lock = 0, threading.Lock()
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.requests: list[str] = []
        self.torn: str | None = None

    def handle_error(self, *_: object) -> None:
        pass  # a client that no longer waits for its answer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self) -> dict[str, str]:
        return dict(zip(ENVIRONMENT, (self.address, self.address, "token", "false")))

    def put(self, name: str, data: bytes) -> dict:
        with self.lock:
            self.generation += 1
            self.objects[name] = (data, self.generation)
        return self.entry(name)

    def entry(self, name: str) -> dict:
        data, generation = self.objects[name]
        bucket, _, key = name.partition("/")
        return {
            "kind": "storage#object", "bucket": bucket, "name": key, "size": str(len(data)), "id": name,
            "generation": str(generation), "metageneration": "1", "etag": str(generation),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(), "crc32c": f"{zlib.crc32(data):08x}",
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
            "contentType": "application/octet-stream",
        }  # fmt: skip

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *_: object) -> None:
        pass

    def _split(self) -> tuple[str, dict[str, str]]:
        path, _, query = self.path.partition("?")
        self.server.requests.append(f"{self.command} {self.path}")
        return path, dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().strip(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, code: int, content: object = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        path, query = self._split()
        if match := re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path):
            bucket, key = match[1], match[2] and urllib.parse.unquote(match[2])
            if key is None and path.endswith("/o"):
                return self._answer(200, self._list(bucket, query))
            if key is None:
                return self._answer(200, {"kind": "storage#bucket", "name": bucket, "location": "US"})
            return self._object(f"{bucket}/{key}", query.get("alt") == "media" or path.startswith("/download"), query)
        return self._answer(404, {"error": {"code": 404, "message": f"no {path}"}})

    do_HEAD = do_GET

    def _object(self, name: str, media: bool, query: dict[str, str]) -> None:
        if name not in self.server.objects:
            return self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
        data, generation = self.server.objects[name]
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        if not media:
            return self._answer(200, self.server.entry(name))
        extra = {"x_goog_generation": str(generation), "ETag": str(generation)}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(match[1]) if match[1] else max(len(data) - int(match[2]), 0)
            last = min(int(match[2]), len(data) - 1) if match[1] and match[2] else len(data) - 1
            if first >= len(data):
                return self._answer(416)
            extra["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._answer(206, data[first : last + 1], **extra)
        return self._answer(200, data, **extra)

    def _list(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        low, high = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        items, folders = [], set()
        with self.server.lock:
            for name in self.server.names(f"{bucket}/{prefix}"):
                key = name.partition("/")[2]
                rest = key[len(prefix) :]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                elif low <= key < high:
                    items.append(self.server.entry(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def do_POST(self) -> None:
        path, query = self._split()
        if "upload_id" in query:
            return self._part(query)
        body = self._body()
        match = re.fullmatch(r"/(?:upload|resumable/upload)/storage/v1/b/([^/]+)/o", path)
        if match is None:
            if copied := re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)/rewriteTo/b/([^/]+)/o/(.+)", path):
                a, b, c, d = (urllib.parse.unquote(part) for part in copied.groups())
                entry = self.server.put(f"{c}/{d}", self.server.objects[f"{a}/{b}"][0])
                return self._answer(200, {"done": True, "resource": entry})
            return self._answer(404, {"error": {"code": 404, "message": path}})
        name = query.get("name")
        if query.get("uploadType") == "resumable":
            key = str(len(self.server.uploads))
            name = name or json.loads(body)["name"]
            self.server.uploads[key] = (f"{match[1]}/{name}", b"")
            return self._answer(200, b"", Location=f"{self.server.address}{path}?upload_id={key}")
        if query.get("uploadType") == "multipart":
            mark = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            head, data = (
                part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1]
                for part in body.split(b"--" + mark)[1:3]
            )
            name, body = json.loads(head)["name"], data.removesuffix(b"\n").removesuffix(b"\r")
        return self._stored(f"{match[1]}/{name}", body, query)

    def _stored(self, name: str, body: bytes, query: dict[str, str]) -> None:
        if self.server.torn is not None and re.search(self.server.torn, name):
            self.close_connection = True
            return self._answer(403, {"error": {"code": 403, "message": "torn"}})
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != self.server.objects.get(name, (b"", 0))[1]:
            return self._answer(412, {"error": {"code": 412, "message": "changed"}})
        return self._answer(200, self.server.put(name, body))

    def do_PUT(self) -> None:
        self._part(self._split()[1])

    def _part(self, query: dict[str, str]) -> None:
        """Takes a part of a resumable upload, and stores the object after the last one."""
        name, before = self.server.uploads[query["upload_id"]]
        data = before + self._body()
        self.server.uploads[query["upload_id"]] = (name, data)
        if self.headers.get("Content-Range", "*/0").rpartition("/")[2] == "*":
            return self._answer(308, b"", Range=f"bytes=0-{len(data) - 1}")
        return self._stored(name, data, {})

    def do_DELETE(self) -> None:
        path, _ = self._split()
        bucket, key = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", path).groups()
        with self.server.lock:
            gone = self.server.objects.pop(f"{bucket}/{urllib.parse.unquote(key)}", None)
        return self._answer(204 if gone else 404)


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    """Yields a store that answers while the block runs; the process's environment leads there."""
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(server.environment())
    try:
        yield server
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.shutdown()
        server.server_close()
