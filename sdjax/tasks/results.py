"""Results of tasks: checks pictures and joins them to one array. Gives advice if the device runs out of memory."""

import contextlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

Pictures = np.ndarray | list[np.ndarray]  # [b, h, w, 3], or [h, w, 3] each if sizes differ; latents likewise


class ImageError(ValueError):
    """The result is not a picture: it has not-a-number values, or is one flat colour."""


class OutOfMemoryError(MemoryError):
    """The device has too little memory for this task."""


def check_images(image: np.ndarray, dtype: str) -> None:
    """Raises ImageError, with advice, if an image [b, h, w, 3] holds a value that is not finite, or is one colour."""
    for i, picture in enumerate(image):
        if not np.isfinite(picture).all():
            advice = "try dtype bfloat16 or float32" if dtype == "float16" else "is the checkpoint damaged?"
            raise ImageError(f"picture {i} holds values that are not numbers (computed in {dtype}); {advice}")
        if np.ptp(picture, axis=(0, 1)).max() == 0:
            raise ImageError(
                f"picture {i} is one flat colour; check the prediction type (epsilon or v) and the guidance scale "
                "(usually 1 to 20)"
            )


def joined(pictures: Sequence[np.ndarray]) -> Pictures:
    """Returns the pictures as one array [b, h, w, 3] if they have one size, else as a list."""
    return np.stack(pictures) if len({p.shape for p in pictures}) == 1 else list(pictures)


@contextlib.contextmanager
def advice(height: int, width: int, count: int, dtype: str, *, window: int | None = None) -> Iterator[None]:
    """Turns a device's out-of-memory error into an OutOfMemoryError that says what to try.

    `window`: the number of frames of a clip that the network sees at a time; None for pictures.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        tries = []
        if window is not None and window > 1:
            tries.append(f"a smaller frame_window than {window}")
        elif count > 1:
            tries.append(f"fewer pictures at once than {count}")
        if height * width > 512 * 512:
            tries.append(f"a smaller size than {width} x {height}")
        if dtype == "float32":
            tries.append("dtype bfloat16")
        tries = tries or ["closing other programs that use the device", "another device"]
        raise OutOfMemoryError(
            f"the device has too little memory for {count} picture(s) of {width} x {height} in {dtype}; "
            f"try {', or '.join(tries)}"
        ) from error
