"""All that an ablation found, as one JSON object, and as a table for a terminal."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping

from starcoder_jax.ablation.grid import Grid, Run
from starcoder_jax.ablation.run import Result, read_result, reason_to_give_up
from starcoder_jax.ablation.statistics import in_words, paired_difference, spread
from starcoder_jax.files import replace_file
from starcoder_jax.pages import format_number

RESULTS_FILE = "ablation.json"

DONE, DIVERGED, GIVEN_UP, MISSING = "done", "diverged", "given up", "not finished"


def read_results(grid: Grid, workdir: pathlib.Path) -> dict[str, Result]:
    """The results there are, by the names of their runs."""
    found = {run.name: read_result(run, grid.config, workdir) for run in grid.runs}
    return {name: result for name, result in found.items() if result is not None}


def collate(grid: Grid, results: Mapping[str, Result]) -> dict[str, object]:
    """Everything about an ablation that depends on no clock: JSON-like, non-finite numbers None.

    Args:
        grid: what was asked for.
        results: by the names of runs; there may be fewer than asked for.
    """
    config = grid.config
    runs = [_run_entry(run, grid, results) for run in grid.runs]
    metrics = dict.fromkeys(name for result in results.values() for name in result.metrics)
    return {
        "first_arm": grid.first_arm,
        "seeds": list(config.seeds),
        "confidence": config.confidence,
        "complete": all(run["state"] != MISSING for run in runs),
        "caveats": grid.caveats(),
        "arms": {
            arm: {
                "changes": list(changes),
                "cost": {equal: _cost(grid, equal, arm) for equal in config.equal},
            }
            for arm, changes in config.arms.items()
        },
        "comparisons": [
            {"equal": equal, "metric": metric, "arms": _compare(grid, results, equal, metric)}
            for equal in config.equal
            for metric in metrics
        ],
        "runs": runs,
    }


def write_results(workdir: pathlib.Path, found: Mapping[str, object]) -> None:
    """Writes what `collate` gave to WORKDIR/ablation.json.

    Raises:
        OSError: naming the file.
    """
    text = json.dumps(found, indent=1, allow_nan=False)
    replace_file(workdir / RESULTS_FILE, text.encode() + b"\n")


def results_table(found: Mapping[str, object]) -> str:
    """The comparisons for a terminal."""
    width = max(len(arm) for arm in found["arms"]) + 2
    lines = []
    for comparison in found["comparisons"]:
        lines.append(f"{comparison['metric']} at equal {comparison['equal']}")
        for arm, entry in comparison["arms"].items():
            words = entry["words"] or "the arm that the others are compared with"
            lines.append(f"  {arm:<{width}}{mean_text(entry):<22}{words}")
    lines += [f"note: {caveat}" for caveat in found["caveats"]]
    lines += [
        f"{run['name']} is missing: {run['state']}{reason_text(run)}"
        for run in found["runs"]
        if run["state"] != DONE
    ]
    return "\n".join(lines)


def interval_rows(
    found: Mapping[str, object], comparison: Mapping[str, object]
) -> list[tuple[str, list[float], Mapping[str, object]]]:
    """Of each arm but the first: its name, its differences by seed, and what they come to."""
    first = comparison["arms"][found["first_arm"]]["values"]
    rows = []
    for arm, entry in comparison["arms"].items():
        if entry["difference"] is not None:
            pairs = [(value, first.get(seed)) for seed, value in entry["values"].items()]
            differences = [a - b for a, b in pairs if a is not None and b is not None]
            rows.append((arm, differences, entry["difference"]))
    return rows


def mean_text(entry: Mapping[str, object]) -> str:
    """Mean and deviation of an arm."""
    if entry["mean"] is None:
        return "-"
    mean = format_number(entry["mean"], 5)
    if entry["deviation"] is None:
        return mean
    return f"{mean} ± {format_number(entry['deviation'], 3)}"


def reason_text(run: Mapping[str, object]) -> str:
    """Why a run has no result, to stand behind its state."""
    return f" ({run['reason']})" if run["reason"] else ""


def _run_entry(run: Run, grid: Grid, results: Mapping[str, Result]) -> dict[str, object]:
    result = results.get(run.name)
    if result is not None:
        state = DONE if result.diverged is None else DIVERGED
        reason = result.diverged
    else:
        reason = reason_to_give_up(run, grid, results)
        state = MISSING if reason is None else GIVEN_UP
    return {
        "name": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "steps": run.steps,
        "state": state,
        "reason": reason,
        "metrics": {k: _finite(v) for k, v in result.metrics.items()} if result else {},
        "curve": [[tokens, _finite(value)] for tokens, value in result.curve] if result else [],
    }


def _cost(grid: Grid, equal: str, arm: str) -> dict[str, int]:
    run = grid.run(equal, arm, grid.config.seeds[0])
    return {"steps": run.steps, "tokens": run.tokens, "flops": run.flops}


def _compare(
    grid: Grid, results: Mapping[str, Result], equal: str, metric: str
) -> dict[str, object]:
    """Values, spread, and difference to the first arm, of every arm."""
    values: dict[str, dict[int, float]] = {}
    for arm in grid.config.arms:
        values[arm] = {}
        for seed in grid.config.seeds:
            result = results.get(grid.run(equal, arm, seed).name)
            if result is not None and metric in result.metrics:
                values[arm][seed] = result.metrics[metric]
    compared = {}
    for arm, of_seeds in values.items():
        difference = words = None
        if arm != grid.first_arm:
            confidence = grid.config.confidence
            difference = paired_difference(of_seeds, values[grid.first_arm], confidence)
            words = in_words(difference, confidence)
        about = spread(list(of_seeds.values()))
        compared[arm] = {
            "values": {str(seed): _finite(value) for seed, value in of_seeds.items()},
            "mean": about and about.mean,
            "deviation": about and about.deviation,
            "difference": difference and dataclasses.asdict(difference),
            "words": words,
        }
    return compared


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
