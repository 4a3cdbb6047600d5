"""The training loop, read from top to bottom."""

import contextlib
import dataclasses
import importlib.metadata
import pathlib
import signal
from collections.abc import Iterator

import jax
import numpy as np

from starcoder_jax.data.loader import Loader
from starcoder_jax.data.store import TokenStore
from starcoder_jax.files import replace_file
from starcoder_jax.gin_files import recipe_text
from starcoder_jax.parallel.sharding import batch_ways
from starcoder_jax.recipes import Recipe, changed_fields, load_recipe
from starcoder_jax.training.checkpoint import Checkpointer, has_begun
from starcoder_jax.training.evaluation import Evaluation, Evaluator
from starcoder_jax.training.goodput import Cause, Clock, note_opening
from starcoder_jax.training.hosts import any_process, global_fingerprint, row_share, to_mesh
from starcoder_jax.training.initial import check_vocabulary, open_initial_checkpoint
from starcoder_jax.training.optimizer import learning_rate
from starcoder_jax.training.parameters import place
from starcoder_jax.training.profiling import Events
from starcoder_jax.training.program import make_devices, make_program
from starcoder_jax.training.step import TrainState
from starcoder_jax.training.watcher import Watcher


class DivergedError(ArithmeticError):
    """The loss or the gradient is no longer finite."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: steps done and saved.
        interrupted: SIGTERM or Ctrl-C stopped it; the same call goes on from there.
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
    if has_begun(workdir) and not config_file.exists():
        raise ValueError(
            f"{workdir} holds a converted model, not a run: give it as train.initial_checkpoint, "
            "and another --workdir"
        )
    # A start that failed before its first step leaves nothing that another recipe could spoil.
    if has_begun(workdir):
        differences = changed_fields(load_recipe([str(config_file)]), recipe)
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another recipe, which differs in "
                f"{'; '.join(differences)}. Give another --workdir, or the recipe of that run"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        replace_file(config_file, recipe_text(recipe, header).encode())
        note_opening(workdir)


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
    check_vocabulary(recipe, store.tokenizer)
    if jax.process_index() == 0:
        store.tokenizer.save(workdir)  # so that the model can be opened without its data

    # 1. Mesh, and where everything lives on it.
    mesh, rules = make_devices(recipe)
    with jax.set_mesh(mesh), _catch_signals() as stop, contextlib.ExitStack() as stack:
        events = stack.enter_context(Events("train_step"))
        clock = Clock(events)
        # 2. Data: batch k is a function of the recipe and k alone.
        rows_split = jax.NamedSharding(mesh, rules("batch", None))
        share = row_share(settings.batch_size, rows_split, jax.process_index())
        loader = Loader(
            store,
            rates=recipe.data.rates,
            batch_size=settings.batch_size,
            sequence_length=settings.sequence_length,
            seed=settings.seed,
            fim=recipe.fim,
            rows=share.rows,
            read_workers=recipe.data.read_workers,
        )

        # 3. State: shapes and shardings first, then a restore or an initialisation onto them.
        program = make_program(recipe, mesh, rules, store.tokenizer.end_of_text_id)
        about = {
            "model": dataclasses.asdict(recipe.model),
            "recipe": recipe_text(recipe),
            "versions": {
                name: importlib.metadata.version(name) for name in ("starcoder_jax", "jax", "flax")
            },
        }
        checkpointer = Checkpointer(workdir / "checkpoints", settings.keep_checkpoints, about)
        stack.callback(checkpointer.close)
        state, warnings = checkpointer.restore(program.state)
        if state is None:
            state = jax.jit(program.fresh_state)()
            if settings.initial_checkpoint is not None:
                initial = open_initial_checkpoint(recipe)
                state = dataclasses.replace(state, params=None)  # never two models in memory
                state = dataclasses.replace(state, params=place(initial.read, program.state.params))
        start = int(state.step)

        # 4. The evaluation, and what is shown.
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
        watcher = stack.enter_context(Watcher(recipe, mesh, workdir, start, events, clock))
        for warning in warnings:
            watcher.message(f"warning: {warning}")
        if start:
            watcher.message(f"resuming after step {start}")

        # 5. Steps.
        ones = np.ones((len(share.rows), settings.sequence_length), np.float32)
        weights = to_mesh(ones, share)
        last_evaluation = None
        batches = loader.batches(start) if start < settings.total_steps else ()
        step = saved = start
        for step, rows in enumerate(batches, start + 1):
            watcher.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = program.step(state, to_mesh(rows, share), weights)
            if jax.default_backend() == "cpu":
                # Simulated devices deadlock when collectives of two steps meet.
                jax.block_until_ready(state)
            is_logged = step % settings.log_every == 0
            # Several processes agree on a stop; asking at every step would make all wait for all.
            is_asked = jax.process_count() == 1 or is_logged
            is_last = step == settings.total_steps or (is_asked and any_process(stop.requested))
            is_saved = is_last or step % settings.checkpoint_every == 0
            is_evaluated = step == settings.total_steps or step % settings.eval_every == 0
            if is_logged or is_last or is_saved or is_evaluated:
                _check_finite(state, metrics, saved)
                record = {
                    "loss": float(metrics["loss"]),
                    "grad_norm": float(metrics["grad_norm"]),
                    "learning_rate": float(schedule(step - 1)),
                    "tokens": step * settings.batch_size * settings.sequence_length,
                    "batch_fingerprint": global_fingerprint(rows, share),
                }
                if is_evaluated:
                    with clock.spending(Cause.EVALUATION):
                        last_evaluation = evaluator(state.params) or last_evaluation
                    record |= last_evaluation.metrics if last_evaluation else {}
                watcher.log(step, record, last_evaluation)
            else:
                watcher.advance(step)
            if is_saved:
                with watcher.saving(state):
                    checkpointer.save(state, step)
                saved = step
            if is_last:
                break

        # 6. Everything on disk before this returns.
        with watcher.saving(state):
            checkpointer.wait()
        if start == settings.total_steps:
            last_evaluation = evaluator(state.params)  # for the report of a run that was done
        watcher.finish(last_evaluation)
        return Outcome(step, step < settings.total_steps, last_evaluation)


class _Stop:
    requested = False


@contextlib.contextmanager
def _catch_signals() -> Iterator[_Stop]:
    """Within the context, SIGTERM and Ctrl-C only ask for a stop after the step under way.

    A second Ctrl-C interrupts as ever.
    """
    stop = _Stop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def request(number, _):
        stop.requested = True
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    try:
        for number in numbers:
            signal.signal(number, request)
    except ValueError:  # not the main thread (a notebook's executor): nobody sends any there
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_finite(state: TrainState, metrics: dict, saved: int) -> None:
    step = int(state.first_bad_step)
    if step >= 0:
        raise DivergedError(
            f"loss or gradient was not finite at step {step} (loss now {float(metrics['loss'])}); "
            f"the last good checkpoint is of step {saved}: lower optimizer.peak_learning_rate or "
            "lengthen optimizer.warmup_steps, in a new working directory"
        )
