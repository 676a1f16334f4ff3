"""Mean and covariance of features in npz files, as pytorch-fid and clean-fid write and read them.

pytorch-fid's `--save-stats` and clean-fid's `make_custom_stats` write the arrays `mu` [d] and `sigma` [d, d].
clean-fid's files for KID hold `feats` [n, d]. Files are not trusted.
"""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sdjax.evaluate.distances import Covariance, Mean
from sdjax.evaluate.measures import Statistics
from sdjax.storage.addresses import local
from sdjax.storage.files import new_file

MAX_BYTES = 2 * 2**30  # of an array: feats of 100,000 pictures take 1.6 GB
_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_WHAT = "an npz file with mu [d] and sigma [d, d], as pytorch-fid's --save-stats writes"


def save_statistics(
    path: str | os.PathLike[str], mean: Mean, covariance: Covariance, *, overwrite: bool = False
) -> None:
    """Writes a file that `read_statistics`, pytorch-fid and clean-fid read. Raises as `new_file`."""
    with new_file(path, overwrite=overwrite, what="writing the statistics") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, mu=np.asarray(mean, np.float64), sigma=np.asarray(covariance, np.float64))


def read_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Returns mean and covariance, float64, of a file. Raises ValueError with one sentence if it holds none."""
    mean, covariance = (read_array(path, name, rank) for name, rank in (("mu", 1), ("sigma", 2)))
    if covariance.shape != 2 * mean.shape or not mean.size:
        shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
        raise ValueError(f"{path}: its mu and sigma have the shapes {shapes}; expected [d] and [d, d]")
    return mean, covariance


def read_features(path: str | os.PathLike[str]) -> Float[np.ndarray, "n d"]:
    """Returns the features, float64, one row a picture, of a file as clean-fid writes for KID. Raises ValueError."""
    return read_array(path, "feats", 2)


def names_in(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of the arrays in an npz file. Raises ValueError if it is none, OSError if it cannot be read."""
    try:
        with zipfile.ZipFile(Path(local(path))) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist()[:100])
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} is no npz file ({error}); expected {_WHAT}") from error


def read_array(path: str | os.PathLike[str], name: str, rank: int) -> np.ndarray:
    """Returns an array of floats of an npz file as float64. No object is unpickled, and no more is read than fits."""
    if name not in names_in(path):
        raise ValueError(f"{path} holds no array {name}; expected {_WHAT}")
    try:
        with zipfile.ZipFile(Path(local(path))) as archive, archive.open(f"{name}.npy") as file:
            read = _HEADER.get(np.lib.format.read_magic(file))
            if read is None:
                raise ValueError("it is of an unknown version")
            shape, by_columns, dtype = read(file, max_header_size=1000)
            count = int(np.prod([int(side) for side in shape], dtype=object))
            if dtype.kind != "f" or len(shape) != rank:
                raise ValueError(f"it is {dtype} {list(shape)}; expected floating-point numbers with {rank} axes")
            if count * dtype.itemsize > MAX_BYTES:
                raise ValueError(f"it has {count} numbers, more than {MAX_BYTES} bytes")
            data = file.read(count * dtype.itemsize + 1)
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: its array {name} cannot be read: {error}") from error
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{path}: its array {name} does not have the length that it names")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C").astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: its array {name} has NaN or infinity")
    return array
