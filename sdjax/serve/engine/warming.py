"""Compiles ahead of need: the programs of all powers of two of pictures, for the model's own size."""

import contextlib

from sdjax.serve.engine.device import Device
from sdjax.serve.engine.models import Models
from sdjax.serve.engine.work import Closing


def warm_up(models: Models, device: Device) -> None:
    """Makes pictures of few steps with the current model, of 1, 2, 4, ... at once, and throws them away."""
    import sdjax
    from sdjax.nn.jax_settings import pinned

    with contextlib.suppress(Closing), pinned():
        pipe = models.lease("warm-up", None).pipe
        try:
            count = 1
            while count <= device.most:
                sdjax.text_to_image(pipe, "a", num_steps=1, num_images=count, devices=[device.mesh.devices.flat[0]])
                count *= 2
        finally:
            models.release("warm-up")
