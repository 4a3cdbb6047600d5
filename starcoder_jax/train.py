"""Trains a StarCoder-family model by a recipe. Run again, it resumes.

    python -m starcoder_jax.train --gin_file=tiny.gin --workdir=runs/tiny

On several hosts, start the same command on each; `starcoder_jax.parallel.distributed` says how they
find each other.

Exit status: 0 when all steps are done, 2 for bad input, 3 when loss or gradient is no longer
finite, 4 when another process was lost, 143 when SIGTERM or Ctrl-C stopped it after saving, and 130
when Ctrl-C stopped it otherwise (after the last three, the same command goes on from the last
checkpoint).
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starcoder_jax.command import DIVERGED, TERMINATED, add_recipe_flags, one_line_errors, parse

if TYPE_CHECKING:
    from starcoder_jax.parallel.distributed import Processes
    from starcoder_jax.training.report import HeldOutFile


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_flags(parser)
    parser.add_argument(
        "--workdir",
        help="checkpoints, metrics and report go here; by default runs/NAME, by the last recipe",
    )
    args, overrides = parse(parser, argv)
    name = pathlib.Path(args.gin_file[-1]).stem
    workdir = pathlib.Path(args.workdir or f"runs/{name}")
    with one_line_errors("train"):
        from starcoder_jax.parallel import distributed

        processes = distributed.start("train")
    with processes, one_line_errors("train"), processes.blaming_the_lost():
        try:
            status = _train(args.gin_file, overrides, workdir, processes)
        except KeyboardInterrupt:
            print("train: stopped; the same command goes on from what is saved", file=sys.stderr)
            raise SystemExit(130) from None
    sys.exit(status)


def _train(
    files: Sequence[str], overrides: Sequence[str], workdir: pathlib.Path, processes: "Processes"
) -> int:
    """Returns the exit status, the same on all processes."""
    import jax

    from starcoder_jax.data.store import MANIFEST, TokenStore
    from starcoder_jax.gin_files import recipe_text
    from starcoder_jax.recipes import load_recipe
    from starcoder_jax.training.checkpoint import has_begun
    from starcoder_jax.training.hosts import wait_for_file
    from starcoder_jax.training.initial import bring_tokenizer, open_initial_checkpoint
    from starcoder_jax.training.loop import DivergedError, open_workdir, train
    from starcoder_jax.training.program import make_devices
    from starcoder_jax.training.watcher import next_command

    recipe = load_recipe(files, overrides)
    command = " ".join([f"--gin_file={file}" for file in files] + [f"--gin.{o}" for o in overrides])
    make_devices(recipe)  # so that a mesh that does not fit is found before data is prepared
    if recipe.train.initial_checkpoint is not None and not has_begun(workdir):
        open_initial_checkpoint(recipe)  # likewise
    store = pathlib.Path(recipe.data.directory or workdir / "data")

    def prepare() -> tuple[int, str]:
        open_workdir(recipe, workdir, header=f"python -m starcoder_jax.train {command}")
        tokenizer = bring_tokenizer(recipe, workdir)
        # In a process of its own: it loads TensorFlow, which training has no use for.
        module = [sys.executable, "-m", "starcoder_jax.prepare", f"--directory={store}"]
        module += [f"--gin_file={workdir / 'config.gin'}", f"--gin.tokenizer.path={tokenizer}"]
        return processes.run(module), recipe_text(recipe)

    status, text = processes.first(prepare)
    if status:
        return status
    if text != recipe_text(recipe):
        raise ValueError(
            f"process {jax.process_index()} was given another recipe than process 0, which wrote "
            f"its own to {workdir / 'config.gin'}: start the same command on all hosts"
        )
    wait_for_file(store / MANIFEST)
    try:
        outcome = train(recipe, workdir, TokenStore(store))
    except DivergedError as error:
        print(f"train: {error}", file=sys.stderr)
        return DIVERGED
    if jax.process_index():
        return TERMINATED if outcome.interrupted else 0
    if outcome.interrupted:
        print(f"train: saved step {outcome.step} and stopped; the same command goes on from there")
        return TERMINATED
    if outcome.evaluation:
        print(heldout_table(outcome.evaluation.files))
    print(f"done. Look at {workdir / 'report.html'}, then try:\n  {next_command(workdir)}")
    return 0


def heldout_table(files: Sequence["HeldOutFile"]) -> str:
    """Bits per byte of the model beside `xz -9e`, file by file and over all bytes."""
    total = sum(file.num_bytes for file in files)
    model = sum(file.model_bits for file in files) / total
    xz = sum(file.xz_bits for file in files) / total
    rows = [
        (file.path, file.num_bytes, file.model_bits_per_byte, file.xz_bits_per_byte)
        for file in files
    ]
    lines = [f"{'held-out file':<60}{'bytes':>9}{'model':>8}{'xz -9e':>8}  (bits per byte)"]
    for path, num_bytes, model_rate, xz_rate in [*rows, ("all of them", total, model, xz)]:
        name = path if len(path) < 60 else f"...{path[-56:]}"
        lines.append(f"{name:<60}{num_bytes:>9,}{model_rate:>8.3f}{xz_rate:>8.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
