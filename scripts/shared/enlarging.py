"""The flags and the run of `sdjax upscale --model`: pictures enlarged by an upscaler of the ESRGAN family."""

import argparse
from pathlib import Path
from typing import Any

from sdjax._version import __version__
from sdjax.scripts.shared import input_pictures, picture_settings, runtime, saving, values
from sdjax.scripts.shared.flags import together

WITH = together("--model")
TAKEN = ("model", "times", "tile", "init_img", "background", "device", "dtype", "precision", "outdir", "watermark",
         "debug")  # fmt: skip  # the flags that have an effect with --model


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of an upscaler of the ESRGAN family."""
    add = parser.add_argument_group("a small upscaler instead of a Stable Diffusion model").add_argument
    add(
        "--model",
        metavar="FILE",
        help="an upscaler of the ESRGAN family: ESRGAN, Real-ESRGAN or the compact network (.pth or .safetensors)",
    )
    add(
        "--times",
        type=values.finite,
        metavar="X",
        needs=WITH,
        help="how many times as high and wide, from 1 to 16; default: what the upscaler was made for",
    )
    add(
        "--tile",
        type=values.positive,
        metavar="N",
        needs=WITH,
        help="side in pixels of the parts that are computed at once; less needs less memory and gives the same "
        "pictures; default: 512",
    )


def read_upscaler(path: str) -> Any:
    """Returns the upscaler of a file, on this computer or at the hub. Raises CheckpointError if it is none."""
    from sdjax.loading import hub
    from sdjax.tasks import enlarge

    return enlarge.read_upscaler(hub.resolve(path))


def run(args: argparse.Namespace) -> None:
    """Makes and writes the pictures. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    for name, (flag, _) in args.given.items():
        if name not in TAKEN:
            raise ValueError(f"{flag} has no effect with --model, whose upscaler takes pictures alone: leave it out")
    saving.check_watermark(args.watermark)
    dtype = runtime.compute_dtype(args) or "float32"  # half precision shows as steps in smooth skies
    devices = runtime.set_up_jax(args.device)
    pictures = input_pictures.read_pictures(args.init_img, args.background)
    folder = Path(args.outdir)
    saving.check_outdir(folder / "samples")
    import jax

    from sdjax.pictures import image
    from sdjax.tasks import enlarge
    from sdjax.tasks.results import advice

    loaded = read_upscaler(args.model)
    sizes = [enlarge.size_of(loaded, picture.pixels, args.times) for picture in pictures]
    tile = enlarge.TILE if args.tile is None else args.tile
    settings: dict[str, Any] = {
        "task": "upscale",
        "upscaler": picture_settings.fingerprint(args.model),
        "dtype": dtype,
        "versions": {"sdjax": __version__, "jax": jax.__version__},
    }
    with runtime.Progress(len(pictures)) as progress, runtime.Interrupts() as interrupts:
        for picture, size in zip(pictures, sizes):

            def show(done: int, total: int) -> None:
                progress.bar.update()
                interrupts.check()

            with advice(*size, 1, "float32"), jax.default_device(None if devices is None else devices[0]):
                made = enlarge.enlarge_to(loaded, picture.pixels, size, tile=tile, dtype=dtype, progress=show)
            own = settings | {"init_img": picture.describe(), "height": size[0], "width": size[1]}
            marked = saving.mark(made, args.watermark)
            own |= {} if marked is made else {"watermark": args.watermark}
            times = size[0] / picture.pixels.shape[0]
            texts = {
                "parameters": image.infotext(
                    "", "", {"Postprocess upscale by": f"{times:g}", "Postprocess upscaler": loaded.name}
                ),
                "sdjax": picture_settings.to_json(own),
            }
            progress.print(image.save_numbered(folder / "samples", marked, texts))
