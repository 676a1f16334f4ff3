"""The flags and the run of `sdjax upscale --model`: pictures enlarged by a small upscaler or by the latent upscaler."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sdjax._version import __version__
from sdjax.scripts.shared import input_pictures, options, runtime, saving, values
from sdjax.scripts.shared.flags import together
from sdjax.scripts.shared.made import Made
from sdjax.tasks import recording

WITH = together("--model")
TAKEN = frozenset({"model", "init_img", "background", "device", "dtype", "precision", "outdir", "watermark", "debug"})
OF_FILES = TAKEN | {"times", "tile"}  # the flags that have an effect with an upscaler's file ...
OF_FOLDERS = TAKEN | {"prompt", "negative_prompt", "seed", "sampler", "steps", "scale"}  # ... and the latent upscaler
STEPS, SCALE, SAMPLER = 20, 1.0, "euler"  # the latent upscaler's defaults

Show = Callable[[int, int], None]


class Way(NamedTuple):
    """A way to enlarge: its name, the settings of all pictures, and the function of a picture's number and pixels."""

    name: str
    settings: dict[str, Any]
    make: Callable[[int, Any, Show], Any]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a model of its own for enlarging."""
    add = parser.add_argument_group("another upscaler instead of --ckpt").add_argument
    add(
        "--model",
        metavar="FILE",
        help="a file of the ESRGAN family (ESRGAN, Real-ESRGAN or the compact network; .pth or .safetensors), or the "
        "folder or hub repository of the x2 latent upscaler, stabilityai/sd-x2-latent-upscaler",
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


def run(args: argparse.Namespace) -> Made:
    """Makes and writes the pictures, and returns the last one. Raises what `sdjax.scripts.main` explains."""
    from sdjax.loading import hub

    check_given(args, OF_FILES | OF_FOLDERS, "--model")
    saving.check_watermark(args.watermark)
    dtype = runtime.compute_dtype(args) or "float32"  # half precision shows as steps in smooth skies
    devices = runtime.set_up_jax(args.device)
    pictures = input_pictures.read_pictures(args.init_img, args.background)
    folder = Path(args.outdir)
    saving.check_outdir(folder / "samples")
    import jax

    from sdjax.pictures import image

    place = Path(hub.resolve(args.model))
    way = (latent_way if place.is_dir() else small_way)(args, place, pictures, dtype)
    settings = {
        "task": "upscale",
        "upscaler": recording.describe_model(args.model, place),
        **way.settings,
        "dtype": dtype,
        **({} if tuple(args.background) == options.WHITE else {"background": list(args.background)}),
        "versions": {"sdjax": __version__, "jax": jax.__version__},
    }
    with runtime.Progress(len(pictures)) as progress, runtime.Interrupts() as interrupts:

        def show(done: int, total: int) -> None:
            progress.bar.update()
            interrupts.check()

        for number, picture in enumerate(pictures):
            with jax.default_device(None if devices is None else devices[0]):
                made = way.make(number, picture.pixels, show)
            own = settings | {"init_img": picture.describe(), "height": made.shape[0], "width": made.shape[1]}
            own |= {"seed": args.seed + number} if "seed" in settings else {}
            marked = saving.mark(made, args.watermark)
            own |= {} if marked is made else {"watermark": args.watermark}
            times = made.shape[0] / picture.pixels.shape[0]
            fields = {"Postprocess upscale by": f"{times:g}", "Postprocess upscaler": way.name}
            texts = {"parameters": image.infotext("", "", fields), "sdjax": recording.to_json(own)}
            path = image.save_numbered(folder / "samples", marked, texts)
            progress.print(path)
    return Made(made, own, path)


def check_given(args: argparse.Namespace, taken: frozenset[str], what: str) -> None:
    """Raises ValueError for a given flag that has no effect with `what`."""
    for name, (flag, _) in args.given.items():
        if name not in taken:
            raise ValueError(f"{flag} has no effect with {what}: leave it out")


def small_way(args: argparse.Namespace, place: Path, pictures: list[Any], dtype: str) -> Way:
    """Returns the way of an upscaler of the ESRGAN family. Raises for another file and for too large pictures."""
    from sdjax.tasks import enlarge
    from sdjax.tasks.results import advice

    check_given(args, OF_FILES, "an upscaler of the ESRGAN family, which takes pictures alone")
    loaded = enlarge.read_upscaler(place)
    sizes = [enlarge.size_of(loaded, picture.pixels, args.times) for picture in pictures]
    tile = enlarge.TILE if args.tile is None else args.tile

    def make(number: int, pixels: Any, show: Show) -> Any:
        with advice(*sizes[number], 1, dtype):
            return enlarge.enlarge_to(loaded, pixels, sizes[number], tile=tile, dtype=dtype, progress=show)

    return Way(loaded.name, {} if args.times is None else {"times": args.times}, make)


def latent_way(args: argparse.Namespace, place: Path, pictures: list[Any], dtype: str) -> Way:
    """Returns the way of the latent upscaler. Raises for a folder of another model and for too large pictures."""
    from sdjax.tasks import latent_upscale

    check_given(args, OF_FOLDERS, "the latent upscaler")
    for picture in pictures:
        latent_upscale.check_side(*picture.pixels.shape[:2])
    loaded = latent_upscale.read_latent_upscaler(place)
    settings: dict[str, Any] = {
        "prompt": args.prompt or "",
        "negative_prompt": args.negative_prompt or "",
        "seed": args.seed,
        "sampler": args.sampler or SAMPLER,
        "steps": args.steps if "steps" in args.given else STEPS,
        "guidance_scale": SCALE if args.scale is None else args.scale,
    }
    if settings["guidance_scale"] == 1 and settings["negative_prompt"]:
        raise ValueError("--negative-prompt has no effect at guidance scale 1: leave it out, or choose another --scale")

    def make(number: int, pixels: Any, show: Show) -> Any:
        return latent_upscale.latent_upscale(
            loaded, pixels, settings["prompt"], negative_prompt=settings["negative_prompt"], seed=args.seed + number,
            sampler=settings["sampler"], num_steps=settings["steps"], guidance_scale=settings["guidance_scale"],
            dtype=dtype, progress=show,
        )[0]  # fmt: skip

    return Way(loaded.name, settings, make)
