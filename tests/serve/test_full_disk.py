"""A file system that is really full: what is refused, what is kept, and that the server goes on."""

import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from shelf import Shelf

from sdjax.serve.engine import TASKS, Engine, Job, Work

PICTURE = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)


@pytest.fixture
def small(tmp_path):
    """A file system of 600 KiB."""
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", tmp_path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a file system, where there is mount")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def submitted(engine: Engine, prompt: str) -> Job | None:
    """Returns the job of a work; None once it is refused for the full disk."""
    try:
        return engine.submit(Work("txt2img", {"prompt": prompt}))
    except OSError as error:
        assert "full" in str(error)  # noqa: PT017  # any other error fails the test
        return None


@pytest.mark.slow  # needs root
def test_a_full_disk_loses_nothing_and_deleting_pictures_makes_room(small: Path, monkeypatch) -> None:
    def paint(work, context):
        return [context.finish(PICTURE, {"seed": 1}, {"parameters": "x"})]

    monkeypatch.setitem(TASKS, "txt2img", paint)

    def start():
        return Engine(Shelf(), outputs=small / "o", state=small / "s", devices=jax.devices()[:1])

    engine, made = start(), set()
    while (job := submitted(engine, "x" * 2000)) is not None:
        assert job.wait(30)
        if job.state == "done":
            made.add(job.id)
        else:
            assert "the disk is full" in job.error
    assert len(made) > 3
    assert {one.id for one in engine.history()} == made
    for one in engine.history(limit=3):
        engine.forget(one.name)
    again = engine.submit(Work("txt2img", {}))
    assert again.wait(30)
    assert again.state == "done"
    engine.close()
    engine = start()
    for job in engine.jobs():  # those whose end could not be written
        assert job.wait(30)
    history = engine.history()
    assert again.id in {one.id for one in history}
    assert {path.stem for path in (small / "o").glob("*.png")} == {one.name for one in history}
    engine.close()
