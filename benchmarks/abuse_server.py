"""A server under abuse: malformed requests, a crowd, slow and vanishing clients, and `kill -9`.

    python benchmarks/abuse_server.py --out benchmarks/results/abuse_server_cpu.json

It starts `sdjax serve` with the built-in model in a passing folder, and says for each kind of abuse what the server
answered, and whether it still makes a picture afterwards. It ends with an error if anything that was acknowledged is
lost, or if the server does not answer.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from sdjax.evaluate.benchmark import device_name

PATHS = (
    "/api/v1/jobs", "/api/v1/tokens", "/api/v1/hints", "/api/v1/uploads", "/api/v1/read-picture", "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img", "/sdapi/v1/options", "/sdapi/v1/png-info", "/sdapi/v1/extra-single-image",
    "/controlnet/detect", "/v1/images/generations", "/v1/images/edits", "/prompt",
)  # fmt: skip
SMALL = {"prompt": "a rocket", "num_steps": 2}
JOBS = 12  # that wait when the server is killed
SLOW_CLIENTS = 60


class Running:
    """A server in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        flags = ["--port", "0", "--outdir", str(folder), "--slots", "2"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdjax", "serve", *flags], stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "serves http://" in line:
                self.port = int(line.rsplit(":", 1)[1])
                return
        raise RuntimeError("the server did not start")

    def ask(
        self, method: str, path: str, body: bytes | str = b"", seconds: float = 60, **headers: str
    ) -> tuple[int, bytes]:
        """Returns the status and the body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def submit(self, **settings: Any) -> tuple[int, str]:
        """Returns the status and the id of a new job."""
        status, body = self.ask(
            "POST", "/api/v1/jobs", json.dumps({"task": "txt2img", "settings": {**SMALL, **settings}})
        )
        return status, json.loads(body).get("id", "")

    def state(self, name: str) -> str:
        """Returns the state of a job."""
        return json.loads(self.ask("GET", f"/api/v1/jobs/{name}")[1])["state"]

    def draws(self) -> bool:
        """Returns whether the server makes a picture."""
        status, name = self.submit(seed=random.randrange(2**31))
        for _ in range(600):
            if status == 202 and self.state(name) in ("done", "failed"):
                return self.state(name) == "done"
            time.sleep(0.2)
        return False

    def files(self) -> int:
        """Returns how many files and sockets the server has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[Running]:
    """Yields a server, which is stopped at the end."""
    server = Running(folder)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        try:
            server.process.wait(60)
        except subprocess.TimeoutExpired:
            server.process.kill()


def broken(random: random.Random) -> bytes:
    """Returns a body that is wrong in one of many ways."""
    small = {"width": 64, "height": 64, "steps": 2, "seed": 1}  # where it is right all the same
    good = json.dumps({"task": "txt2img", "settings": SMALL, "prompt": "a cat", "image": "AAAA", **small}).encode()
    kinds = (
        lambda: bytes(random.randrange(256) for _ in range(random.randrange(200))),
        lambda: good[: random.randrange(len(good))],
        lambda: good.replace(b'"a cat"', random.choice([b"3", b"null", b"[]", b"{}", b"1e999", b"NaN", b'"\\ud800"'])),
        lambda: good.replace(b"1", b"9" * random.choice([10, 400, 5000])),
        lambda: b'{"width":' * random.randrange(1, 3000),
        lambda: b'{"width": 64, "height": 64, "steps": 2, "prompt": "' + b"(" * random.randrange(30_000) + b'"}',
        lambda: json.dumps({**small, "task": random.choice(["", "workflow", "txt2img", 3, None]),
        "settings": random.choice(
            [{"seed": -5}, {"height": 7}, {"lora_dir": "/etc"}, {"sampler": "x" * 999}, [], None,
            {"num_images": 10**9}])}).encode(),
        lambda: json.dumps({"image": "http://127.0.0.1:1/x.png", "init_images": ["file:///etc/passwd"],
        **small}).encode(),
        lambda: json.dumps({**small, "prompt": {"1": {"class_type": "__import__", "inputs": {"x": ["1",
        0]}}}}).encode(),
    )  # fmt: skip
    return random.choice(kinds)()


def malformed(server: Running, count: int) -> dict[str, int]:
    """Returns how often the server answered malformed requests with each status."""
    chance, found = random.Random(0), collections.Counter[str]()
    for _ in range(count):
        path, kind = (
            chance.choice(PATHS),
            chance.choice(["application/json"] * 4 + ["text/plain", "multipart/form-data; boundary=x"]),
        )
        headers = {} if chance.random() < 0.8 else {"Origin": "http://evil.example"}
        status, _ = server.ask("POST", path, broken(chance), **{"Content-Type": kind, **headers})
        found[str(status)] += 1
    return dict(sorted(found.items()))


def crowd(server: Running, count: int) -> dict[str, int]:
    """Returns the statuses of so many requests at once. Their jobs are cancelled, so that the queue is empty again."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda number: server.submit(seed=number, num_steps=50), range(count)))
    for status, name in answers:
        if status == 202:
            server.ask("DELETE", f"/api/v1/jobs/{name}")
    return dict(sorted(collections.Counter(str(status) for status, _ in answers).items()))


def slow(server: Running) -> dict[str, Any]:
    """Opens connections that send their heads one letter after the other. Returns what became of them."""
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(SLOW_CLIENTS)]
    start, closed = time.monotonic(), 0
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    latency = []
    for letter in head + b"a" * 60:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.send(bytes([letter]))
        asked = time.monotonic()
        server.ask("GET", "/internal/ping")
        latency.append(time.monotonic() - asked)
        if time.monotonic() - start > 14:
            break
        time.sleep(0.15)
    for one in sockets:
        one.settimeout(5)
        with contextlib.suppress(OSError):
            closed += one.recv(1) == b""
        one.close()
    return {
        "connections": SLOW_CLIENTS,
        "closed_by_the_server": closed,
        "slowest_answer_to_another_s": round(max(latency), 3),
    }


def vanishing(server: Running, count: int) -> None:
    """Asks for pictures and events, and goes away."""
    body = json.dumps({"prompt": "a rocket", "width": 64, "height": 64, "steps": 50, "seed": 1}).encode()
    for number in range(count):
        one = socket.create_connection(("127.0.0.1", server.port))
        path = "/sdapi/v1/txt2img" if number % 2 else "/api/v1/uploads"
        length = len(body) if number % 2 else 10**6
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        one.sendall(head.encode() + body)
        one.close()


def killed(folder: pathlib.Path) -> dict[str, int]:
    """Kills a server with jobs under way, starts it again, and returns what became of the acknowledged jobs."""
    server = Running(folder)
    names = []
    for number in range(JOBS):
        status, name = server.submit(seed=1000 + number, num_steps=20)
        names += [name] if status == 202 else []
    time.sleep(1)
    server.process.kill()
    server.process.wait()
    with running(folder) as again:
        end = time.monotonic() + 600
        while time.monotonic() < end and any(again.state(name) not in ("done", "failed") for name in names):
            time.sleep(0.5)
        records = json.loads(again.ask("GET", "/api/v1/history?limit=200")[1])["records"]
    seen = collections.Counter(record["id"] for record in records)
    lost, twice = [name for name in names if not seen[name]], [name for name in names if seen[name] > 1]
    if lost or twice:
        raise RuntimeError(f"{len(lost)} acknowledged jobs are lost and {len(twice)} are there twice")
    return {"acknowledged": len(names), "lost": 0, "twice": 0}


def main() -> None:
    """Runs all, and writes the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", help="write JSON into this file")
    parser.add_argument("--requests", type=int, default=1000, help="malformed requests; default: %(default)s")
    parser.add_argument("--crowd", type=int, default=150, help="requests at once; default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        with running(folder / "served") as server:
            assert server.draws()
            files = server.files()
            out: dict[str, Any] = {"device": device_name(jax.devices()[0])}
            out["malformed"] = malformed(server, args.requests)
            assert "500" not in out["malformed"], out["malformed"]
            out["draws_after_malformed"] = server.draws()
            out["crowd"] = crowd(server, args.crowd)
            out["draws_after_crowd"] = server.draws()
            out["slow_clients"] = slow(server)
            out["draws_after_slow_clients"] = server.draws()
            vanishing(server, 40)
            out["draws_after_vanished_clients"] = server.draws()
            time.sleep(20)  # connections that are kept alive end
            out["open_files"] = {"before": files, "after": server.files()}
        out["killed"] = killed(folder / "killed")
    text = json.dumps(out, indent=1)
    print(text)
    if args.out:
        pathlib.Path(args.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
