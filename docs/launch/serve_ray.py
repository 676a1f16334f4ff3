"""Serves pictures with several replicas of Ray Serve: `serve run docs.launch.serve_ray:app`, in the clone of sdjax.

It needs pip install '.[server]' 'ray[serve]'. REPLICAS, MODELS and OUTPUT are read from the environment. Each replica
has an engine, a queue and a history of its own. So clients use the interfaces that answer when the pictures are done,
A1111's and OpenAI's: any replica can take such a request. Ray listens on this computer alone by default; put a proxy
that asks who is there before it, or set SDJAX_TOKEN, before others can reach it.
"""

import os
import uuid
from pathlib import Path

from ray import serve
from starlette.types import ASGIApp


def build() -> ASGIApp:
    """Returns the application of one replica."""
    from sdjax.serve.app import create_app
    from sdjax.serve.engine import Engine
    from sdjax.serve.library import Library
    from sdjax.serve.server import Server, ServerSettings

    models = os.environ.get("MODELS")
    outputs = Path(os.environ.get("OUTPUT", "outputs/served"), f"replica-{uuid.uuid4().hex[:8]}")
    library = Library([] if models is None else [models], state=outputs / ".state")
    engine = Engine(library, outputs=outputs, state=outputs / ".state")
    engine.warm_up()
    return create_app(Server(engine, library, ServerSettings(token=os.environ.get("SDJAX_TOKEN"))))


@serve.deployment(
    num_replicas=int(os.environ.get("REPLICAS", "2")),
    max_ongoing_requests=64,
    health_check_timeout_s=300,  # Ray kills a replica that is silent for longer; compiling takes time
    ray_actor_options={"num_cpus": 1, "num_gpus": float(os.environ.get("GPUS", "0"))},
)
@serve.ingress(build)
class Sdjax:
    """A replica."""


app = Sdjax.bind()
