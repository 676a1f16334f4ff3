"""The files that start servers elsewhere: what they say fits the commands, and Ray's starts two replicas."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from sdjax.scripts import serve
from sdjax.scripts.main import COMMANDS
from sdjax.serve.guard import PING

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES = list(yaml.safe_load_all((ROOT / "docs/launch/serve_kubernetes.yaml").read_text(encoding="utf-8")))
EXTRAS = ("server", "cuda12", "cuda13")


def read(command):
    name, *flags = command
    assert name in COMMANDS
    return serve.make_parser().parse_args(flags)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_compose_starts_a_guarded_server_with_its_folders(name):
    service = COMPOSE["services"][name]
    args = read(service["command"])
    assert service["profiles"] == [name]
    assert (args.host, args.port) == ("0.0.0.0", 7860)
    assert args.token_file.startswith(args.outdir)
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in service["volumes"]}
    assert (mounts[args.models[0]], mounts[args.outdir]) == ("./data/models", "./data/output")
    assert service["ports"] == ["127.0.0.1:${PORT:-7860}:7860"]
    assert set(service["build"]["args"]["EXTRA"].split(",")) <= set(EXTRAS)
    assert PING in service["healthcheck"]["test"][-1]


def test_kubernetes_starts_two_guarded_replicas_behind_one_address():
    service, replicas = KUBERNETES
    (container,) = replicas["spec"]["template"]["spec"]["containers"]
    args = read(container["args"])
    assert args.host == "0.0.0.0"
    assert [one["name"] for one in container["env"]] == ["SDJAX_TOKEN"]
    assert replicas["spec"]["replicas"] == 2
    assert service["spec"]["ports"][0]["targetPort"] == args.port == container["ports"][0]["containerPort"]
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert {args.models[0], args.outdir} == mounts
    for probe in "startupProbe", "readinessProbe", "livenessProbe":
        assert container[probe]["httpGet"]["path"] == PING


def test_a_token_is_made_once_for_its_owner_alone(tmp_path, capsys):
    path = tmp_path / "state/token"
    serve.make_token(path)
    token = path.read_text().strip()
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    serve.make_token(path)
    assert path.read_text().strip() == token
    assert token not in capsys.readouterr().out
    assert serve.secret(str(path), "X", "--token-file") == token


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'ray[serve]'")
def test_ray_serves_with_two_replicas(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = (
        "import os, time, serve_ray; from ray import serve; "
        f"serve.start(http_options={{'host': '127.0.0.1', 'port': {port}}}); serve.run(serve_ray.app); time.sleep(600)"
    )
    paths = os.pathsep.join([str(ROOT / "docs/launch"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OUTPUT": str(tmp_path), "REPLICAS": "2"}
    environment["RAY_memory_monitor_refresh_ms"] = "0"  # or Ray kills replicas when other programs take the memory
    serving = subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address + PING)
        for _ in range(1200):
            if len(list(tmp_path.glob("replica-*"))) >= 2:
                break
            time.sleep(0.5)
        for number in range(12):
            body = {"prompt": "a rocket", "width": 64, "height": 64, "steps": 2, "seed": number, "save_images": True}
            asked = urllib.request.Request(
                address + "/sdapi/v1/txt2img", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=300) as answer:
                assert len(json.load(answer)["images"]) == 1
            if all(any(folder.glob("*.png")) for folder in tmp_path.glob("replica-*")):
                break
        assert all(any(folder.glob("*.png")) for folder in tmp_path.glob("replica-*"))  # both have made pictures
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        serving.wait(60)


def wait_for(address):
    """Waits until a server answers."""
    for _ in range(1200):
        try:
            urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"nothing answers at {address}")
