"""Makes pictures from requests. Each request has its own prompt, sampler, number of steps, scale and size."""

from collections.abc import Sequence
from typing import Unpack

from sdjax.checks.arguments import is_sequence, shown
from sdjax.pipeline.model import Pipeline
from sdjax.purpose import check_task
from sdjax.tasks.batch import Batch
from sdjax.tasks.computing import Computing, ComputingOptions
from sdjax.tasks.make_batch import batch_of
from sdjax.tasks.request import Request
from sdjax.tasks.session import Making, Session, task


@task()
def generate(pipe: Pipeline, requests: Sequence[Request], **how: Unpack[ComputingOptions]) -> Session:
    """Returns the pictures of the requests, in their order: uint8 [b, h, w, 3], or a list of [h, w, 3] if sizes differ.

    Pictures of one size share a batch, even if all other settings differ. Another mixture of as many pictures of that
    size needs no new compilation. Adaptive samplers (`dpm_solver_adaptive`) get separate batches. `how` are the fields
    of `sdjax.tasks.computing.Computing`.

    Raises ValueError for arguments out of range, ImageError if a picture is not-a-number or one colour,
    OutOfMemoryError with advice if the device runs out of memory.
    """
    several = requests if is_sequence(requests) else []
    check_task(pipe.config, "generate", concat=any(getattr(one, "concat", None) is not None for one in several))
    if not len(several) or not all(isinstance(request, Request) for request in several):
        raise ValueError(f"requests must be a sequence of at least one sdjax.Request; got {shown(requests)}")
    return from_noise(batch_of(pipe, several, Computing(**how)))


def from_noise(batch: Batch) -> Session:
    """Returns the session that makes pictures from prompts and noise only."""

    def make(part: Batch) -> Making:
        return part.finish((yield from part.sample(None, part.noise(), part.conditionings())))

    return Session(batch, make)
