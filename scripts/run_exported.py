"""`sdjax run-exported`: makes pictures with an exported model. Loads no code of any network."""

import argparse
import json
import sys
from pathlib import Path

from sdjax.scripts.main import EXIT_STATUS, main
from sdjax.scripts.shared import options, runtime, sampler_flags, values
from sdjax.scripts.shared.prompts import read_prompts

IF_OUT_OF_MEMORY = "export again with smaller --H and --W or a smaller --batch"

DESCRIPTION = """\
Makes pictures with a model that `sdjax export` wrote, and prints their paths. It
needs no code of the networks, only the exported programs. Reading a folder from
elsewhere is safe."""

EPILOG = f"""\
With --keep-compiled, compiled programs are kept in the folder, and the next run
on this computer does not compile. Only files that this user wrote on this
computer are used.

{EXIT_STATUS}"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sdjax run-exported`."""
    parser = options.make_command_parser("run-exported", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the folder that `sdjax export` wrote")
    add("--prompt", metavar="TEXT", help="what the picture shows, as it stands, without weights in brackets")
    add("--from-file", metavar="FILE", help="read prompts from this file, one in each line; - is standard input")
    options.add_negative_flag(add)
    add("--n_samples", type=values.positive, default=1, metavar="N", help="pictures of each prompt; default: 1")
    add("--seed", type=values.seed, default=42, metavar="N", help="seed of the first picture; default: %(default)s")
    add("--steps", type=values.positive, default=50, metavar="N", help="number of steps; default: %(default)s")
    add(
        "--sampler",
        type=sampler_flags.known_sampler,
        default="ddim",
        metavar="NAME",
        help="its name in any tool (`sdjax samplers` lists them); default: %(default)s",
    )
    add("--scale", type=values.finite, metavar="X", help="guidance scale; default: the model's")
    add(
        "--guidance-rescale",
        type=values.share,
        default=0.0,
        metavar="X",
        needs=options.GUIDED,
        help="from 0 to 1; default: %(default)s",
    )
    add("--device", metavar="NAME", help="cpu, gpu, cuda or tpu, or one device such as cuda:1; default: the best kind")
    add("--keep-compiled", action="store_true", help="keep compiled programs in the folder for the next run")
    add(
        "--outdir",
        type=values.folder,
        default="outputs/exported-samples",
        metavar="DIR",
        help="write pictures to DIR; default: %(default)s",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Makes and writes the pictures."""
    if (args.prompt is None) == (args.from_file is None):
        raise ValueError("give either --prompt or --from-file")
    prompts = [args.prompt] if args.from_file is None else read_prompts(args.from_file)
    prompts = [prompt for prompt in prompts for _ in range(args.n_samples)]
    devices = runtime.set_up_jax(args.device)
    from sdjax.export.run import ExportedModel
    from sdjax.pictures import image
    from sdjax.storage import files

    folder = Path(args.outdir)
    files.check_folder(folder, "writing pictures into")
    model = ExportedModel(args.folder, device=None if devices is None else devices[0], keep=args.keep_compiled)
    model.make_sampler(args.sampler)
    with runtime.Progress(1) as progress:
        made = model.text_to_image(
            prompts, negative_prompt=args.negative_prompt, seed=args.seed, sampler=args.sampler,
            num_steps=args.steps, guidance_scale=args.scale, guidance_rescale=args.guidance_rescale,
            progress=progress.show,
        )  # fmt: skip
    scale = model.description.guidance_scale if args.scale is None else args.scale
    for i, (picture, prompt) in enumerate(zip(made, prompts, strict=True)):
        settings = {
            "task": "run-exported", "prompt": prompt, "negative_prompt": args.negative_prompt, "seed": args.seed + i,
            "sampler": args.sampler, "steps": args.steps, "guidance_scale": scale,
            "guidance_rescale": args.guidance_rescale, "height": picture.shape[0], "width": picture.shape[1],
            "model": model.description.model, "dtype": model.description.dtype,
            "versions": dict(model.description.versions),
        }  # fmt: skip
        fields = {
            "Steps": args.steps, "Sampler": args.sampler, "CFG scale": scale, "Seed": args.seed + i,
            "Size": f"{picture.shape[1]}x{picture.shape[0]}", "Model": model.description.model,
        }  # fmt: skip
        chunks = {
            "parameters": image.infotext(prompt, args.negative_prompt, fields),
            "sdjax": json.dumps(settings, allow_nan=False),
        }
        print(image.save_numbered(folder, picture, chunks))


if __name__ == "__main__":
    sys.exit(main(["run-exported", *sys.argv[1:]]))
