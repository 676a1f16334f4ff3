"""Outputs of a run: lines, events, pictures, the console; and the rates of devices."""

import io
import json
import struct
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from sdjax.train.metrics import Speed, Writers
from sdjax.train.outputs import cut_log, duration
from sdjax.train.planning.peaks import PEAKS, peak_flops


@pytest.fixture
def told(tmp_path):
    """Returns a maker of writers in one folder; the console writes lines."""
    made = []

    def make(**options):
        made.append(Writers(tmp_path, 100, **{"tensorboard": False, "progress": False, **options}))
        return made[-1]

    yield make
    for writers in made:
        writers.close()


def lines(folder):
    """Returns the log as a strict reader of JSON has it: Python's own takes NaN, which JSON does not have."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "log.jsonl").read_text().splitlines()]


def events(folder):
    """Returns TensorBoard's events of a folder in order; a record is its length, a CRC, the event, a CRC."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        data, i = path.read_bytes(), 0
        while i < len(data):
            (length,) = struct.unpack_from("<Q", data, i)
            found.append(Event.FromString(data[i + 12 : i + 12 + length]))
            i += length + 16
    return found


def test_numbers_become_lines_and_what_is_not_finite_null(told, tmp_path):
    writers = told()
    writers.scalars(1, {"loss": np.float32(0.5), "gradient": float("nan")})
    writers.scalars(2, {"loss": jax.numpy.float32(0.25), "gradient": float("inf")})
    assert lines(tmp_path) == [
        {"step": 1, "loss": 0.5, "gradient": None},
        {"step": 2, "loss": 0.25, "gradient": None},
    ]


def test_a_run_that_goes_on_takes_back_what_was_told_of_later_steps(told, tmp_path):
    writers = told()
    for step in (10, 20, 30):
        writers.scalars(step, {"loss": float(step)})
    writers.scalars(20, {"validation/loss": 2.0})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # the process ended while it wrote
    told(first=20).scalars(30, {"loss": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 20, 30]
    assert lines(tmp_path)[-1] == {"step": 30, "loss": 3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_is_in_order_is_not_touched(tmp_path):
    path = tmp_path / "log.jsonl"
    cut_log(path, 3)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 3}\n')
    before = path.stat()
    cut_log(path, 3)
    assert path.stat().st_ino == before.st_ino
    cut_log(path, 2)
    assert path.read_text() == '{"step": 1}\n'
    path.write_text('{"step": 1}\n{"step": 2}')  # without its end the next line would stand on the same one
    cut_log(path, 2)
    assert path.read_text() == '{"step": 1}\n'


def test_tensorboard_gets_scalars_pictures_and_the_step_from_which_to_forget(told, tmp_path):
    writers = told(tensorboard=True, first=7)
    writers.scalars(8, {"loss": 0.5, "gradient": float("nan")})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8)
    writers.pictures(9, "samples", pixels, ["a cat", "ein Bär"])
    writers.close()
    seen = events(tmp_path / "tensorboard")
    (restart,) = [event for event in seen if event.WhichOneof("what") == "session_log"]
    assert (restart.step, restart.session_log.status) == (8, restart.session_log.START)
    values = {value.tag: (event.step, value) for event in seen for value in event.summary.value}
    assert set(values) == {"loss", "samples/0", "samples/1", "samples/captions/text_summary"}
    assert (values["loss"][0], values["loss"][1].simple_value) == (8, 0.5)
    for i in range(2):
        step, value = values[f"samples/{i}"]
        assert step == 9
        np.testing.assert_array_equal(Image.open(io.BytesIO(value.image.encoded_image_string)), pixels[i])
    assert b"ein B\xc3\xa4r" in values["samples/captions/text_summary"][1].tensor.string_val[0]


def test_pictures_become_a_sheet_that_holds_its_captions(told, tmp_path):
    pixels = np.full((3, 8, 6, 3), 200, np.uint8)
    told().pictures(12, "samples", pixels, ["a", "b", "c"])
    told(first=10).pictures(12, "samples", pixels // 2, ["a", "b", "c"])
    with Image.open(tmp_path / "pictures" / "samples" / "00000012.png") as sheet:
        assert sheet.size == (2 * 6 + 3 * 2, 2 * 8 + 3 * 2)  # two rows of two, two pixels between
        assert sheet.getpixel((2, 2)) == (100, 100, 100)
        assert sheet.text == {"captions": "a\nb\nc"}
    with pytest.raises(ValueError, match="got 3 pictures and 1 captions"):
        told().pictures(13, "samples", pixels, ["a"])


def test_a_line_a_minute_tells_speed_and_time_left(told, capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("sdjax.train.outputs.time.monotonic", lambda: now[0])
    writers = told(speed=Speed(images=8, flops=2e12, peak=8e12))
    for step, passed in ((10, 30), (20, 29), (30, 0.5), (100, 1)):
        writers.scalars(step, {"loss": 0.125, "seconds": 0.5})
        now[0] += passed
    writers.scalars(30, {"validation/loss": 0.25})
    writers.say("saved")
    assert capsys.readouterr().err.splitlines() == [
        "step 10 of 100: loss 0.125, 16 images/s, MFU 50.0 %, 45 s left",
        "step 100 of 100: loss 0.125, 16 images/s, MFU 50.0 %, 0 s left",
        "step 30: validation/loss 0.25",
        "saved",
    ]


def test_a_bar_stands_where_the_run_is(told, capsys):
    writers = told(progress=True, first=40)
    writers.scalars(60, {"loss": 0.125, "seconds": 0.5})
    writers.say("saved")
    writers.close()
    shown = capsys.readouterr().err
    assert "40/100" in shown
    assert "60/100" in shown
    assert "loss 0.125" in shown
    assert "saved\n" in shown


def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Writers(tmp_path, 100, tensorboard=False).close()
    assert "0/100" in capsys.readouterr().err


def test_speed_is_images_and_operations_over_seconds():
    assert Speed(8).of(0.5) == {"images_per_second": 16.0}
    assert Speed(8, 3e12).of(0.5) == {"images_per_second": 16.0, "flops_per_second": 6e12}
    assert Speed(8, 3e12, 12e12).of(0.5)["mfu"] == 0.5


def test_only_the_first_process_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writers = Writers(tmp_path / "run", 100, progress=True)
    writers.scalars(1, {"loss": 1.0, "seconds": 1.0})
    writers.pictures(1, "samples", np.zeros((1, 8, 8, 3), np.uint8), ["a"])
    writers.say("saved")
    writers.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_tensorboard_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .sdjax\[train\].*log.tensorboard = False"):
        Writers(tmp_path, 100)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (310, "5 min 10 s"), (12_000, "3 h 20 min"), (97_300, "1 d 3 h"), (7201, "2 h"),
     (float("nan"), "unknown time")],
)  # fmt: skip
def test_a_duration_has_two_units(seconds, text):
    assert duration(seconds) == text


def test_rates_are_the_makers_and_unknown_devices_have_none():
    # Data sheets: 1,979 with sparsity for an H100 SXM, halved; 197 a TPU v5e chip; 312 an A100; 989 / 2 TF32
    assert peak_flops("NVIDIA H100 80GB HBM3") == pytest.approx(1979e12 / 2, rel=1e-3)
    assert peak_flops("NVIDIA H100 80GB HBM3", "tensorfloat32") == pytest.approx(989e12 / 2, rel=1e-3)
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5 lite", "float32") == 197e12
    assert peak_flops("A100-SXM4-80GB", "float16") == 312e12  # as older drivers spell it
    for kind in ("cpu", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Tesla P100"):
        assert peak_flops(kind) is None
    assert peak_flops("Tesla T4") is None  # no bfloat16
    with pytest.raises(ValueError, match="got 'int8'"):
        peak_flops("Tesla T4", "int8")


def test_fewer_bits_are_never_slower():
    for kind, rates in PEAKS.items():
        order = [rates[name] for name in ("float32", "tensorfloat32", "float16") if rates[name] is not None]
        assert order == sorted(order), kind
        assert rates["bfloat16"] in (None, rates["float16"]) or kind.startswith("TPU")


@pytest.mark.parametrize(
    ("kind", "units", "clock"),
    [("TPU v2", 1, 700e6), ("TPU v3", 2, 940e6), ("TPU v4", 8, 1050e6), ("TPU v5e", 4, 1.5e9)],
)
def test_a_tpus_rate_is_its_matrix_units_times_its_clock(kind, units, clock):
    # Of one device: a core of v2 and v3, a chip of the others. A unit does 128 x 128 multiply-adds a cycle. Sources:
    # Jouppi et al. 2023 (arXiv 2304.01433), table 4; Austin et al. 2025, "How to Scale Your Model"
    assert peak_flops(kind) == pytest.approx(2 * 128**2 * units * clock, rel=0.03)
