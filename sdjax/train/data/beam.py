"""Making a cache's shards with Apache Beam, on as many machines as its runner has; the only module that imports it."""

from collections.abc import Callable, Sequence
from typing import Any

from sdjax.train.data.records import SourceError


def make_shards(make_writer: Callable[[], Any], shards: Sequence[int], options: Sequence[str] = ()) -> None:
    """Makes these shards of a cache by `make_writer()`'s method `make`; returns when all are there.

    `make_writer` is called once by each worker, and pickled for it: a module's function or functools.partial of one.
    The cache's folder and the pictures must be where every worker reaches them. `options` are Beam's own, such as
    "--runner=DataflowRunner"; without a runner it is Beam's DirectRunner, in this process.

    Raises SourceError without Apache Beam, and what a worker raises.
    """
    check_installed()
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    class MakeShard(beam.DoFn):
        """Makes a shard; the model is loaded once a worker."""

        def setup(self) -> None:
            self.writer = make_writer()

        def process(self, k: int) -> Any:
            self.writer.make(k)
            yield k

    if not any(option.startswith("--runner") for option in options):
        # In this process: Beam's portable local runner would be fetched from the network first
        options = ["--runner=BundleBasedDirectRunner", *options]
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        # Reshuffled, else one worker would get all numbers of a Create
        pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.ParDo(MakeShard())


def check_installed() -> None:
    """Raises SourceError without Apache Beam. To be called before a model is read."""
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise SourceError("Apache Beam is not installed: in the clone of sdjax, pip install '.[beam]'") from None
