"""Makes a cache's shards with Apache Beam, on all machines of its runner. Only this module imports Beam."""

from collections.abc import Callable, Sequence
from typing import Any

from sdjax.train.data.records import SourceError


def make_shards(make_writer: Callable[[], Any], shards: Sequence[int], options: Sequence[str] = ()) -> None:
    """Makes these shards of a cache with `make_writer().make`. Returns when all are made.

    Each worker calls `make_writer` once. It is pickled, so it must be a module-level function or a functools.partial of
    one. Every worker must be able to reach the cache's folder and the pictures. `options` are Beam's own, such as
    "--runner=DataflowRunner"; the default is Beam's DirectRunner, in this process.

    Raises SourceError if Apache Beam is not installed, and any error of a worker.
    """
    check_installed()
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    class MakeShard(beam.DoFn):
        """Makes a shard. Each worker loads the model once."""

        def setup(self) -> None:
            self.writer = make_writer()

        def process(self, k: int) -> Any:
            self.writer.make(k)
            yield k

    if not any(option.startswith("--runner") for option in options):
        # In this process: Beam would first download its portable local runner
        options = ["--runner=BundleBasedDirectRunner", *options]
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        # Reshuffled: otherwise one worker would get all numbers of a Create
        pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.ParDo(MakeShard())


def check_installed() -> None:
    """Raises SourceError if Apache Beam is not installed. Call it before a model is read."""
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise SourceError("Apache Beam is not installed: in the clone of sdjax, pip install '.[beam]'") from None
