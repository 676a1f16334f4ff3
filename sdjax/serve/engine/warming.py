"""Compiles ahead of need: the programs of all powers of two of pictures, for the model's own size."""

import contextlib

from sdjax.serve.engine.device import Device
from sdjax.serve.engine.models import Models
from sdjax.serve.engine.work import Closing

LONG = "a " * 100  # a prompt of two chunks


def warm_up(models: Models, device: Device) -> None:
    """Makes a picture of one step with the current model, and one of a long prompt, and throws them away.

    Their programs for 2, 4, ... pictures are compiled behind them. This returns when all are there.
    """
    import sdjax
    from sdjax.nn.jax_settings import pinned

    with contextlib.suppress(Closing), pinned():
        pipe = models.lease("warm-up", None).pipe
        try:
            for prompt in "a", LONG:
                sdjax.text_to_image(pipe, prompt, num_steps=1, devices=[device.mesh.devices.flat[0]])
                entry = device.latest
                count = 2
                while entry is not None and count <= device.most:
                    device.programs.ask([entry] * count)
                    count *= 2
            device.programs.wait_for_all()
        finally:
            models.release("warm-up")
