"""Checkpoints of a run: asynchronous, whole or absent, restorable onto any mesh.

WORKDIR/checkpoints/STEP/ holds `params` and `training` (optimizer state and counters) as Orbax
trees and `about`, a JSON object with the architecture, the recipe, the versions of the code that
wrote it, and a checksum of each tree: Orbax reads array data without noticing flipped bits.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from starcoder_jax.training.hosts import any_process, any_text
from starcoder_jax.training.metrics import read_metrics
from starcoder_jax.training.step import Params, TrainState

_CHUNK_BYTES = 64 * 2**20


class Checkpointer:
    """Saves and restores the states of one run.

    Args:
        directory: of the checkpoints; made if absent.
        keep: number of newest checkpoints to keep.
        about: JSON-like values written beside each state.
    """

    def __init__(self, directory: pathlib.Path, keep: int, about: dict[str, Any]):
        self.directory = directory.absolute()
        self._about = about
        self._writing: int | None = None  # the step whose write an error is about
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, state: TrainState, step: int) -> None:
        """Copies the state off the devices and writes it in the background.

        Raises:
            OSError: an earlier write failed; the checkpoints before it are whole.
        """
        training = {
            "step": state.step,
            "optimizer_state": state.optimizer_state,
            "first_bad_step": state.first_bad_step,
        }
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._writing = step
            checksums = {"params": _checksum(state.params), "training": _checksum(training)}
            about = self._about | {"checksums": {k: int(v) for k, v in checksums.items()}}
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(
                        state.params, save_args=_layers_apart(state.params)
                    ),
                    training=ocp.args.StandardSave(training),
                    about=ocp.args.JsonSave(about),
                ),
            )
        except Exception as error:
            raise _write_error(self.directory, self._writing, error) from error

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            OSError: a write failed; the checkpoints before it are whole.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise _write_error(self.directory, self._writing, error) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState | None, list[str]]:
        """The newest state that can be read, on the shardings of `abstract`.

        A checkpoint that cannot be read is moved aside to `checkpoints/broken-STEP` if one before
        it can.

        Args:
            abstract: shapes, dtypes and shardings of the state, from `placed`.

        Returns:
            The state, None if there is no checkpoint; and a warning for each broken one.

        Raises:
            ValueError: there are checkpoints, but none can be read; all stay where they are.
        """
        reasons: dict[int, str] = {}  # of those that cannot be read
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, reason = self._restore_step(step, abstract)
            if reason is None:
                return state, [self._set_aside(step, reason) for step, reason in reasons.items()]
            reasons[step] = reason
        if reasons:
            step, reason = next(iter(reasons.items()))
            raise ValueError(
                f"none of the {len(reasons)} checkpoints in {self.directory} can be read: move "
                f"them away to start anew. Of step {step}: {reason}"
            )
        return None, []

    def close(self) -> None:
        """Finishes what is under way."""
        self._manager.close()

    def _restore_step(
        self, step: int, abstract: TrainState
    ) -> tuple[TrainState | None, str | None]:
        """The state, or why it cannot be read; the same on all processes."""
        training = {
            "step": abstract.step,
            "optimizer_state": abstract.optimizer_state,
            "first_bad_step": abstract.first_bad_step,
        }
        folder = self.directory / str(step)
        restored, reason = {}, None
        try:
            checksums = read_about(folder)["checksums"]
            # Not through the manager, in which a process that can read its part of a damaged
            # checkpoint would wait for one that cannot.
            for name, tree in (("params", abstract.params), ("training", training)):
                with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                    args = ocp.args.StandardRestore(tree)
                    restored[name] = handler.restore(folder / name, args=args), checksums[name]
        except Exception as error:  # whatever a damaged file makes the libraries raise
            reason = first_line(error)[:200]
        if (reason := any_text(reason)) is not None:
            return None, reason
        for name, (tree, checksum) in restored.items():
            if int(_checksum(tree)) != checksum:
                return None, f"the data of {name} are damaged: their checksum is another one"
        return TrainState(params=restored["params"][0], **restored["training"][0]), None

    def _set_aside(self, step: int, reason: str) -> str:
        """Moves a broken checkpoint and returns a warning."""
        broken = self.directory / str(step)
        aside = self.directory / f"broken-{step}"
        if jax.process_index() == 0:
            if aside.exists():
                shutil.rmtree(aside)
            broken.rename(aside)
        any_process(False)  # all wait for process 0
        self._manager.reload()
        return (
            f"checkpoint {step} cannot be read ({reason}): moved to {aside.name}, going back to "
            "the one before"
        )


def find_checkpoint(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The newest checkpoint of a run.

    Args:
        path: a working directory, its `checkpoints`, or one checkpoint.

    Returns:
        The checkpoint's folder and the working directory.

    Raises:
        ValueError: there is no checkpoint.
    """
    path = path.absolute()
    if (path / "params").is_dir():
        return path, path.parent.parent
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [child for child in folder.glob("*") if child.name.isdigit()] if folder.is_dir() else []
    if not steps:
        raise ValueError(
            f"no checkpoint in {path}: give the working directory of a training run, or a Hugging "
            "Face directory (with a config.json)"
        )
    return max(steps, key=lambda child: int(child.name)), folder.parent


def has_begun(workdir: pathlib.Path) -> bool:
    """Whether a run has left something that another recipe could spoil: a checkpoint or metrics."""
    return any((workdir / "checkpoints").glob("*")) or bool(read_metrics(workdir))


def placed(abstract: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """What to restore, on the devices to restore it on.

    Args:
        abstract: a tree of `jax.ShapeDtypeStruct` from `jax.eval_shape` under the mesh, which
            knows the mesh's axes, but not its devices.
        mesh: whose devices; None: the first device alone.
    """

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if mesh is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        else:
            spec = jax.P() if x.sharding is None else x.sharding.spec
            sharding = jax.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, abstract)


def read_about(checkpoint: pathlib.Path) -> dict[str, Any]:
    """What is written beside the parameters of a checkpoint."""
    return json.loads((checkpoint / "about" / "metadata").read_text(encoding="utf-8"))


def combine_checksums(sums: Iterable[int]) -> int:
    """The checksum of a tree, from the sums of the bits of its leaves, in their order."""
    return sum(total * (2 * index + 1) for index, total in enumerate(sums)) % 2**32


@jax.jit
def _checksum(tree: Any) -> jax.Array:
    """`combine_checksums` of a tree of 32-bit arrays, a uint32 scalar; the same on any mesh."""
    total = jnp.zeros((), jnp.uint32)
    for index, x in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)
        total += jnp.sum(words, dtype=jnp.uint32) * jnp.uint32(2 * index + 1)
    return total


def _layers_apart(params: Params) -> Any:
    """How to save: large stacks of layers in chunks of few, so that they can be read one by one."""

    def arguments(path, _):
        is_stacked = path[0].key == "layers"
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if is_stacked else ())

    return jax.tree_util.tree_map_with_path(arguments, params)


def _write_error(directory: pathlib.Path, step: int | None, error: Exception) -> OSError:
    return OSError(
        f"checkpoint {step} could not be written to {directory} ({first_line(error)[:300]}): free "
        "or mount space there and run the same command again; the checkpoints before it are whole"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or what stands for it."""
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
