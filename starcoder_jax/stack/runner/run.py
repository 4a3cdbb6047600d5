"""Runs the steps of a pipeline, each shard only if it has not been made of the same before."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starcoder_jax.progress import Progress
from starcoder_jax.stack.runner.keys import combined, key
from starcoder_jax.stack.runner.local import LocalEngine
from starcoder_jax.stack.runner.lock import exclusive_run
from starcoder_jax.stack.runner.shards import StepResult, Store
from starcoder_jax.stack.runner.steps import Map, Shuffle, Step
from starcoder_jax.stack.runner.work import Mapping, Reducing, Source, StepError

if TYPE_CHECKING:
    from starcoder_jax.stack.runner.beam import BeamEngine

    Engine = LocalEngine | BeamEngine

_ENGINES = ("local", "beam")


@dataclasses.dataclass(frozen=True)
class RunnerConfig:
    """Where steps run; what they write does not depend on it.

    Attributes:
        engine: "local", processes of this machine, or "beam", Apache Beam (the extra beam).
        workers: how many processes of this machine; None: one for each core.
        memory_bytes: of rows that a process holds in a shuffle before it sorts and spills them.
            Beside them it has one shard or partition in memory at a time.
        beam_options: Beam's own, such as "--runner=DataflowRunner". Those given run a pipeline on
            this machine; Beam's DirectRunner does so as well, but downloads a program for it.
    """

    engine: str = "local"
    workers: int | None = None
    memory_bytes: int = 2**28
    beam_options: tuple[str, ...] = ("--runner=FnApiRunner",)

    def __post_init__(self):
        if self.engine not in _ENGINES:
            raise ValueError(
                f"runner.engine = {self.engine!r} must be one of {', '.join(_ENGINES)}"
            )
        if self.workers is not None and not _is_positive(self.workers):
            raise ValueError(f"runner.workers = {self.workers!r} must be a positive number or None")
        if not _is_positive(self.memory_bytes):
            raise ValueError(f"runner.memory_bytes = {self.memory_bytes!r} must be positive")
        if isinstance(self.beam_options, str):
            raise ValueError("runner.beam_options must be a list of strings, not one string")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and value > 0


def run(
    steps: Sequence[Step], folder: str | pathlib.Path, options: RunnerConfig
) -> dict[str, StepResult]:
    """Runs steps one after the other.

    A shard is made if it is not there, or was made with another function, other arguments, other
    code in the function's module or what that imports of this package, or of other rows. So a run
    that was stopped goes on where it was, and a shard that comes out as before has nothing done
    after it.

    Args:
        steps: each after those that it takes its inputs from. An input that is none of them is
            one that an earlier run has completed in the folder.
        folder: where everything is written, see `shards`. The engine "beam" takes URIs as well,
            such as gs://bucket/folder; it is then for the caller to have one run at a time there.
        options: where the steps run.

    Returns:
        What each step wrote.

    Raises:
        ValueError: steps do not fit together, or another run is at work in the folder.
        StepError: a step failed; what was finished before stays.
    """
    _check(steps)
    store = Store(str(folder) if "://" in str(folder) else str(pathlib.Path(folder).absolute()))
    progress = Progress()
    results: dict[str, StepResult] = {}
    engine = _engine(store, options)
    with contextlib.ExitStack() as stack:
        if "://" not in store.folder:
            stack.enter_context(exclusive_run(pathlib.Path(store.folder)))
        stack.enter_context(engine)
        for step in steps:
            for name in step.inputs:
                if name not in results:
                    results[name] = store.load(name)
            inputs = [results[name] for name in step.inputs]
            do = _map if isinstance(step, Map) else _shuffle
            results[step.name] = do(step, inputs, store, engine, progress)
    return {step.name: results[step.name] for step in steps}


def _check(steps: Sequence[Step]) -> None:
    names = [step.name for step in steps]
    for number, step in enumerate(steps):
        if not re.fullmatch("[a-z0-9_]+([.-][a-z0-9_]+)*", step.name):
            raise ValueError(f"step {step.name!r}: a name has small letters, digits and . - _ only")
        if step.name in names[:number]:
            raise ValueError(f"two steps are called {step.name}")
        for name in step.inputs:
            if name in names[number:] and name not in names[:number]:
                raise ValueError(f"step {step.name} comes before {name}, which it needs")
        if isinstance(step, Map):
            if not step.inputs:
                raise ValueError(f"step {step.name} has no input")
        elif bool(step.inputs) == bool(step.items):
            raise ValueError(f"step {step.name} needs either inputs or items")
        elif step.partitions < 1:
            raise ValueError(f"step {step.name} has {step.partitions} partitions: one at least")


def _engine(store: Store, options: RunnerConfig) -> "Engine":
    if options.engine == "local":
        if "://" in store.folder:
            raise ValueError(
                f"folder {store.folder} is not of this machine: take runner.engine = 'beam' for it"
            )
        return LocalEngine(pathlib.Path(store.folder), options.workers, options.memory_bytes)
    try:
        from starcoder_jax.stack.runner.beam import BeamEngine
    except ImportError as error:
        raise ValueError(
            f"runner.engine = 'beam' needs what is not installed: pip install "
            f"'starcoder_jax[beam]' ({error})"
        ) from None
    return BeamEngine(options.beam_options, options.memory_bytes)


def _map(
    step: Map, inputs: Sequence[StepResult], store: Store, engine: "Engine", progress: Progress
) -> StepResult:
    sizes = tuple(len(result.shards) for result in inputs)
    count = max(sizes)
    if any(size not in (1, count) for size in sizes):
        given = ", ".join(f"{result.name} has {len(result.shards)}" for result in inputs)
        raise ValueError(f"step {step.name} needs inputs with as many shards each: {given}")
    base = _key(step, "map", step.function)
    digests = [
        [result.shards[index if size > 1 else 0].digest for index in range(count)]
        for result, size in zip(inputs, sizes, strict=True)
    ]
    keys = [combined(base, *given) for given in zip(*digests, strict=True)]
    work = Mapping(step, store, sizes, count)
    return _make(step, store, keys, progress, lambda tasks: engine.map(work, tasks, progress))


def _shuffle(
    step: Shuffle, inputs: Sequence[StepResult], store: Store, engine: "Engine", progress: Progress
) -> StepResult:
    if inputs:
        sources = [
            (Source(result.name, index, len(result.shards)), shard.digest)
            for result in inputs
            for index, shard in enumerate(result.shards)
        ]
    else:
        sources = [(item, item.fingerprint) for item in step.items]
    emit = _key(step, "emit", step.emit, step.schema, step.partitions)
    sources = [(source, combined(emit, digest)) for source, digest in sources]
    reduce = _key(step, "reduce", step.reduce)
    whole = combined(reduce, *(name for _, name in sources))
    # Each source goes to one worker only.
    work = Reducing(dataclasses.replace(step, items=()), store, reduce)
    return _make(
        step,
        store,
        [whole] * step.partitions,
        progress,
        lambda tasks: engine.shuffle(work, sources, tasks, progress),
    )


def _key(step: Step, *parts: object) -> str:
    try:
        return key(step.name, *parts)
    except ValueError as error:
        raise ValueError(f"step {step.name}: {error}") from None


def _make(
    step: Step,
    store: Store,
    keys: Sequence[str],
    progress: Progress,
    make: Callable[[list[tuple[int, str]]], None],
) -> StepResult:
    """Makes the shards whose key is another than that of what is there."""
    before = store.shards(step.name, len(keys))
    tasks = [
        (index, new)
        for index, (shard, new) in enumerate(zip(before, keys, strict=True))
        if shard is None or shard.key != new
    ]
    if tasks:
        store.begin(step.name)
        make(tasks)
    else:
        progress.message(f"{step.name} {len(keys)}/{len(keys)}  there already")
    shards = store.shards(step.name, len(keys))
    for index, shard in enumerate(shards):
        if shard is None:
            raise StepError(f"step {step.name}, shard {index} of {len(keys)} was not made")
    store.finish(step.name, shards)
    made = sum(
        before[index] is None
        or before[index].emitted is None
        or before[index].emitted != shards[index].emitted
        for index, _ in tasks
    )
    return StepResult(step.name, store, tuple(shards), made)
