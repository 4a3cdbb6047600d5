"""Curates source code: from raw repositories to a corpus that models are trained on.

python -m starcoder_jax.stack run --gin_file=stack/local.gin --folder=runs/stack
python -m starcoder_jax.stack filter --gin_file=stack/local.gin --folder=runs/stack
python -m starcoder_jax.stack lookup --folder=runs/stack --repository=owner/name --workdir=runs/tiny

A stage is run with those before it; what was finished before is not done again, so that a run that
was stopped goes on, and one after a change does what the change concerns. `run` does all stages.
Exit status: 0 when done, 1 when a step failed or `verify` found something, 2 for bad input.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from starcoder_jax.command import add_recipe_flags, of_extra, one_line_errors, parse

FAILED = 1  # exit status

STAGES = {
    "collect": "reads folders, repositories, archives and tables",
    "identify": "tells languages and licenses",
    "render": "makes documents of issues, pull requests, commits, notebooks and the like",
    "filter": "leaves out what models learn nothing good from",
    "dedup": "leaves out duplicates, exact and near",
    "decontaminate": "leaves out what benchmarks ask for",
    "redact": "replaces e-mail addresses, keys and the like",
    "optout": "leaves out what owners do not want to be trained on",
    "format": "puts files together to documents",
    "publish": "writes the corpus, its report and its index",
    "run": "does all of it",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.stack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in STAGES.items():
        stage = commands.add_parser(name, help=text, description=text)
        add_recipe_flags(stage)
        stage.add_argument("--folder", required=True, help="of the shards of all stages")
    _add_lookup(commands)
    _add_requests(commands)
    _add_verify(commands)
    args, overrides = parse(parser, argv)
    with one_line_errors("stack"), of_extra("stack"):
        if args.command in STAGES:
            _curate(args, overrides)
        elif overrides:
            raise ValueError(f"{args.command} takes no --gin overrides")
        else:
            {"lookup": _lookup, "requests": _requests, "verify": _verify}[args.command](args)


def _add_lookup(commands) -> None:
    text = "says what of a user, repository or file is in the corpus, and which steps saw it"
    lookup = commands.add_parser("lookup", help=text, description=text)
    lookup.add_argument("--folder", required=True, help="as given to run")
    for name, about in (
        ("owner", "user or organization"),
        ("repository", "owner/name"),
        ("path", "of a file in its repository"),
        ("swhid", "of a content, swh:1:cnt:..."),
    ):
        lookup.add_argument(f"--{name}", help=about)
    lookup.add_argument("--workdir", help="of a training run: says which of its steps saw it")


def _add_requests(commands) -> None:
    text = "makes a ledger of opt-out requests, and a list of what a person has to decide"
    requests = commands.add_parser("requests", help=text, description=text)
    requests.add_argument("source", nargs="+", help="JSON lines or JSON of issues")
    requests.add_argument("--ledger", required=True, help="to write")
    requests.add_argument("--questions", required=True, help="to write")


def _add_verify(commands) -> None:
    text = "looks for what is left of opt-outs in all that was written; exit status 1 if anything"
    verify = commands.add_parser("verify", help=text, description=text)
    verify.add_argument("--folder", required=True, help="as given to run")
    verify.add_argument("--ledger", required=True, action="append", help="several may be given")
    verify.add_argument("--store", action="append", default=[], help="a token store")


def _curate(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from starcoder_jax import gin_files
    from starcoder_jax.stack import pipeline
    from starcoder_jax.stack.config import StackRecipe
    from starcoder_jax.stack.runner.work import StepError

    recipe = gin_files.load(StackRecipe, args.gin_file, overrides)
    last = pipeline.STAGES[-1] if args.command == "run" else args.command
    try:
        pipeline.curate(recipe, args.folder, last)
    except StepError as error:
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        print(f"stack: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None
    if last == pipeline.STAGES[-1]:
        published = pathlib.Path(args.folder) / pipeline.PUBLISHED
        print(f"published {pipeline.summary(args.folder)}: see {published / 'report.html'}")


def _lookup(args: argparse.Namespace) -> None:
    from starcoder_jax.stack import lookup

    asked = {name: getattr(args, name) for name in ("owner", "repository", "path", "swhid")}
    found = lookup.find(pathlib.Path(args.folder) / "lookup", **asked).to_pylist()
    seen = {}
    if args.workdir:
        seen = lookup.training_steps(args.workdir, {row["document"] for row in found})
    for row in found:
        # A name may be of any characters, some of which tell a terminal what to do.
        name = f"{row['repository']}:{row['path']}".encode("unicode_escape").decode("ascii")
        print(f"{name}  {row['license'] or 'unknown'}  {row['component']}  {row['document']}")
        if args.workdir:
            rows = seen.get(row["document"])
            steps = "not in its data" if rows is None else f"in {len(rows)} rows of batches"
            places = "" if rows is None else " ".join(f"{step}:{place}" for step, place in rows)
            print(f"  {steps} {places}".rstrip())
    print(f"{len(found)} found", file=sys.stderr)


def _requests(args: argparse.Namespace) -> None:
    from starcoder_jax.stack.optout_requests import write_ledger

    entries, questions = write_ledger(args.source, args.ledger, args.questions)
    print(f"{entries} entries, {questions} questions for a person")


def _verify(args: argparse.Namespace) -> None:
    from starcoder_jax.stack.pipeline import PUBLISHED
    from starcoder_jax.stack.removal import verify_removed
    from starcoder_jax.stack.stages.optout import read_ledgers

    entries = read_ledgers(args.ledger)
    corpora = [pathlib.Path(args.folder) / PUBLISHED]
    left = verify_removed(entries, args.folder, stores=args.store, corpora=corpora)
    for remnant in left:
        where = "before the opt-out" if remnant.is_raw else "LEFT"
        name = remnant.name.encode("unicode_escape").decode("ascii") or "unknown"
        print(f"{where}: {remnant.count:,} {remnant.what} of {name} in {remnant.place}")
    if any(not remnant.is_raw for remnant in left):
        raise SystemExit(FAILED)
    print("nothing of the opt-outs is left in what is published or trained on")


if __name__ == "__main__":
    main()
