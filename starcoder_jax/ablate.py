"""Compares variants of a recipe over several seeds.

    python -m starcoder_jax.ablate --gin_file=ablations/fim.gin --workdir=runs/fim
    python -m starcoder_jax.ablate --gin_file=ablations/fim.gin --workdir=runs/fim --list
    python -m starcoder_jax.ablate --gin_file=ablations/fim.gin --workdir=runs/fim --index=3

Trains and evaluates all arms with all seeds, one after another; run again, it goes on where it was
stopped. Then WORKDIR holds ablation.html and ablation.json, which grow with every run: mean and
spread, differences to the first arm by seed, and what may be said of them. On a cluster, one job a
run does the run with its --index, on one host each; the last to end leaves the whole report.

--gin.ablation.FIELD=VALUE changes the ablation, any other --gin.SECTION.FIELD=VALUE all its arms.

Exit status: 0 when all that was asked for is done, 1 when a run failed, 2 for bad input and 143
when SIGTERM stopped it after saving.
"""

import argparse
import fcntl
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starcoder_jax.command import TERMINATED, add_recipe_flags, one_line_errors, parse

if TYPE_CHECKING:
    from starcoder_jax.ablation.grid import Grid

FAILED = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_flags(parser)
    parser.add_argument(
        "--workdir", type=pathlib.Path, help="default: runs/NAME, by the last gin file"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--list", action="store_true", help="name the runs, and do nothing")
    which.add_argument("--index", type=int, help="do this run alone, counted from 0")
    args, overrides = parse(parser, argv)
    workdir = args.workdir or pathlib.Path("runs") / pathlib.Path(args.gin_file[-1]).stem
    with one_line_errors("ablate"):
        from starcoder_jax.ablation.grid import make_grid
        from starcoder_jax.ablation.run import RunError, StoppedError, check_folders, sigterm_stops

        grid = make_grid(args.gin_file, overrides, workdir)
        check_folders(grid, workdir)
        if args.list:
            _list(grid, workdir)
            return
        try:
            with sigterm_stops():
                _perform(grid, workdir, args.index)
        except RunError as error:
            print(f"ablate: {error}", file=sys.stderr)
            raise SystemExit(FAILED) from None
        except (StoppedError, KeyboardInterrupt) as stop:
            print("ablate: stopped; the same command goes on from here", file=sys.stderr)
            raise SystemExit(TERMINATED if isinstance(stop, StoppedError) else 130) from None


def _perform(grid: "Grid", workdir: pathlib.Path, index: int | None) -> None:
    from starcoder_jax.ablation.report import REPORT_FILE
    from starcoder_jax.ablation.results import read_results, results_table
    from starcoder_jax.ablation.run import perform, read_result, reason_to_give_up
    from starcoder_jax.progress import Progress

    runs = grid.runs
    if index is not None:
        if not 0 <= index < len(runs):
            raise ValueError(f"--index={index}: there are runs 0 to {len(runs) - 1}; see --list")
        if grid.config.give_up is not None:
            raise ValueError(
                "ablation.give_up compares a run with those before it, and --index does one alone: "
                "add --gin.ablation.give_up=None"
            )
        runs = runs[index : index + 1]
    workdir.mkdir(parents=True, exist_ok=True)
    done = sum(run.steps for run in runs if read_result(run, grid.config, workdir))
    progress = Progress()
    with progress.stage("training steps", sum(run.steps for run in runs), done) as advance:
        for number, run in enumerate(runs, 1):
            if read_result(run, grid.config, workdir) is None:
                results = read_results(grid, workdir)
                reason = reason_to_give_up(run, grid, results)
                if reason is not None:
                    progress.message(f"{run.name} is not run: {reason}")
                    continue
                progress.message(f"run {number} of {len(runs)}: {run.name}")
                perform(run, grid, workdir, progress.message, advance)
                _report(grid, workdir)
    print(results_table(_report(grid, workdir)))
    print(f"see {workdir / REPORT_FILE}")


def _report(grid: "Grid", workdir: pathlib.Path) -> dict[str, object]:
    """Writes what is known by now; of several jobs, the last to write knows what the others do."""
    from starcoder_jax.ablation.report import write_report
    from starcoder_jax.ablation.results import collate, read_results, write_results

    with open(workdir / ".report.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = collate(grid, read_results(grid, workdir))
        write_results(workdir, found)
        write_report(workdir, found)
    return found


def _list(grid: "Grid", workdir: pathlib.Path) -> None:
    from starcoder_jax.ablation.results import collate, read_results

    for index, run in enumerate(collate(grid, read_results(grid, workdir))["runs"]):
        print(f"{index:>4}  {run['name']:<40}{run['state']}")


if __name__ == "__main__":
    main()
