"""Ctrl-C while a command makes pictures: finished ones are written, nothing is broken off, the status is 130."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax.scripts.main import main
from sdjax.scripts.shared import runtime

OUT = Path("outputs/txt2img-samples/samples")


def txt2img(*flags: str) -> int:
    return main(["txt2img", "--ckpt", "model.ckpt", "--skip_grid", *flags])


def test_the_present_call_is_finished_and_earlier_pictures_are_written(fake, monkeypatch, capsys) -> None:
    before = signal.getsignal(signal.SIGINT)
    calls: list[int] = []

    def press(pipe: object, prompts: list[str], **options) -> np.ndarray:
        if fake.made:
            os.kill(os.getpid(), signal.SIGINT)
            calls.append(1)  # what runs when the key is pressed goes on to the end
            options["progress"](5, 50)
            calls.append(2)
        return fake.text_to_image(pipe, prompts, **options)

    monkeypatch.setattr(sdjax, "text_to_image", press, raising=False)
    assert txt2img() == 130
    assert calls == [1]
    assert sorted(os.listdir(OUT)) == ["00000.png", "00001.png", "00002.png"]
    error = capsys.readouterr().err
    assert "stopping after the network's present call" in error
    assert error.endswith("sdjax: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_finished_pictures_of_the_batch_itself_are_written(fake, monkeypatch) -> None:
    def press(pipe: object, prompts: list[str], **options) -> np.ndarray:
        made = fake.text_to_image(pipe, prompts, **options)
        raise sdjax.Interrupted([None, made[1], None])

    monkeypatch.setattr(sdjax, "text_to_image", press, raising=False)
    assert txt2img() == 130
    assert os.listdir(OUT) == ["00000.png"]


def test_the_second_time_stops_at_once() -> None:
    with runtime.Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_thread_that_cannot_catch_signals_works_all_the_same() -> None:
    seen = []

    def work() -> None:
        with runtime.Interrupts() as interrupts:
            interrupts.check()
            seen.append(interrupts.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
