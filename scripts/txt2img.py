"""`sdjax txt2img`: pictures from a prompt, with the flags of both releases' scripts/txt2img.py."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdjax._version import __version__
from sdjax.scripts import options, runtime, settings
from sdjax.scripts.main import EXIT_STATUS, main

IF_OUT_OF_MEMORY = "a smaller --n_samples, smaller --H and --W, --dtype bfloat16"

DESCRIPTION = """\
Makes pictures from a prompt, or from a file of prompts, and prints their paths.

The flags are those of scripts/txt2img.py of CompVis/stable-diffusion and of
Stability-AI/stablediffusion, with CompVis's defaults; a flag's text says where
the two differ. Size and guidance scale are by default the model's own."""

EPILOG = f"""\
Picture k of the run, counted from 0, is drawn from seed + k and from nothing
else: --seed makes it again alone. Files are numbered on from the highest in the
folder and never overwritten. A PNG holds a `parameters` text that other tools
read, and in a `sdjax` text every setting as JSON: the same command, version and
device give the same bytes.

{EXIT_STATUS}"""


class Batch(NamedTuple):
    """What is made by one call: a prompt and a seed a picture."""

    prompts: list[str]
    seeds: list[int]


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax txt2img`."""
    parser = options.make_command_parser("txt2img", DESCRIPTION, EPILOG)
    options.add_prompt_flags(parser)
    options.add_sampling_flags(parser)
    options.add_model_flags(parser)
    options.add_reading_flags(parser)
    options.add_device_flags(parser)
    options.add_output_flags(parser, "outputs/txt2img-samples")
    return parser


def run(args: argparse.Namespace) -> None:
    """Makes and writes the pictures. Raises what `sdjax.scripts.main` turns into a sentence and an exit status."""
    # Everything that can be refused is, before weights are loaded and hours of work begin
    batches, name = make_batches(args), choose_sampler(args)
    dtype, checkpoint = runtime.compute_dtype(args), find_checkpoint(args.ckpt)
    if args.n_rows < 0:
        raise ValueError(f"--n_rows is at least 1, or 0 to take --n_samples; got {args.n_rows}")
    devices = runtime.set_up_jax(args.device)
    runtime.make_sampler(name, args.sampler_option, eta=args.ddim_eta)
    import sdjax
    from sdjax import builtin, generate, hub, image

    generate.check_size(sdjax.ModelConfig("any"), args.H, args.W)
    own = builtin.folder() if checkpoint is None else None
    for path, revision in (own or checkpoint, args.revision), (args.vae, None):
        if path is not None and not hub.is_hub_name(path):
            hub.resolve(path, revision)
    folder = Path(args.outdir)
    (folder if args.skip_save else folder / "samples").mkdir(parents=True, exist_ok=True)

    local = own or hub.resolve(checkpoint, args.revision, args.variant)
    vae = None if args.vae is None else hub.resolve(args.vae)
    pipe = sdjax.load(
        None if own else local,
        config=args.config,
        prediction=args.prediction,
        ema=args.ema,
        vae=vae,
        dtype=dtype,
        variant=args.variant,
    )
    for notice in pipe.notices:
        print(f"note: {notice}", file=sys.stderr)
    check_model(args, pipe)
    sampler = runtime.make_sampler(name, args.sampler_option, eta=args.ddim_eta, schedule=pipe.schedule)
    warn_of_cut_prompts(pipe, {args.negative_prompt, *(prompt for batch in batches for prompt in batch.prompts)})
    common = describe_run(args, pipe, name, sampler, devices) | {
        "model": settings.describe_model(own or checkpoint, local),
        "vae": None if vae is None else settings.describe_model(args.vae, vae),
    }

    made, described = [], []
    with runtime.Progress(len(batches)) as progress:
        for batch in batches:
            pixels = sdjax.text_to_image(
                pipe,
                batch.prompts,
                negative_prompt=args.negative_prompt,
                seed=batch.seeds,
                sampler=sampler,
                num_steps=args.steps,
                guidance_scale=args.scale,
                height=args.H,
                width=args.W,
                parallel=args.parallel,
                devices=devices,
                exact=args.exact,
                progress=progress.show,
            )
            size = {"height": pixels.shape[1], "width": pixels.shape[2], "batch": len(pixels)}
            for picture, prompt, seed in zip(pixels, batch.prompts, batch.seeds, strict=True):
                description = {"prompt": prompt, "seed": seed, **common, **size}
                if not args.skip_save:
                    progress.print(image.save_numbered(folder / "samples", picture, texts(description)))
                if not args.skip_grid:
                    made.append(picture)
                    described.append(description)
    if made:
        print(save_grid(folder, made, described, args.n_rows or args.n_samples))


def make_batches(args: argparse.Namespace) -> list[Batch]:
    """Returns what to make, in the references' order: iterations, then chunks of at most `n_samples` prompts.

    Raises ValueError for flags that contradict each other, and seeds that do not exist.
    """
    if args.from_file is None:
        if args.repeat is not None:
            raise ValueError("--repeat is for the lines of --from-file; --n_iter makes more of one prompt")
        default = options.BUILTIN_PROMPT if find_checkpoint(args.ckpt) is None else options.PROMPT
        chunks = [[default if args.prompt is None else args.prompt] * args.n_samples]
    else:
        if args.prompt is not None:
            raise ValueError("--prompt and --from-file both say what to make; give one of them")
        prompts = [prompt for prompt in read_prompts(args.from_file) for _ in range(args.repeat or 1)]
        chunks = [prompts[i : i + args.n_samples] for i in range(0, len(prompts), args.n_samples)]
    batches, seed = [], args.seed
    for chunk in chunks * args.n_iter:
        first = args.seed if args.fixed_code else seed
        batches.append(Batch(chunk, list(range(first, first + len(chunk)))))
        seed += len(chunk)
    last = max(batch.seeds[-1] for batch in batches)
    if last >= 2**64:
        raise ValueError(f"a seed lies between 0 and 2**64 - 1; one more for each picture, this run would reach {last}")
    return batches


def read_prompts(path: str) -> list[str]:
    """Returns the lines of a file that are not empty. Raises ValueError if there are none, or it is not UTF-8 text."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"--from-file {path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--from-file {path} is not UTF-8 text: {error}") from None
    # Not str.splitlines, which also splits at characters that a prompt may hold
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"--from-file {path} holds no prompt; it should have one a line")
    return lines


def find_checkpoint(path: str | None) -> str | None:
    """Returns the checkpoint to load: `path`, else CompVis's default where it lies, else None, the built-in model."""
    if path is None and Path(options.CHECKPOINT).is_file():
        return options.CHECKPOINT
    return path


def choose_sampler(args: argparse.Namespace) -> str:
    """Returns the sampler's name by the references' precedence, dpm before plms before ddim.

    Raises ValueError if --sampler names another one.
    """
    by_flag = options.DPM if args.dpm else "plms" if args.plms else None
    if args.sampler is not None and by_flag not in (None, args.sampler):
        raise ValueError(f"--sampler {args.sampler} contradicts --{'dpm' if args.dpm else 'plms'}; give one of them")
    return args.sampler or by_flag or "ddim"


def check_model(args: argparse.Namespace, pipe: Any) -> None:
    """Raises ValueError if --C or --f say something else than the model."""
    vae = pipe.config.vae
    for flag, given, own in ("--C", args.C, vae.latent_channels), ("--f", args.f, vae.factor):
        if given not in (None, own):
            raise ValueError(f"{flag} {given} contradicts the model, which has {own}; leave the flag out")


def warn_of_cut_prompts(pipe: Any, prompts: set[str]) -> None:
    """Says on standard error what of the prompts the text encoder will not see."""
    length = pipe.config.text.max_length
    for prompt in sorted(prompts):
        if rest := pipe.tokenizer.cut(prompt, length=length):
            print(f'warning: a prompt has more than {length - 2} tokens; left out is "{rest}"', file=sys.stderr)


def describe_run(
    args: argparse.Namespace, pipe: Any, name: str, sampler: Any, devices: Sequence[Any] | None
) -> dict[str, Any]:
    """Returns every setting that the pictures of a run have in common."""
    import jax

    devices = jax.local_devices() if devices is None else devices
    return {
        "task": "txt2img",
        "negative_prompt": args.negative_prompt,
        "sampler": name,
        "sampler_options": dataclasses.asdict(sampler),
        "steps": args.steps,
        "guidance_scale": pipe.config.guidance_scale if args.scale is None else args.scale,
        "variant": args.variant,
        "ema": args.ema,
        "config": pipe.config.name,
        "prediction": pipe.config.schedule.prediction,
        "dtype": pipe.dtype,
        "exact": args.exact,
        "parallel": args.parallel,
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "versions": {"sdjax": __version__, "jax": jax.__version__},
    }


def texts(picture: dict[str, Any]) -> dict[str, str]:
    """Returns the text chunks of the PNG file of a picture with these settings."""
    from sdjax.image import infotext

    parameters = infotext(picture["prompt"], picture["negative_prompt"], settings.web_ui_fields(picture))
    return {"parameters": parameters, "sdjax": settings.to_json(picture)}


def save_grid(folder: Path, made: list[Any], described: list[dict[str, Any]], columns: int) -> Path:
    """Returns the path of all pictures as one, with the first one's `parameters` and every one's prompt and seed."""
    import numpy as np

    from sdjax import image

    first = described[0]
    pictures = [{"prompt": picture["prompt"], "seed": picture["seed"]} for picture in described]
    shared = {key: value for key, value in first.items() if key not in ("prompt", "seed", "batch")}
    chunks = texts(first) | {"sdjax": settings.to_json({"grid": {"columns": columns, "pictures": pictures}, **shared})}
    return image.save_numbered(folder, image.grid(np.stack(made), columns), chunks, prefix="grid-", digits=4)


if __name__ == "__main__":
    sys.exit(main(["txt2img", *sys.argv[1:]]))
