"""The invisible watermark: the reference's pictures and bits, what reading one says, refusals."""

import pathlib

import numpy as np
import pytest

from sdjax.pictures import watermark

GOLDEN = pathlib.Path(__file__).parent / "golden" / "watermark.npz"
TEXTS = list(watermark.TEXTS.values())


def formula(height: int, width: int) -> np.ndarray:
    """Returns a picture of whole-number arithmetic, with smooth, busy and saturated parts."""
    y, x = np.mgrid[:height, :width]
    red = 40 + (x * 3 + y) // 9 + (x * y) % 61
    green = 200 - y // 3 + (x ^ y) % 32
    blue = np.where((x // 32 + y // 32) % 2, 255 - x // 2, (x * x + 3 * y) % 257)
    return np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)


def natural(seed: int, height: int = 256, width: int = 320) -> np.ndarray:
    """Returns a random picture whose spectrum falls as a photograph's does."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    frequency[0, 0] = 1
    channels = [np.fft.ifft2(np.fft.fft2(rng.normal(size=frequency.shape)) / frequency).real for _ in range(3)]
    image = np.stack(channels, -1)
    return np.clip(40 * image / image.std() + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(256, 260), (301, 262)])
@pytest.mark.parametrize("text", TEXTS)
def test_pictures_and_bits_are_the_references(text, size):
    """Bit for bit: stored are every 16th row and 4th column of what invisible-watermark 0.2.0 makes, and its bits."""
    golden, name = np.load(GOLDEN), f"{text}/{size[0]}x{size[1]}"
    marked = watermark.embed(formula(*size), text)
    np.testing.assert_array_equal(marked[::16, ::4], golden[f"{name}/marked"])
    for picture, kind in (marked, "bits"), (formula(*size), "bits_unmarked"):
        bits = watermark.to_bits(watermark.read_bits(picture, 8 * len(text)))
        np.testing.assert_array_equal(bits, golden[f"{name}/{kind}"])


@pytest.mark.torch
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [(256, 256), (263, 518)])
def test_the_reference_reads_ours_and_we_read_its(text, size):
    package = pytest.importorskip("imwatermark")  # it imports torch and OpenCV
    encoder, decoder = package.WatermarkEncoder(), package.WatermarkDecoder("bytes", 8 * len(text))
    encoder.set_watermark("bytes", text.encode())
    for picture in formula(*size), natural(1, *size):
        ours = watermark.embed(picture, text)
        theirs = encoder.encode(picture[..., ::-1].copy(), "dwtDct")[..., ::-1]
        np.testing.assert_array_equal(ours, theirs)
        for marked in ours, theirs, picture:
            read = decoder.decode(marked[..., ::-1].copy(), "dwtDct")
            assert watermark.decode(marked, len(text)).data == read


def test_a_flat_picture_gives_its_text_back():
    for text in TEXTS:
        marked = watermark.embed(np.full((256, 256, 3), 200, np.uint8), text)
        assert watermark.decode(marked, len(text)) == (text.encode(), 1.0)


def test_brightness_stays_and_the_mark_is_in_the_colours():
    picture = natural(0)
    changed = watermark.embed(picture, "SDV2").astype(float) - picture
    luma = changed @ [0.299, 0.587, 0.114]
    # Each of Y and the three channels is rounded to a whole level, and a channel may be cut at 0 or 255
    assert np.abs(luma).mean() < 0.5
    assert np.abs(changed[..., 2]).mean() > 2


def test_evidence_tells_marked_pictures_from_others():
    for seed in range(6):
        picture = natural(seed)
        for text, other in zip(TEXTS, TEXTS[::-1]):
            marked = watermark.embed(picture, text)
            assert abs(watermark.evidence(picture, text)) < 5  # standard deviations: 1 in two million by chance
            assert watermark.evidence(marked, text) > 10
            # Letters share bits: the top one of every byte is 0
            assert watermark.evidence(marked, other) < watermark.evidence(marked, text) / 2


def test_evidence_of_unmarked_pictures_is_standard_normal():
    scores = [watermark.evidence(natural(seed, 256, 256), "SDV2") for seed in range(40)]
    assert abs(np.mean(scores)) < 0.6  # four standard errors of 40 scores
    assert 0.6 < np.std(scores) < 1.5


def test_a_flat_colour_is_no_evidence_although_its_blocks_agree():
    flat = np.full((256, 256, 3), 90, np.uint8)
    assert watermark.decode(flat, 4) == (b"\0\0\0\0", 1.0)
    assert watermark.evidence(flat, "SDV2") == 0


def test_any_bytes_may_be_written_and_the_given_picture_stays():
    flat = np.full((256, 256, 3), 200, np.uint8)
    before = flat.copy()
    assert watermark.decode(watermark.embed(flat, bytes(range(16))), 16).data == bytes(range(16))
    assert watermark.decode(watermark.embed(flat, "Grüße"), 7).data.decode() == "Grüße"
    np.testing.assert_array_equal(flat, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: watermark.embed(np.zeros((255, 256, 3), np.uint8), "SDV2"), "at least 256 x 256"),
        (lambda: watermark.embed(np.zeros((4, 2**15, 3), np.uint8), "SDV2"), "at least 256 x 256"),
        (lambda: watermark.embed(np.zeros((256, 256, 4), np.uint8), "SDV2"), "uint8"),
        (lambda: watermark.embed(np.zeros((256, 256, 3), np.float32), "SDV2"), "uint8"),
        (lambda: watermark.embed(np.zeros((256, 256, 3), np.uint8), ""), "empty"),
        (lambda: watermark.evidence(np.zeros((256, 256, 3), np.uint8), ""), "empty"),
        (lambda: watermark.decode(np.zeros((64, 64, 3), np.uint8), 4), "at least 256 x 256"),
        (lambda: watermark.decode(np.zeros((256, 256, 3), np.uint8), 0), "1 to 1024 bits"),
        (lambda: watermark.decode(np.zeros((256, 256, 3), np.uint8), 129), "1 to 1024 bits"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
