"""Files of starting noise: NumPy's .npy with one array, float [h, w, c]."""

import hashlib
import io
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>]f[248])', 'fortran_order': (True|False), "
    rb"'shape': \(([1-9]\d{0,3}), ([1-9]\d{0,3}), ([1-9]\d{0,3})\), \} *\n",
    re.DOTALL,
)


class GivenNoise(NamedTuple):
    """Starting noise from a file: float32 [h, w, c], and the file's path and hash."""

    path: Path
    values: Any
    sha256: str

    def describe(self) -> dict[str, str]:
        """Returns the file's name and hash, for a picture's settings."""
        return {"name": self.path.name, "sha256": self.sha256}

    def size(self, height: int | None, width: int | None, vae: Any) -> tuple[int, int]:
        """Returns the (height, width) of pictures from this noise, in pixels. `height` and `width` are the flags.

        Raises ValueError if the noise does not fit the flags or the model's autoencoder.
        """
        h, w, channels = self.values.shape
        if channels != vae.latent_channels:
            raise ValueError(
                f"--latents {self.path} has {channels} channels, and the model's latents have {vae.latent_channels}"
            )
        own = h * vae.factor, w * vae.factor
        if height not in (None, own[0]) or width not in (None, own[1]):
            raise ValueError(f"--latents {self.path} is noise for --H {own[0]} --W {own[1]}: leave --H and --W out")
        return own


def encode(latents: Any) -> bytes:
    """Returns the bytes of a file with this noise."""
    import numpy as np

    data = io.BytesIO()
    np.save(data, np.asarray(latents, np.float32), allow_pickle=False)
    return data.getvalue()


def read(path: str) -> GivenNoise:
    """Returns the noise of a file. Nothing in the file is executed, and no more than its own bytes are read.

    Raises ValueError for a missing file, another kind of file, and numbers that are not finite.
    """
    from sdjax import pictures
    from sdjax.scripts.shared.input_pictures import reason

    try:
        data = pictures.read_file(path)
        latents = _array(data)
    except OSError as error:
        raise ValueError(f"--latents {path} cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise ValueError(
            f"--latents {path} is no starting noise, a .npy file with finite numbers [height / 8, width / 8, channels] "
            f"as `sdjax invert` writes it: {error}"
        ) from None
    return GivenNoise(Path(path), latents, hashlib.sha256(data).hexdigest())


def _array(data: bytes) -> Any:
    """Returns the array of a .npy file. Raises ValueError.

    The header is matched as `numpy.save` writes it: NumPy's own reader evaluates it as Python's literals.
    """
    import numpy as np

    header = _HEADER.match(data)
    if header is None:
        raise ValueError("it does not begin as such a file does")
    kind, order, *shape = (text.decode() for text in header.groups())
    sides = tuple(map(int, shape))
    values = np.frombuffer(data, kind, offset=header.end())
    if math.prod(sides) != values.size:
        raise ValueError(f"an array of {list(sides)} does not fit its {len(data)} bytes")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("some numbers are not finite")
    return values.reshape(sides, order="F" if order == "True" else "C")
