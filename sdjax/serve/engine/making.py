"""Runs a session of a task: progress, previews, cancelling, and pictures with the command line's texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdjax import samplers
from sdjax.pipeline.model import Pipeline
from sdjax.pipeline.preview import fits
from sdjax.serve.engine.context import Context
from sdjax.serve.engine.options import Options
from sdjax.serve.engine.work import Cancelled, Finished
from sdjax.tasks import describing
from sdjax.tasks.resolve import Resolved
from sdjax.tasks.session import Session

FLAGGED = "a picture was flagged by the safety checker; a notice replaces it"


def make(
    context: Context, pipe: Pipeline, options: Options, begin: Callable[..., Session], described: Mapping[str, Any]
) -> list[Finished]:
    """Returns the pictures of a session. `begin(**options)` begins it; `described` is what its task records.

    Raises Cancelled, and whatever the task raises.
    """
    device = context.models.device.mesh.devices.flat[0]
    taesd = context.taesd if context.taesd is not None and fits(context.taesd, pipe.config) else None
    session = begin(**options.for_task(pipe.schedule), devices=[device], at_once=context.most, taesd=taesd)
    recorder = Recorder(context, pipe, options, session.requests, described)
    context.job.set_progress(0, session.total)
    for step in session:
        if context.cancelled():
            session.cancel()
        recorder.finish(session.pictures)
        context.job.set_preview(lambda: [one for one in session.preview() if one is not None])
        context.job.set_progress(step.done, step.total)
    recorder.finish(session.pictures)
    context.job.set_preview(None)
    if any(one is None for one in session.pictures):
        raise Cancelled
    return context.job.pictures


class Recorder:
    """Describes and writes the pictures of a session in order, as soon as they are made."""

    def __init__(
        self, context: Context, pipe: Pipeline, options: Options, requests: Sequence[Resolved],
        described: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.context, self.pipe, self.options, self.requests = context, pipe, options, requests
        assert context.loaded is not None
        mesh = context.models.device.mesh
        computing = describing.describe_computing(options.work.task, pipe, list(mesh.devices.flat))
        self.shared = {**computing, **context.loaded.description, **described}
        self.checker = context.loaded.checker
        self.done = 0

    def finish(self, pictures: Sequence[np.ndarray | None]) -> None:
        """Writes the pictures that are made and follow those that are written."""
        while self.done < len(pictures) and (pixels := pictures[self.done]) is not None:
            description = self.describe(self.done, pixels)
            if self.checker is not None:
                (pixels,), verdict = self.context.call(self.checker.censor, [pixels])
                description["safety"] = self._verdict(verdict)
            self.context.finish(pixels, description)
            self.done += 1

    def describe(self, number: int, pixels: np.ndarray) -> dict[str, Any]:
        """Returns the settings of a picture as its file records them."""
        request, given, config = self.requests[number], dict(self.options.given), self.pipe.config
        prompt, _ = given.pop("prompt", ""), given.pop("seed", None)
        given |= {"num_steps": request.num_steps, "guidance_scale": request.guidance_scale}
        folders = {name: value for name, value in self.options.of_files.items() if name.endswith("_dir")}
        chosen = self.options.sampler(self.pipe.schedule) or (name_of(request.sampler), request.sampler)
        own = describing.describe(given, config, *chosen)
        own |= {"height": pixels.shape[0], "width": pixels.shape[1], "batch": len(self.requests)}
        out = {"prompt": prompt, "seed": request.seed, **self.shared, **own}
        if request.variation_strength:
            out["variation_seed"] = request.variation_seed
        out |= describing.expanded(prompt, request.seed, given)
        texts = [out.get(f"expanded_{name}", out.get(name, "")) for name in ("prompt", "negative_prompt")]
        settings = {**given, **folders, "loras": None}
        return out | describing.hashes_of(self.pipe, _files(request), settings, *texts)

    def _verdict(self, verdict: Any) -> dict[str, Any]:
        (flag,), (concepts,), (special,) = verdict
        if flag:
            self.context.note(FLAGGED)
        scores = ([round(float(one), 3) for one in several] for several in (concepts, special))
        return {"flagged": bool(flag), **dict(zip(("concepts", "special"), scores, strict=True))}


def _files(request: Resolved) -> list[Any]:
    return [use for use in request.adapters if getattr(use, "short_hash", None)]


def name_of(sampler: samplers.Sampler) -> str:
    """Returns the name of a sampler that a distilled model or adapter chose, or the usual one."""
    return next((name for name, kind in samplers.SAMPLERS.items() if type(sampler) is type(kind())), "ddim")
