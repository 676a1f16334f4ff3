"""One picture by sdjax or diffusers, from a folder: a process whose time and memory against_diffusers.py takes.

    python benchmarks/one_picture.py {sdjax,diffusers} FOLDER DTYPE SIZE STEPS

prints the highest memory use of the process in KiB.
"""

import pathlib
import re
import sys

PROMPT = "a rocket on a green background"


def main():
    """Makes the picture, and prints what it took."""
    picture()
    # getrusage's figure would be that of the process that started this one, where that is higher
    print(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])


def picture():
    """Imports only what the one that is measured needs."""
    who, folder, dtype, size, steps = sys.argv[1:]
    asked = {"height": int(size), "width": int(size), "guidance_scale": 7.5}
    if who == "sdjax":
        import sdjax

        sdjax.text_to_image(sdjax.load(folder, dtype=dtype), PROMPT, num_steps=int(steps), **asked)
        return
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe(PROMPT, num_inference_steps=int(steps), **asked)


if __name__ == "__main__":
    main()
