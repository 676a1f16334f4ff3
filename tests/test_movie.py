"""Animations as files: every kind read back, their timing, comments, ffmpeg's absence and failure."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sdjax.pictures import movie


def frames(count: int = 7, height: int = 48, width: int = 64) -> np.ndarray:
    """Returns smooth pictures that differ from frame to frame."""
    t, y, x = np.mgrid[:count, :height, :width]
    return np.stack([(3 * x + 20 * t) % 256, 4 * y + 2 * t, 128 + 60 * np.sin(x / 9 + t)], -1).astype(np.uint8)


def read(data: bytes) -> tuple[np.ndarray, list[int], Image.Image]:
    picture = Image.open(io.BytesIO(data))
    found, times = [], []
    for i in range(picture.n_frames):
        picture.seek(i)
        found.append(np.asarray(picture.convert("RGB")))
        times.append(picture.info.get("duration"))  # a single frame may have none
    return np.stack(found), times, picture


# Mean difference in levels: 256 colours with error diffusion, exact, and WebP's quality 90
@pytest.mark.parametrize(("kind", "tolerance"), [("gif", 12), ("apng", 0), ("webp", 4)])
def test_frames_come_back(kind, tolerance):
    want = frames()
    found, times, picture = read(movie.encode(want, kind, fps=10))
    assert found.shape == want.shape
    assert np.abs(found.astype(int) - want.astype(int)).mean() <= tolerance
    assert times == [100] * len(want)
    assert picture.info["loop"] == 0  # for ever


@pytest.mark.parametrize("fps", [3, 7.5, 24, 30, 50])
def test_the_whole_has_the_right_length_although_formats_count_in_hundredths(fps):
    for kind, unit in ("gif", 10), ("apng", 1), ("webp", 1):
        _, times, _ = read(movie.encode(frames(30, 16, 16), kind, fps=fps))
        assert sum(times) == pytest.approx(30_000 / fps, abs=unit), kind


def test_settings_are_in_the_file():
    text = {"parameters": "a cät\nSteps: 3", "sdjax": '{"seed": 1}'}
    picture = Image.open(io.BytesIO(movie.encode(frames(2), "gif", text=text)))
    assert json.loads(picture.info["comment"]) == text
    assert Image.open(io.BytesIO(movie.encode(frames(2), "apng", text=text))).text == text
    exif = Image.open(io.BytesIO(movie.encode(frames(2), "webp", text=text))).getexif()
    comment = exif.get_ifd(0x8769)[0x9286]
    assert json.loads(comment.removeprefix(b"UNICODE\0").decode("utf-16-be")) == text
    single = Image.open(io.BytesIO(movie.encode(frames(2), "gif", text={"parameters": "a cat"})))
    assert single.info["comment"] == b"a cat"


def test_one_frame_is_an_animation_too():
    for kind in ("gif", "apng", "webp"):
        found, _, _ = read(movie.encode(frames(1), kind))
        assert found.shape == (1, 48, 64, 3)


def fake_ffmpeg(folder, monkeypatch, script: str, encoders: str = "libx264") -> None:
    """Puts a program named ffmpeg, of Python, alone on the PATH."""
    path = folder / "ffmpeg"
    first = f"if '-encoders' in sys.argv: sys.exit(print(' V....D {encoders}  an encoder'))"
    path.write_text(f"#!{sys.executable}\nimport sys, json, pathlib\n{first}\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder))


def test_ffmpeg_is_given_raw_frames_and_their_format(tmp_path, monkeypatch):
    script = (
        "data = sys.stdin.buffer.read(); notes = pathlib.Path(sys.argv[-1]).with_name('notes.txt').read_text();"
        "pathlib.Path(sys.argv[-1]).write_bytes(json.dumps([*sys.argv, notes]).encode() + data)"
    )
    fake_ffmpeg(tmp_path, monkeypatch, script)
    pixels = frames(3, 20, 33)
    said = movie.encode(pixels, "mp4", fps=7.5, text={"parameters": "--flag; $(touch x)\n[b=c]#" + "long" * 50_000})
    assert said.endswith(pixels.tobytes())
    arguments = json.loads(said[: -pixels.nbytes])
    for name, value in {"-video_size": "33x20", "-framerate": "15/2", "-pix_fmt": "rgb24"}.items():
        assert arguments[arguments.index(name) + 1] == value
    assert arguments[-1].startswith(";FFMETADATA1\ncomment=--flag\\; $(touch x)\\\n[b\\=c]\\#long")


def test_what_ffmpeg_says_is_the_error(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, "sys.exit('first\\nUnknown encoder libx264')")
    with pytest.raises(OSError, match="wrote no MP4: Unknown encoder libx264"):
        movie.encode(frames(2), "mp4")


def test_an_ffmpeg_without_x264_is_refused_before_there_are_frames(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, "", encoders="mpeg4")
    with pytest.raises(FileNotFoundError, match="ffmpeg was built without libx264"):
        movie.find_ffmpeg()


def test_missing_ffmpeg_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="ffmpeg, which is not on the PATH.*gif, apng or webp"):
        movie.encode(frames(2), "mp4")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_an_mp4_decodes_to_its_frames():
    want = frames(9, 48, 65)
    command = ["ffmpeg", "-loglevel", "error", "-i", "pipe:0", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    out = subprocess.run(command, input=movie.encode(want, "mp4", fps=12), capture_output=True, check=True).stdout
    found = np.frombuffer(out, np.uint8).reshape(9, 48, 66, 3)  # an odd side is padded
    assert np.abs(found[:, :, :65].astype(int) - want.astype(int)).mean() < 6  # halved colours, quality 18


@pytest.mark.parametrize(
    ("name", "kind"), [("a.gif", "gif"), ("b/c.APNG", "apng"), ("c.png", "apng"), ("d.mp4", "mp4")]
)
def test_a_files_ending_says_its_kind(name, kind):
    assert movie.kind_of(name) == kind


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: movie.encode(frames(2), "avi"), "one of gif, apng, webp, mp4; got 'avi'"),
        (lambda: movie.encode(frames(2), "gif", fps=0), "above 0 and up to 50"),
        (lambda: movie.encode(frames(2), "gif", fps=51), "above 0 and up to 50"),
        (lambda: movie.encode(frames(2), "gif", fps=float("nan")), "above 0 and up to 50"),
        (lambda: movie.encode(frames(2)[0], "gif"), "frames are uint8"),
        (lambda: movie.encode(frames(2)[:0], "gif"), "frames are uint8"),
        (lambda: movie.kind_of(f"movie{os.extsep}avi"), "ends in"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
