"""A server whose tasks are small functions."""

import jax
import pytest
from shelf import HOME, PICTURE
from starlette.testclient import TestClient

from sdjax.serve.app import create_app
from sdjax.serve.engine import TASKS, Engine
from sdjax.serve.library import Library
from sdjax.serve.server import Server, ServerSettings


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """Returns a function that makes a client of a server whose tasks are the given function."""
    engines = []

    def make(task=None, waiting=9, **settings):
        for name in TASKS:
            monkeypatch.setitem(TASKS, name, task or paint)
        monkeypatch.setattr(Engine, "warm_up", lambda self: None)
        library = Library()
        engine = Engine(
            library, outputs=tmp_path / "out", state=tmp_path / "state", devices=jax.devices()[:1], slots=2,
            waiting=waiting,
        )  # fmt: skip
        engines.append(engine)
        server = Server(engine, library, ServerSettings(**settings))
        return TestClient(create_app(server), base_url=HOME, raise_server_exceptions=False)

    yield make
    for engine in engines:
        engine.close()


def paint(work, context):
    """Makes a picture at once."""
    context.progress(1, 2)
    context.note("painted")
    first, count = work.settings.get("seed", 7), work.settings.get("num_images", 1)
    return [
        context.finish(PICTURE, {"seed": seed, "prompt": work.settings.get("prompt")}, {"parameters": f"Seed: {seed}"})
        for seed in range(first, first + count)
    ]
