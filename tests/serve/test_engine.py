"""The engine without a network: its queue, its store, and how jobs end. Tasks are replaced by small functions."""

import errno
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from shelf import Shelf

import sdjax
from sdjax.loading import builtin
from sdjax.pipeline.placement import make_mesh
from sdjax.serve.engine import TASKS, Engine, Full, Job, UnknownJob, UnknownPicture, Work
from sdjax.serve.engine.device import Device
from sdjax.serve.engine.models import Models, size_of
from sdjax.serve.engine.options import read
from sdjax.serve.engine.speed import Speed
from sdjax.serve.engine.store import Store
from sdjax.serve.engine.waiting import Waiting

import models

TEXT = Work("txt2img", {"prompt": "a cat"})
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


@pytest.fixture
def engine_with(tmp_path, monkeypatch):
    """Returns a function that makes an engine whose txt2img is the given function."""
    engines = []

    def make(task, **options):
        monkeypatch.setitem(TASKS, "txt2img", task)
        made = Engine(Shelf(), outputs=tmp_path / "out", state=tmp_path / "state", devices=jax.devices()[:1], **options)
        engines.append(made)
        return made

    yield make
    for engine in engines:
        engine.close()


def paint(work, context):
    """Makes a picture at once."""
    context.progress(1, 2)
    return [context.finish(PICTURE, {"seed": 7}, {"parameters": "steps"})]


def names(queue):
    return [job.id for job in queue.jobs()]


def job(name, client="", priority=0, created=0.0):
    return Job(name, Work("txt2img", {}, client=client, priority=priority), Nowhere(), created=created)


class Nowhere:
    def position(self, job):
        return None

    def seconds_left(self, job):
        return None

    def cancelled(self, job):
        pass


def test_clients_take_turns_and_higher_priority_goes_first():
    queue = Waiting()
    for number in range(3):
        queue.put(job(f"a{number}", "a", created=number))
    queue.put(job("b0", "b", created=5))
    queue.put(job("c0", "c", created=6))
    queue.put(job("urgent", "a", priority=1, created=9))
    assert names(queue) == ["urgent", "a0", "b0", "c0", "a1", "a2"]
    assert queue.take().id == "urgent"
    assert names(queue) == ["b0", "c0", "a0", "a1", "a2"]  # client a has one that runs
    assert queue.position(queue.jobs()[2]) == 2


def test_a_job_is_on_the_disk_before_it_is_acknowledged_and_its_pictures_are_there_once(tmp_path):
    work = Work("img2img", {"prompt": "x", "strength": 0.5}, {"image": PICTURE, "mask": PICTURE[..., 0]}, "builtin",
                "me", 3, True)  # fmt: skip
    before = Store(tmp_path / "s", tmp_path / "o")
    before.add("id", 5.0, work)
    with pytest.raises(ValueError, match="another server uses"):
        Store(tmp_path / "s", tmp_path / "o")
    before._own.release()  # as the system does when a process is killed
    (tmp_path / "o" / ".sdjax-1234.partial").write_bytes(b"half")
    after = Store(tmp_path / "s", tmp_path / "o")  # the process before ended without closing
    ((id, created, found),) = after.waiting()
    assert (id, created, found.settings, found.model) == ("id", 5.0, work.settings, "builtin")
    assert (found.client, found.priority, found.save) == ("me", 3, True)
    assert all(np.array_equal(found.inputs[name], work.inputs[name]) for name in work.inputs)
    assert after.history(None, 9) == []
    assert list((tmp_path / "o").iterdir()) == []
    before.close()
    after.close()


def test_jobs_left_by_a_killed_engine_run_again_and_are_in_the_history_once(tmp_path, engine_with):
    store = Store(tmp_path / "state", tmp_path / "out")
    store.add("left", 5.0, TEXT)
    store.write("19700101-000005-left-0", b"half of a run before")
    store.close()
    engine = engine_with(paint)
    found = engine.job("left")
    assert found.wait(10)
    assert [one.name for one in engine.history()] == ["19700101-000005-left-0"]
    assert engine.picture("19700101-000005-left-0") == found.pictures[0].png
    engine.close()
    again = engine_with(paint)
    assert again.jobs() == []
    assert again.job("left").state == "done"
    (kept,) = again.job("left").pictures
    assert np.array_equal(kept.pixels, PICTURE)
    assert (kept.texts, kept.seed) == ({"parameters": "steps"}, 7)


def test_closing_keeps_running_jobs_for_the_next_engine(engine_with):
    started, go = threading.Event(), threading.Event()

    def wait(work, context):
        started.set()
        go.wait(10)
        return context.models.device.call(lambda: [])  # the device is closed by now

    engine = engine_with(wait)
    id = engine.submit(TEXT).id
    assert started.wait(10)
    stop = threading.Thread(target=engine.close)
    stop.start()
    while not engine.device._closed:
        time.sleep(0.001)
    go.set()
    stop.join(10)
    assert engine_with(paint).job(id).wait(10)


def test_a_full_disk_fails_the_job_in_one_sentence_and_the_engine_goes_on(engine_with, monkeypatch):
    engine = engine_with(paint)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/folder/x.png")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        failed = engine.submit(TEXT)
        assert failed.wait(10)
    assert failed.state == "failed"
    assert "the disk is full" in failed.error
    assert "/" not in failed.error.replace("png/", "")
    assert engine.history() == []
    assert list(engine._store.outputs.glob("**/*")) == []
    ok = engine.submit(TEXT)
    assert ok.wait(10)
    assert ok.state == "done"


def test_too_many_waiting_are_refused_with_a_time(engine_with):
    go = threading.Event()
    engine = engine_with(lambda work, context: go.wait(10) and [], slots=1, waiting=1)
    jobs = [engine.submit(TEXT)]
    while engine.job(jobs[0].id).state != "running":
        time.sleep(0.001)
    jobs.append(engine.submit(TEXT))
    with pytest.raises(Full) as refused:
        engine.submit(TEXT)
    assert refused.value.retry_after >= 1
    assert jobs[1].position == 0
    go.set()
    assert all(one.wait(10) for one in jobs)


def test_cancelling_ends_waiting_jobs_at_once_and_running_ones_at_their_next_report(engine_with):
    started = threading.Event()

    def long(work, context):
        started.set()
        while True:
            context.progress(1, 2)

    engine = engine_with(long, slots=1)
    running, waiting = (engine.submit(TEXT) for _ in range(2))
    assert started.wait(10)
    waiting.cancel()
    assert waiting.state == "cancelled"
    assert engine.cancel_all("somebody else") == 0
    assert engine.cancel_all() == 1
    assert running.wait(10)
    assert running.state == "cancelled"
    assert engine.job(waiting.id) is waiting


def test_events_come_in_order_and_a_watcher_that_fails_is_left_out(engine_with):
    go, seen = threading.Event(), []
    engine = engine_with(lambda work, context: go.wait(10) and paint(work, context))
    made = engine.submit(TEXT)

    def fail(event):
        raise RuntimeError

    made.watch(fail)
    made.watch(lambda event: seen.append(event.kind))
    go.set()
    assert made.wait(10)
    assert seen[-3:] == ["progress", "picture", "done"]
    assert made.fraction == 1
    made.tell("node", kind="ValueError")  # data of any name: this is an error's kind
    assert seen[-1] == "node"


def test_a_bug_in_a_task_is_told_without_its_text(engine_with):
    def broken(work, context):
        raise KeyError("/root/secret")

    made = engine_with(broken).submit(TEXT)
    assert made.wait(10)
    assert made.error == "an error inside the server (KeyError): its log says more"


def test_paths_of_the_server_are_not_told(engine_with):
    def refuse(work, context):
        raise ValueError("/home/me/models/loras/film.safetensors is no adapter: C:\\models\\x.ckpt neither")

    made = engine_with(refuse).submit(TEXT)
    assert made.wait(10)
    assert made.error == "film.safetensors is no adapter: x.ckpt neither"


def test_pictures_that_are_not_saved_are_in_no_history(engine_with):
    engine = engine_with(paint)
    made = engine.submit(Work("txt2img", {}, save=False))
    assert made.wait(10)
    assert engine.history() == []
    assert engine.picture(made.pictures[0].name) == made.pictures[0].png
    kept = engine.submit(TEXT)
    assert kept.wait(10)
    engine.forget(kept.pictures[0].name)
    with pytest.raises(UnknownPicture):
        engine.picture(kept.pictures[0].name)
    with pytest.raises(UnknownJob):
        engine.job("nobody")


REFUSED = {
    "unknown task": (Work("dance", {}), "unknown task"),
    "unknown setting": (Work("txt2img", {"promt": "x"}), "did you mean prompt"),
    "out of range": (Work("txt2img", {"num_steps": 0}), "num_steps"),
    "too many": (Work("txt2img", {"num_images": 1000}), "num_images"),
    "a place": (Work("txt2img", {"lora_dir": "/etc"}), "owner"),
    "another model": (Work("txt2img", {}, model="../x"), "no checkpoint"),
    "a LoRA that is not there": (Work("txt2img", {"loras": "film:0.5"}), "no lora"),
    "size": (Work("txt2img", {"height": 65}), "height"),
    "no picture": (Work("img2img", {}), "the input 'image' is missing: inputs are pictures by name; no input was sent"),
    "style_aligned alone": (Work("txt2img", {"style_aligned": 1}), "this batch has one picture"),
    "which settings there are": (Work("txt2img", {"xyz": 1}), "num_images, hires, controls, image_prompts, regions"),
    "another picture": (Work("img2img", {}, {"mask": PICTURE[..., 0]}), "sent: 'mask'"),
    "strength": (Work("img2img", {"strength": 2}, {"image": PICTURE}), "strength"),
    "no mask": (Work("inpaint", {}, {"image": PICTURE}), "mask"),
    "another mask": (Work("inpaint", {}, {"image": PICTURE, "mask": PICTURE[:4, :, 0]}), "mask"),
    "a sampler's option": (Work("txt2img", {"sampler": "ddim", "sampler_options": {"eta": "x"}}), "another type"),
    "a sampler of another type": (Work("txt2img", {"sampler": [1]}), "sampler is a name"),
    "a control's options": (
        Work("txt2img", {"controls": [{"network": "builtin-edges", "options": 1}]}), "options are names and numbers"
    ),
    "annotators": (Work("hint", {"preprocessor": "canny", "annotators": 1}, {"image": PICTURE}), "named by a text"),
    "a filling": (Work("inpaint", {"fill": "x"}, {"image": PICTURE, "mask": PICTURE[..., 0]}), "fill is one of"),
    "a sampler": (Work("txt2img", {"sampler": "dim"}), "sampler"),
    "hires": (Work("txt2img", {"hires": {"by": 2}}), "hires"),
    "a control's field": (Work("txt2img", {"controls": [{"net": "x"}]}), "has no 'net'"),
    "a control's hint": (Work("txt2img", {"controls": [{"network": "builtin-edges", "hint": "x"}]}), "'x' is missing"),
    "an upscaler": (Work("upscale", {"upscaler": "x"}, {"image": PICTURE}), "no upscaler"),
    "a preprocessor": (Work("hint", {"preprocessor": "x"}, {"image": PICTURE}), "preprocessor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_is_refused_before_it_waits(name, engine_with):
    work, said = REFUSED[name]
    engine = engine_with(paint, slots=1)
    with pytest.raises(ValueError, match=said):
        engine.submit(work)
    assert engine.jobs() == []


def test_settings_of_files_become_what_requests_take():
    given = {"prompt": "x", "loras": "film:0.5", "num_images": 3,
             "controls": [{"network": "builtin-edges", "hint": "edges", "weight": 0.5}]}  # fmt: skip
    shelf = Shelf(("lora", "film", "/m/film.safetensors"))
    options = read(Work("txt2img", given, {"edges": PICTURE}), shelf, ())
    assert options.count == 3
    assert options.of_files["adapters"] == ("/m/film.safetensors:0.5",)
    assert options.of_files["controls"][0].weight == 0.5
    assert options.of_files["controls"][0].hint is PICTURE


def test_time_left_is_of_the_measured_speed():
    speed = Speed(slots=2)
    assert speed.left(job("x"), 0, []) is None
    speed.add(4.0)
    assert speed.left(job("x"), 0, []) == 4.0  # a slot is free
    assert speed.left(job("x"), 1, [job("y"), job("z")]) == 4.0 * 2  # the second of those that wait for two slots
    assert speed.until_room(2) == 2.0


def test_the_least_recently_used_model_makes_room_and_one_in_use_is_waited_for(monkeypatch):
    monkeypatch.setattr(sdjax, "load", lambda *_, **__: models.pipeline())
    device = Device(make_mesh(jax.devices()[:1]), 1)
    shelf = Shelf(*(("checkpoint", name, Path("builtin")) for name in "abc"))
    monkeypatch.setattr("sdjax.loading.hub.resolve", lambda place, *_: builtin.place("builtin"))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(models.pipeline().params))
    loaded = Models(shelf, device, "a", lambda name: None, most=size + size_of(builtin.place("builtin")))
    for job, name in ("1", None), ("2", "b"):
        loaded.lease(job, name)
        loaded.release(job)
    assert loaded.loaded == ["b", "a"]
    loaded.lease("3", "a")
    loaded.lease("4", "c")  # b is dropped
    assert loaded.loaded == ["c", "a"]
    waits = threading.Thread(target=loaded.lease, args=("5", "b"))
    waits.start()
    waits.join(0.1)
    assert waits.is_alive()
    loaded.release("3")
    waits.join(10)
    assert loaded.loaded == ["b", "c"]
    loaded.release("4")
    loaded.free()
    assert loaded.loaded == ["b"]
    device.close()
