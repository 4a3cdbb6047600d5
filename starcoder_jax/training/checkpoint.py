"""Checkpoints of a run: asynchronous, whole or absent, restorable onto any mesh.

WORKDIR/checkpoints/STEP/ holds `params` and `training` (optimizer state and counters) as Orbax
trees and `about`, a JSON object with the recipe and the versions of the code that wrote it.
"""

import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from starcoder_jax.training.step import Params, TrainState


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
            self._manager.check_for_errors()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    training=ocp.args.StandardSave(training),
                    about=ocp.args.JsonSave(self._about),
                ),
            )
        except Exception as error:
            raise _write_error(self.directory, step, error) from error

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            OSError: a write failed; the checkpoints before it are whole.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise _write_error(self.directory, self._manager.latest_step(), error) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState | None, list[str]]:
        """The newest state that can be read, on the shardings of `abstract`.

        A checkpoint that cannot be read is moved aside to `checkpoints/broken-STEP` and the one
        before it is tried.

        Args:
            abstract: shapes, dtypes and shardings of the state, from `jax.eval_shape`.

        Returns:
            The state, None if there is no checkpoint; and a warning for each broken one.

        Raises:
            ValueError: there are checkpoints, but none can be read.
        """
        warnings = []
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore_step(step, abstract), warnings
            except Exception as error:  # whatever a damaged file makes the libraries raise
                reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                aside = self._set_aside(step)
                warnings.append(
                    f"checkpoint {step} cannot be read ({reason[:200]}): moved to {aside.name}, "
                    "going back to the one before"
                )
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self.directory} can be read; they were moved to "
                f"broken-STEP there. Last reason: {warnings[-1]}"
            )
        return None, warnings

    def close(self) -> None:
        """Finishes what is under way."""
        self._manager.close()

    def _restore_step(self, step: int, abstract: TrainState) -> TrainState:
        training = {
            "step": abstract.step,
            "optimizer_state": abstract.optimizer_state,
            "first_bad_step": abstract.first_bad_step,
        }
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                training=ocp.args.StandardRestore(training),
            ),
        )
        return TrainState(params=restored["params"], **restored["training"])

    def _set_aside(self, step: int) -> pathlib.Path:
        broken = self.directory / str(step)
        aside = self.directory / f"broken-{step}"
        if jax.process_index() == 0:
            if aside.exists():
                shutil.rmtree(aside)
            broken.rename(aside)
        self._manager.reload()
        return aside


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
        raise ValueError(f"no checkpoint in {path}: give a working directory of a training run")
    return max(steps, key=lambda child: int(child.name)), folder.parent


def restore_params(checkpoint: pathlib.Path, abstract: Params) -> Params:
    """The parameters of one checkpoint, on the shardings of `abstract`.

    Raises:
        ValueError: the checkpoint cannot be read or has other parameters.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(checkpoint / "params", abstract)
    except Exception as error:  # as in Checkpointer.restore
        raise ValueError(
            f"checkpoint {checkpoint} cannot be restored: {str(error).strip().splitlines()[0]}"
        ) from error


def _write_error(directory: pathlib.Path, step: int | None, error: Exception) -> OSError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return OSError(
        f"checkpoint {step} could not be written to {directory} ({reason[:300]}): free or mount "
        "space there and run the same command again; the checkpoints before it are whole"
    )
