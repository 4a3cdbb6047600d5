"""Runs steps with Apache Beam: one pipeline for each step that has something to do."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from starcoder_jax.progress import Progress
from starcoder_jax.stack.runner.work import Emitting, Mapping, Reducing, StepError, describe

# A message from one machine to another should not be much larger.
_MESSAGE_BYTES = 2**24
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class BeamEngine:
    """Makes the shards of a step on whatever machines a Beam runner has.

    Args:
        options: of Beam, such as "--runner=DataflowRunner".
        memory_bytes: see `RunnerConfig`.
    """

    def __init__(self, options: Sequence[str], memory_bytes: int):
        self._flags = list(options)
        self._memory_bytes = memory_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        """No pipeline is left."""

    def map(self, work: Mapping, tasks: Sequence[tuple[int, str]], progress: Progress) -> None:
        """Makes shards; tasks are pairs of index and key."""
        done = work.count - len(tasks)
        with progress.stage(work.step.name, work.count, done) as advance:
            with self._pipeline(work.step.name) as pipeline:
                # Create spreads its elements over the machines.
                pipeline | "shards" >> beam.Create(tasks) | "make" >> beam.ParDo(_Map(work))
            advance(len(tasks))

    def shuffle(
        self,
        work: Reducing,
        sources: Sequence[tuple[object, str]],
        tasks: Sequence[tuple[int, str]],
        progress: Progress,
    ) -> None:
        """Makes shards, of the same arguments as `LocalEngine.shuffle`."""
        step = work.step
        emitting = Emitting(step, work.store, len(sources), self._memory_bytes)
        numbered = [(number, source) for number, (source, _) in enumerate(sources)]
        done = step.partitions - len(tasks)
        with progress.stage(step.name, step.partitions, done) as advance:
            with self._pipeline(step.name) as pipeline:
                emit = _Emit(emitting, frozenset(partition for partition, _ in tasks))
                inputs = pipeline | "inputs" >> beam.Create(numbered)
                rows = inputs | "emit" >> beam.ParDo(emit)
                # A partition without rows is a shard as well.
                keys = pipeline | "partitions" >> beam.Create(tasks)
                # Runners on many machines must know that there are keys.
                both = (rows, keys) | beam.Flatten().with_output_types(tuple[int, Any])
                both | beam.GroupByKey() | "reduce" >> beam.ParDo(_Reduce(work))
            advance(len(tasks))

    @contextlib.contextmanager
    def _pipeline(self, name: str) -> Iterator[beam.Pipeline]:
        """A pipeline of a step; runs it in the end."""
        options = PipelineOptions(self._flags)
        job = options.view_as(GoogleCloudOptions)
        if job.job_name:
            job.job_name = re.sub("[^a-z0-9]+", "-", f"{job.job_name}-{name}".lower())
        try:
            with beam.Pipeline(options=options) as pipeline:
                yield pipeline
        except Exception as error:
            # Runners put text of their own around it.
            ours = re.search(
                rf"step {re.escape(name)}, .*?(?= \[while running|$)", str(error), re.M
            )
            text = ours[0] if ours else f"step {name}: {describe(error)}"
            raise StepError(text) from error


class _Map(beam.DoFn):
    def __init__(self, work: Mapping):
        self._work = work

    def process(self, task: tuple[int, str]) -> None:
        with _placed(self._work.place(task)):
            self._work(task)


class _Emit(beam.DoFn):
    def __init__(self, emitting: Emitting, partitions: frozenset[int]):
        self._emitting = emitting
        self._partitions = partitions

    def process(self, task: tuple[int, object]) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
        number, source = task
        with _placed(self._emitting.place(number)):
            count = 0
            for partition, batch in self._emitting.batches(source):
                if partition in self._partitions:
                    for message in _messages(batch):
                        yield partition, (number, count, message)
                        count += 1


class _Reduce(beam.DoFn):
    def __init__(self, work: Reducing):
        self._work = work

    def process(self, group: tuple[int, Iterable[str | tuple[int, int, bytes]]]) -> None:
        partition, values = group
        with _placed(self._work.place(partition)):
            rows = []
            for value in values:
                if isinstance(value, str):
                    key = value
                else:
                    rows.append(value)
            rows.sort(key=lambda row: row[:2])
            batches = [batch for *_, message in rows for batch in pa.ipc.open_stream(message)]
            self._work.reduce(partition, key, batches)


@contextlib.contextmanager
def _placed(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StepError(f"{place}: {describe(error)}") from error


def _messages(batch: pa.RecordBatch) -> Iterator[bytes]:
    rows = max(1, batch.num_rows * _MESSAGE_BYTES // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
            writer.write_batch(batch.slice(start, rows))
        yield sink.getvalue().to_pybytes()
