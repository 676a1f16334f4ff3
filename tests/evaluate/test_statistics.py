"""Statistics of features in npz files, as other tools write and read them, and hostile ones."""

import io
import zipfile

import numpy as np
import pytest

from sdjax.evaluate import statistics
from sdjax.evaluate.making import Folder
from sdjax.evaluate.measures import MEASURES
from sdjax.evaluate.references import PictureSet, open_reference

MU, SIGMA = np.arange(3.0), np.diag([1.0, 2.0, 3.0])


def npz(path, **members):
    """Writes an npz file with these members as .npy bytes or arrays."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data if isinstance(data, bytes) else npy(data))
    return path


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def header(shape, dtype="<f8"):
    """Returns the start of a .npy file that claims this shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_statistics_are_read_back_and_by_numpy(tmp_path):
    path = tmp_path / "stats.npz"
    statistics.save_statistics(path, MU, SIGMA)
    for got, want in zip(statistics.read_statistics(path), (MU, SIGMA)):
        np.testing.assert_array_equal(got, want)
    with np.load(path, allow_pickle=False) as arrays:  # as pytorch-fid does
        np.testing.assert_array_equal(arrays["mu"][:], MU)
        np.testing.assert_array_equal(arrays["sigma"][:], SIGMA)


def test_other_tools_files_are_read(tmp_path):
    np.savez(
        tmp_path / "plain.npz", mu=MU.astype(np.float32), sigma=np.asfortranarray(SIGMA + np.eye(3, k=1)), more=[1]
    )
    mean, covariance = statistics.read_statistics(tmp_path / "plain.npz")
    np.testing.assert_array_equal(covariance, SIGMA + np.eye(3, k=1))
    assert mean.dtype == covariance.dtype == np.float64
    np.savez_compressed(tmp_path / "kid.npz", feats=SIGMA)
    assert statistics.names_in(tmp_path / "kid.npz") == ("feats",)
    np.testing.assert_array_equal(statistics.read_features(tmp_path / "kid.npz"), SIGMA)


class Means:
    """A network whose features are a picture's mean colours."""

    name = "inception"
    identity = "inception of a test"

    def __call__(self, pictures, captions):
        return {"pool": np.stack([picture.mean((0, 1)) for picture in pictures]), "logits": np.ones((len(pictures), 2))}


def test_statistics_of_reference_pictures_are_kept_for_other_tools(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    reference = PictureSet("five pictures", 5, lambda: iter(pictures)).features(Means(), Folder(tmp_path))
    path = next(tmp_path.rglob("inception-statistics.npz"))
    mean, covariance = statistics.read_statistics(path)
    np.testing.assert_allclose(mean, pictures.mean((0, 1, 2)))
    np.testing.assert_allclose(covariance, np.cov(pictures.mean((1, 2)), rowvar=False))
    again = open_reference(path).features(Means(), None)
    fid, other = MEASURES["fid"], {"pool": np.random.default_rng(1).normal(100, 9, (9, 3))}
    assert fid.of_statistics(again.statistics)(other) == pytest.approx(fid.function(other, reference.features))


HOSTILE = {
    "no sigma": ({"mu": MU}, "holds no array sigma"),
    "other shapes": ({"mu": MU, "sigma": np.eye(4)}, "expected .d. and .d, d."),
    "empty": ({"mu": MU[:0], "sigma": SIGMA[:0, :0]}, "expected .d. and .d, d."),
    "objects": ({"mu": np.array([{}, 1], object), "sigma": SIGMA}, "expected floating-point numbers"),
    "texts": ({"mu": np.array(["a"]), "sigma": SIGMA}, "expected floating-point numbers"),
    "not finite": ({"mu": MU * np.nan, "sigma": SIGMA}, "NaN or infinity"),
    "too large": ({"mu": header((10**18,)), "sigma": SIGMA}, "more than"),
    "negative": ({"mu": header((-1,)), "sigma": SIGMA}, "does not have the length|cannot be read"),
    "too short": ({"mu": header((3,)) + bytes(8), "sigma": SIGMA}, "does not have the length"),
    "too long": ({"mu": header((3,)) + bytes(48), "sigma": SIGMA}, "does not have the length"),
    "no npy": ({"mu": b"hello", "sigma": SIGMA}, "cannot be read"),
    "header of nonsense": ({"mu": header("__import__('os')"), "sigma": SIGMA}, "cannot be read"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_a_sentence(case, tmp_path):
    members, words = HOSTILE[case]
    with pytest.raises(ValueError, match=words):
        statistics.read_statistics(npz(tmp_path / "stats.npz", **members))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "stats.npz"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="no npz file .*pytorch-fid"):
        statistics.read_statistics(path)
    with pytest.raises(OSError):
        statistics.read_statistics(tmp_path / "nothing.npz")
