"""Requests that are answered when their pictures are made: they follow their jobs without holding a thread."""

import asyncio
import contextlib

from anyio import to_thread
from starlette.requests import Request

from sdjax.serve.bodies import Refused
from sdjax.serve.engine import Event, Job, Work
from sdjax.serve.engine.work import ENDED
from sdjax.serve.server import Server

LOOK = 0.5  # seconds between two looks whether the client is still there


class Following:
    """The jobs of requests that wait for their pictures. Use it from the event loop's thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.jobs: list[Job] = []

    @property
    def running(self) -> Job | None:
        """The first job that runs."""
        return next((job for job in self.jobs if job.state == "running"), None)

    async def finished(self, request: Request, work: Work, failed: int = 500) -> Job:
        """Returns a work's job when it is over; cancels it if the client goes away.

        Raises Refused, with the status `failed`, if it failed, and what `Server.submit` raises.
        """
        job = await to_thread.run_sync(self.server.submit, work)
        self.jobs.append(job)
        try:
            await self._over(request, job)
        except asyncio.CancelledError:
            job.cancel()
            raise
        finally:
            self.jobs.remove(job)
        if job.state == "failed":
            raise Refused(job.error or "the job failed", failed)
        return job

    async def _over(self, request: Request, job: Job) -> None:
        """Waits for the end of a job."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def hear(event: Event) -> None:  # on a thread of the engine
            if event.kind in ENDED:
                loop.call_soon_threadsafe(over.set)

        stop = job.watch(hear)
        try:
            while not (job.ended or over.is_set()):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), LOOK)
                    continue
                if await request.is_disconnected():
                    await to_thread.run_sync(job.cancel)
        finally:
            stop()
