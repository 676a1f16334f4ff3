"""Makes the pictures of a request, and says how far it is."""

import base64
import dataclasses
import json
import time
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sdjax._version import __version__
from sdjax.pictures.image import encode_png
from sdjax.serve.a1111 import requests
from sdjax.serve.a1111.options import Options
from sdjax.serve.bodies import read_json
from sdjax.serve.engine import Finished, Job
from sdjax.serve.following import Following
from sdjax.serve.jobs_api import client_of
from sdjax.serve.server import Server

# What the parts of a picture that are made again have in common with it
OF_DETAILS = (
    "compat", "prompt", "negative_prompt", "sampler", "schedule", "num_steps", "guidance_scale", "noise_source",
)  # fmt: skip


class Generation:
    """The routes that make pictures, and those that say how far they are."""

    def __init__(self, server: Server, options: Options) -> None:
        self.server, self.options = server, options
        self.following = Following(server)

    async def txt2img(self, request: Request) -> Response:
        """Makes pictures from text."""
        return await self._make(request, "txt2img")

    async def img2img(self, request: Request) -> Response:
        """Makes pictures from pictures, with a mask by inpainting."""
        return await self._make(request, "img2img")

    async def _make(self, request: Request, task: str) -> Response:
        given = await read_json(self.server, request)
        client, began = client_of(request), time.time()
        asked = await to_thread.run_sync(
            lambda: requests.read(self.server, given, self.options.all(), client, task=task)
        )
        job = await self.following.finished(request, asked.work)
        pictures = job.pictures
        if asked.details and job.state == "done":
            pictures = [await self._detailed(request, asked, one) for one in pictures]
        own = asked.fields
        images = [base64.b64encode(one.png).decode() for one in pictures] if own["send_images"] else []
        echoed = {name: value for name, value in given.items() if name not in ("init_images", "mask")}
        echoed |= {name: value for name, value in own.items() if name not in ("init_images", "mask", *echoed)}
        if "init_images" in own:
            echoed["init_images"] = given["init_images"] if own["include_init_images"] else None
        info = described(self.server, asked, pictures, [*asked.warnings, *job.notes], began)
        return JSONResponse({"images": images, "parameters": echoed, "info": json.dumps(info)})

    async def _detailed(self, request: Request, asked: requests.Asked, picture: Finished) -> Finished:
        """Returns a picture with its details made again, by one unit of ADetailer after the other."""
        for own in asked.details:
            settings = {name: asked.work.settings[name] for name in OF_DETAILS if name in asked.work.settings}
            settings |= {"seed": picture.seed or 0, **own}
            inputs = {"image": picture.pixels}
            work = dataclasses.replace(asked.work, task="detail", settings=settings, inputs=inputs)
            job = await self.following.finished(request, work)
            if job.pictures:
                picture = dataclasses.replace(job.pictures[0], seed=picture.seed)
        return picture

    async def progress(self, request: Request) -> Response:
        """Says how far the present request is."""
        skip = request.query_params.get("skip_current_image", "false").lower() in ("true", "1")
        told = await to_thread.run_sync(progress_of, self.following.running, len(self.following.jobs), not skip)
        return JSONResponse(told)

    async def interrupt(self, request: Request) -> Response:
        """Stops all requests that are being made. They answer with the pictures that are finished."""
        for job in list(self.following.jobs):
            await to_thread.run_sync(job.cancel)
        return JSONResponse({})

    async def skip(self, request: Request) -> Response:
        """Stops the request that is being made."""
        if (job := self.following.running) is not None:
            await to_thread.run_sync(job.cancel)
        return JSONResponse({})


def progress_of(job: Job | None, count: int, with_picture: bool) -> dict[str, Any]:
    """Returns how far a job is, as `progress` tells it. `count` is the number of jobs."""
    state = {
        "skipped": False, "interrupted": bool(job and job.cancelling),
        "stopping_generation": bool(job and job.cancelling),
        "job": "" if job is None else job.work.task, "job_count": count,
        "job_timestamp": "0" if job is None else time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "job_no": 0, "sampling_step": 0 if job is None else job.done,
        "sampling_steps": 0 if job is None else job.total,
    }  # fmt: skip
    previews = [] if job is None or not with_picture else job.previews()
    image = base64.b64encode(encode_png(previews[0])).decode() if previews else None
    left = None if job is None else job.seconds_left
    return {
        "progress": 0.0 if job is None else job.fraction, "eta_relative": left or 0.0, "state": state,
        "current_image": image, "textinfo": None,
    }  # fmt: skip


def described(
    server: Server, asked: requests.Asked, pictures: list[Finished], warnings: list[str], began: float
) -> dict[str, Any]:
    """Returns the `info` of an answer."""
    own, settings = asked.fields, asked.work.settings
    first = settings["seed"]
    model = server.library.find("checkpoint", asked.work.model or server.engine.models.current)
    count = len(pictures)
    seeds = [one.seed if one.seed is not None else first for one in pictures]
    subseed = settings.get("variation_seed", own["subseed"])
    return {
        "prompt": own["prompt"], "all_prompts": [own["prompt"]] * count, "negative_prompt": own["negative_prompt"],
        "all_negative_prompts": [own["negative_prompt"]] * count, "seed": first, "all_seeds": seeds, "subseed": subseed,
        "all_subseeds": [subseed + number if subseed >= 0 else subseed for number in range(count)],
        "subseed_strength": own["subseed_strength"], "width": own["width"], "height": own["height"],
        "sampler_name": own["sampler_name"] or own["sampler_index"] or "Euler", "cfg_scale": own["cfg_scale"],
        "steps": own["steps"], "batch_size": own["batch_size"], "restore_faces": False, "face_restoration_model": None,
        "sd_model_name": model.stem, "sd_model_hash": server.library.short_hash(model) or "",
        "sd_vae_name": settings.get("vae"), "sd_vae_hash": None, "seed_resize_from_w": own["seed_resize_from_w"],
        "seed_resize_from_h": own["seed_resize_from_h"], "denoising_strength": own["denoising_strength"],
        "extra_generation_params": {}, "index_of_first_image": 0,
        "infotexts": [one.texts.get("parameters", "") for one in pictures], "styles": own["styles"],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(began)), "clip_skip": settings.get("clip_skip",
        1),
        "is_using_inpainting_conditioning": False, "version": f"sdjax {__version__}", "warnings": warnings,
    }  # fmt: skip
