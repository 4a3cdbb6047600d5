"""Measures a model on a benchmark, or scores samples that exist.

python -m starcoder_jax.evaluate --checkpoint=runs/tiny --task=humaneval --data=HumanEval.jsonl.gz
python -m starcoder_jax.evaluate --samples=samples.jsonl --task=humaneval --data=HumanEval.jsonl.gz
python -m starcoder_jax.evaluate --checkpoint=runs/tiny --task=perplexity --data=src

What a model writes is run in a sandbox. Beside RESULT.json come RESULT.html, a page that shows
failures by kind, and RESULT.samples.jsonl and RESULT.outcomes.jsonl, which grow as the evaluation
goes on: after a kill, the same command goes on where it was.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from starcoder_jax.command import one_line_errors
from starcoder_jax.evals.requests import READING, Request
from starcoder_jax.evals.tasks import TASKS


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = vars(_parser().parse_args(argv))
    output = args.pop("output") or pathlib.Path(f"{args['task']}.json")
    with one_line_errors("evaluate"):
        from starcoder_jax.evals.evaluation import evaluate
        from starcoder_jax.progress import Progress

        request = Request(output=output, **args)
        try:
            record = evaluate(request, Progress())
        except KeyboardInterrupt:
            print("evaluate: stopped; the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None
        if record is None:
            print(f"wrote {request.file('.samples.jsonl')}")
            return
        metrics = record["metrics"]
        names = [name for name in metrics if not name.endswith("_stderr")]
        width = max(map(len, names), default=0) + 2
        for name in names:
            error = metrics.get(f"{name}_stderr")
            note = "" if error is None else f" ± {error:.4f}"
            print(f"{name:<{width}}{metrics[name]:.4f}{note}")
        for reason, count in record.get("outcomes", {}).items():
            print(f"  {count:>6} {reason}")
        print(f"wrote {output} and {request.file('.html')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = [*TASKS, *READING]
    path = pathlib.Path
    add = parser.add_argument
    add("--task", required=True, choices=tasks, metavar="TASK", help=", ".join(tasks))
    add(
        "--data",
        required=True,
        type=path,
        help="the benchmark's file; for perplexities and fim also a folder, a text file, or a "
        "token store, whose held-out documents are taken",
    )
    add("--output", type=path, metavar="RESULT.json", help="default: TASK.json")

    group = parser.add_argument_group("what to score, one of")
    add = group.add_argument
    add("--checkpoint", help="of a model: a training run, a checkpoint or a Hugging Face folder")
    add(
        "--samples", type=path, help="file of samples, as human-eval, EvalPlus or MultiPL-E have it"
    )
    add(
        "--solutions",
        choices=["canonical", "buggy"],
        help="the data's own solutions: tells whether data and sandbox are sound",
    )

    group = parser.add_argument_group("which problems")
    add = group.add_argument
    add("--only", metavar="PATTERN", help="those whose task id matches, such as 'HumanEval/1*'")
    add("--limit", type=int, help="so many at most, the first ones; of lines and texts too")

    group = parser.add_argument_group("generating")
    add = group.add_argument
    add("--num_samples", type=int, help="of each problem; default: 1")
    add("--temperature", type=float, help="default: 0, the most likely token")
    add("--top_p", type=float, help="default: 1")
    add("--max_tokens", type=int, help="of an answer; default: the task's")
    add("--seed", type=int, help="default: 0")
    add("--prompt_format", help="of humanevalpack: instruct (default), octocoder, commit")
    add("--order", choices=["psm", "spm"], help="of infilling prompts; default: psm")
    add("--generate_only", action="store_true", help="write samples, run nothing")
    add("--slots", type=int, help="sequences decoded at once; default: 8")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as it is stored")
    add("--window", type=int, help="tokens that a perplexity runs at once; default: 2048 at most")

    group = parser.add_argument_group("running programs")
    add = group.add_argument
    add("--k", type=_counts, metavar="K,K", help="of pass@k; default: 1")
    add("--time_limit", type=float, metavar="SECONDS", help="of a program; default: 10")
    add("--workers", type=int, help="programs at once; default: one a core")
    add(
        "--without_sandbox",
        action="store_true",
        help="run programs unprotected where no sandbox is possible: they can do what you can",
    )
    return parser


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
