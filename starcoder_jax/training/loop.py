"""The training loop, read from top to bottom."""

import contextlib
import dataclasses
import importlib.metadata
import pathlib
import shlex
import signal
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from starcoder_jax.data.loader import Loader, fingerprint, format_fingerprint
from starcoder_jax.data.store import TokenStore
from starcoder_jax.parallel.mesh import make_mesh
from starcoder_jax.parallel.sharding import (
    ShardingRules,
    batch_ways,
    check_batch,
    sharding_rules,
)
from starcoder_jax.recipes import Recipe, changed_fields, load_recipe, recipe_text
from starcoder_jax.training.checkpoint import Checkpointer, find_checkpoint, placed, restore_params
from starcoder_jax.training.evaluation import Evaluation, Evaluator
from starcoder_jax.training.metrics import MetricsWriter, read_metrics, replace_file
from starcoder_jax.training.optimizer import learning_rate, make_optimizer
from starcoder_jax.training.progress import Progress
from starcoder_jax.training.report import write_report
from starcoder_jax.training.step import TrainState, initial_state, make_train_step

# A vocabulary table may have this many rows more than the tokenizer has ids: Megatron pads it to a
# multiple of 128 times the tensor-parallel size.
_MAX_PADDING = 1024


class DivergedError(ArithmeticError):
    """The loss or the gradient is no longer finite."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: steps done and saved.
        interrupted: SIGTERM stopped it; the same call goes on from there.
        evaluation: the last one, if any was made.
    """

    step: int
    interrupted: bool
    evaluation: Evaluation | None


def open_workdir(recipe: Recipe, workdir: pathlib.Path, header: str = "") -> None:
    """Makes the working directory of a run, or checks that it is this recipe's.

    Raises:
        ValueError: it belongs to a run of another recipe; the message names what differs.
        OSError: it cannot be written.
    """
    config_file = workdir / "config.gin"
    # A start that failed before its first step leaves nothing that another recipe could spoil.
    has_begun = any((workdir / "checkpoints").glob("*")) or read_metrics(workdir)
    if config_file.exists() and has_begun:
        differences = changed_fields(load_recipe([str(config_file)]), recipe)
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another recipe, which differs in "
                f"{'; '.join(differences)}. Give another --workdir, or the recipe of that run"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        replace_file(config_file, recipe_text(recipe, header).encode())


def check_vocabulary(recipe: Recipe, store: TokenStore) -> None:
    """Checks that model and tokenizer agree on the vocabulary.

    Raises:
        ValueError: they do not.
    """
    rows, ids = recipe.model.vocab_size, store.tokenizer.vocab_size
    if not ids <= rows <= ids + _MAX_PADDING:
        raise ValueError(
            f"model.vocab_size={rows}, but the tokenizer of the token store has {ids} ids: the "
            f"model needs that many rows, and at most {_MAX_PADDING} more as padding"
        )


def train(recipe: Recipe, workdir: pathlib.Path, store: TokenStore) -> Outcome:
    """Trains, from the newest checkpoint in the working directory if there is one.

    Every step is a pure function of the state before it and of the step's number, so that a run
    that was killed and started again computes what it would have computed.

    Args:
        recipe: of the run; `open_workdir` has accepted it.
        workdir: where checkpoints, metrics and the report go.
        store: the token store of the recipe.

    Raises:
        ValueError: recipe, store and devices do not fit together.
        DivergedError: a loss or gradient was not finite; names the step. The last checkpoint is
            from before it.
        OSError: the working directory cannot be written; the last checkpoint is whole.
    """
    settings = recipe.train
    check_vocabulary(recipe, store)

    # 1. Mesh, and where everything lives on it.
    mesh = make_mesh(recipe.mesh)
    rules = sharding_rules(recipe.model, mesh)
    check_batch(settings.batch_size, settings.micro_batches, mesh)
    if settings.sequence_length % mesh.shape["sequence"]:
        raise ValueError(
            f"train.sequence_length={settings.sequence_length} does not split over mesh.sequence="
            f"{mesh.shape['sequence']}"
        )
    with jax.set_mesh(mesh), _catch_sigterm() as stop, contextlib.ExitStack() as stack:
        # 2. Data: batch k is a function of the recipe and k alone.
        share = _row_share(settings.batch_size, rules)
        loader = Loader(
            store,
            rates=recipe.data.rates,
            batch_size=settings.batch_size,
            sequence_length=settings.sequence_length,
            seed=settings.seed,
            fim=recipe.fim,
            process_index=share.index,
            process_count=share.count,
            read_workers=recipe.data.read_workers,
        )

        # 3. State: shapes and shardings first, then a restore or an initialisation onto them.
        optimizer = make_optimizer(recipe.optimizer, settings.total_steps)

        def fresh_state() -> TrainState:
            return initial_state(recipe.model, optimizer, settings.seed, rules)

        about = {
            "recipe": recipe_text(recipe),
            "versions": {
                name: importlib.metadata.version(name) for name in ("starcoder_jax", "jax", "flax")
            },
        }
        checkpointer = Checkpointer(workdir / "checkpoints", settings.keep_checkpoints, about)
        stack.callback(checkpointer.close)
        abstract = placed(jax.eval_shape(fresh_state), mesh)
        state, warnings = checkpointer.restore(abstract)
        if state is None:
            state = jax.jit(fresh_state)()
            if settings.initial_checkpoint is not None:
                checkpoint, _ = find_checkpoint(pathlib.Path(settings.initial_checkpoint))
                params = restore_params(checkpoint, abstract.params)
                state = dataclasses.replace(state, params=params)
        start = int(state.step)

        # 4. The step and the evaluation.
        train_step = jax.jit(
            make_train_step(
                recipe.model,
                optimizer,
                recipe.loss,
                micro_batches=settings.micro_batches,
                seed=settings.seed,
                segment_token=store.tokenizer.end_of_text_id
                if settings.isolate_documents
                else None,
                spec=rules,
            ),
            donate_argnums=0,
        )
        schedule = learning_rate(recipe.optimizer, settings.total_steps)
        evaluator = Evaluator(
            store,
            tuple(recipe.data.rates),
            recipe.model,
            recipe.evaluation,
            recipe.fim,
            settings.sequence_length,
            recipe.evaluation.batch_size or settings.batch_size,
            batch_ways(mesh),
            rules,
        )
        watcher = stack.enter_context(_Watcher(recipe, workdir, start))
        for warning in warnings:
            watcher.message(f"warning: {warning}")
        if start:
            watcher.message(f"resuming after step {start}")

        # 5. Steps.
        weights = _to_mesh(
            np.ones((settings.batch_size, settings.sequence_length), np.float32), rules
        )
        last_evaluation = None
        batches = loader.batches(start) if start < settings.total_steps else ()
        step = saved = start
        for step, rows in enumerate(batches, start + 1):
            state, metrics = train_step(state, _to_mesh(rows, rules, settings.batch_size), weights)
            if jax.default_backend() == "cpu":
                # Simulated devices deadlock when collectives of two steps meet.
                jax.block_until_ready(state)
            is_last = step == settings.total_steps or _any_process(stop.requested)
            is_saved = is_last or step % settings.checkpoint_every == 0
            is_evaluated = step == settings.total_steps or step % settings.eval_every == 0
            if is_last or is_saved or is_evaluated or step % settings.log_every == 0:
                _check_finite(state, metrics, saved)
                record = {
                    "loss": float(metrics["loss"]),
                    "grad_norm": float(metrics["grad_norm"]),
                    "learning_rate": float(schedule(step - 1)),
                    "tokens": step * settings.batch_size * settings.sequence_length,
                    "tokens_per_second": watcher.tokens_per_second(step),
                    "batch_fingerprint": _global_fingerprint(rows, share),
                }
                if is_evaluated:
                    last_evaluation = evaluator(state.params) or last_evaluation
                    record |= last_evaluation.metrics if last_evaluation else {}
                watcher.log(step, record, last_evaluation)
            else:
                watcher.advance(step)
            if is_saved:
                checkpointer.save(state, step)
                saved = step
            if is_last:
                break
            watcher.start_clock()

        # 6. Everything on disk before this returns.
        checkpointer.wait()
        if start == settings.total_steps:
            last_evaluation = evaluator(state.params)  # for the report of a run that was done
        watcher.report(last_evaluation)
        return Outcome(step, step < settings.total_steps, last_evaluation)


class _Watcher:
    """What process 0 writes and shows; on other processes it does nothing."""

    def __init__(self, recipe: Recipe, workdir: pathlib.Path, start: int):
        self._recipe, self._workdir = recipe, workdir
        self._is_main = jax.process_index() == 0
        self._stack = contextlib.ExitStack()
        self._logged = start  # the last step whose speed is known
        self._seconds = 0.0  # of training since then
        self._clock = time.perf_counter()
        if self._is_main:
            self._metrics = MetricsWriter(workdir, start)
            self._stack.callback(self._metrics.close)
            self._progress = Progress(recipe.train.total_steps, start)

    def __enter__(self) -> "_Watcher":
        if self._is_main:
            self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *exception) -> None:
        self._stack.__exit__(*exception)

    def start_clock(self) -> None:
        """Training goes on: what came since `tokens_per_second` or `advance` does not count."""
        self._clock = time.perf_counter()

    def tokens_per_second(self, step: int) -> float:
        """Of training alone, since the last call."""
        self._stop_clock()
        tokens = (step - self._logged) * self._recipe.train.batch_size
        tokens *= self._recipe.train.sequence_length
        speed = tokens / self._seconds
        self._logged, self._seconds = step, 0.0
        return speed

    def advance(self, step: int) -> None:
        self._stop_clock()
        if self._is_main:
            self._progress.advance(step)

    def log(self, step: int, record: dict, evaluation: Evaluation | None) -> None:
        if not self._is_main:
            return
        self._metrics.write(step, record)
        self._progress.update(
            step, loss=record["loss"], tokens_per_second=record["tokens_per_second"]
        )
        if "eval/loss" in record:
            text = "  ".join(
                f"{name.removeprefix('eval/')} {value:.3f}"
                for name, value in record.items()
                if name.startswith("eval/")
            )
            self._progress.message(f"step {step} on held-out files: {text}")
            self.report(evaluation)

    def message(self, text: str) -> None:
        if self._is_main:
            self._progress.message(text)

    def report(self, evaluation: Evaluation | None) -> None:
        """Writes report.html as of now."""
        if not self._is_main:
            return
        write_report(
            self._workdir,
            title=self._workdir.name,
            config_text=recipe_text(self._recipe),
            sample=evaluation.sample if evaluation else None,
            heldout=evaluation.files if evaluation else [],
            next_command=next_command(self._workdir),
        )

    def _stop_clock(self) -> None:
        self._seconds += time.perf_counter() - self._clock
        self._clock = time.perf_counter()


def next_command(workdir: pathlib.Path) -> str:
    """What to try with a trained model."""
    return (
        f"python -m starcoder_jax.generate --checkpoint={shlex.quote(str(workdir))} "
        "--prompt='def read_lines(path):'"
    )


class _Stop:
    requested = False


@contextlib.contextmanager
def _catch_sigterm() -> Iterator[_Stop]:
    """Within the context, SIGTERM only asks for a stop after the step under way."""
    stop = _Stop()

    def request(*_):
        stop.requested = True

    try:
        before = signal.signal(signal.SIGTERM, request)
    except ValueError:  # not the main thread (a notebook's executor): nobody sends it there
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _any_process(flag: bool) -> bool:
    """Whether the flag is set on any process: all stop at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@dataclasses.dataclass(frozen=True)
class _RowShare:
    """A process feeds part `index` of `count` equal parts of each batch."""

    index: int
    count: int


def _row_share(batch_size: int, rules: ShardingRules) -> _RowShare:
    """The rows that this process's devices hold; processes may share them (tensor parallelism).

    Raises:
        ValueError: they are not one range of rows, which the mesh's device order decides.
    """
    sharding = jax.NamedSharding(jax.sharding.get_mesh(), rules("batch", None))
    indices = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    ranges = sorted({rows.indices(batch_size)[:2] for rows, _ in indices})
    start, size = ranges[0][0], ranges[-1][1] - ranges[0][0]
    if sum(stop - first for first, stop in ranges) != size or start % size or batch_size % size:
        raise ValueError(
            f"the devices of process {jax.process_index()} hold rows {ranges} of a batch, which "
            "are no part of equal parts: choose mesh.replica and mesh.fsdp along the hosts"
        )
    return _RowShare(start // size, batch_size // size)


def _global_fingerprint(rows: np.ndarray, share: _RowShare) -> str:
    """Of the global batch, of which this process has a share."""
    value = fingerprint(rows, share.index * rows.shape[0])
    if jax.process_count() > 1:
        # As two halves: JAX has no 64-bit integers by default.
        part = np.array([share.index, value >> 32, value & 0xFFFFFFFF], np.uint32)
        parts = multihost_utils.process_allgather(part).tolist()
        unique = {index: (high << 32) + low for index, high, low in parts}
        value = sum(unique.values()) % 2**64
    return format_fingerprint(value)


def _to_mesh(rows: np.ndarray, rules: ShardingRules, batch_size: int | None = None) -> jax.Array:
    """This process's rows as its part of the global batch, split over the batch axes."""
    sharding = jax.NamedSharding(jax.sharding.get_mesh(), rules("batch", None))
    shape = (batch_size or rows.shape[0], rows.shape[1])
    if shape == rows.shape and jax.process_count() > 1:
        return jax.make_array_from_callback(shape, sharding, lambda index: rows[index])
    return jax.make_array_from_process_local_data(sharding, rows, shape)


def _check_finite(state: TrainState, metrics: dict, saved: int) -> None:
    step = int(state.first_bad_step)
    if step >= 0:
        raise DivergedError(
            f"loss or gradient was not finite at step {step} (loss now {float(metrics['loss'])}); "
            f"the last good checkpoint is of step {saved}: lower optimizer.peak_learning_rate or "
            "lengthen optimizer.warmup_steps, in a new working directory"
        )
