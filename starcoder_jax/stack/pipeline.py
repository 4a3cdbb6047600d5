"""All stages of a curation, in order: from sources to a published corpus with its report."""

import os
import pathlib

from starcoder_jax.data.published import components
from starcoder_jax.gin_files import recipe_text
from starcoder_jax.stack import accounting, lookup
from starcoder_jax.stack.config import StackRecipe
from starcoder_jax.stack.datacard import write_card
from starcoder_jax.stack.report import write_report
from starcoder_jax.stack.runner.run import run
from starcoder_jax.stack.runner.shards import Store
from starcoder_jax.stack.runner.steps import Step
from starcoder_jax.stack.stages import (
    collect,
    decontaminate,
    dedup,
    filter,
    format,
    identify,
    optout,
    publish,
    redact,
    render,
)

STAGES = accounting.STAGES
PUBLISHED = "published"  # folder of the corpus, beside those of the steps


def steps(recipe: StackRecipe) -> dict[str, list[Step]]:
    """The steps of each stage, in order.

    Raises:
        ValueError: a source or another file that the recipe names is not as it should be.
    """
    return {
        "collect": collect.steps(recipe.collect),
        "identify": identify.steps(recipe.identify, "collect"),
        "render": render.steps(recipe.render, "identify"),
        "filter": filter.steps(recipe.filter, "render"),
        "dedup": dedup.steps(recipe.dedup, "filter", recipe.collect.shards),
        "decontaminate": decontaminate.steps(recipe.decontaminate, "dedup"),
        "redact": redact.steps(recipe.redact, "decontaminate"),
        "optout": optout.steps(recipe.optout, "redact"),
        "format": format.steps(recipe.format, "optout"),
        "publish": publish.steps(recipe.publish, "format"),
    }


def curate(recipe: StackRecipe, folder: str, last: str = STAGES[-1]) -> None:
    """Runs the stages up to and including `last`; what was done before is not done again.

    After "publish", the corpus lies in `published` in the folder, with `report.html`, `report.json`
    and a data card.

    Args:
        recipe: what the corpus is.
        folder: of the steps' shards; the engine "beam" takes URIs as well.
        last: one of `STAGES`.

    Raises:
        ValueError: what the recipe names is not there, or "publish" is to write to a URI.
        StepError: a step failed.
    """
    by_stage = steps(recipe)
    chosen = STAGES[: STAGES.index(last) + 1]
    todo = [step for stage in chosen for step in by_stage[stage]]
    if last != STAGES[-1]:
        run(todo, folder, recipe.runner)
        return
    todo += accounting.steps(STAGES)
    todo += lookup.index_steps("publish", recipe.publish.shards)
    results = run(todo, folder, recipe.runner)
    if "://" in folder:
        raise ValueError(
            f"all steps are done in {folder}; copy it to this machine, and run publish there"
        )
    workers = recipe.runner.workers or os.cpu_count() or 1
    target = pathlib.Path(folder) / PUBLISHED
    publish.write(results["publish"], results["publish.components"], target, workers)
    report(recipe, folder, [step.name for step in todo])


def report(recipe: StackRecipe, folder: str, names: list[str]) -> None:
    """Writes the report and the data card beside the published corpus."""
    target = pathlib.Path(folder) / PUBLISHED
    books = accounting.account(
        Store(str(pathlib.Path(folder).absolute())),
        names,
        configuration=recipe_text(recipe, without=("runner",)),
        opted_out=optout.read_ledgers(recipe.optout.ledgers),
    )
    title = pathlib.Path(folder).absolute().name
    write_report(books, target, title)
    write_card(books, target, title)


def summary(folder: str) -> str:
    """What was published, in a line."""
    parts = components(pathlib.Path(folder) / PUBLISHED).values()
    size = sum(part.bytes for part in parts)
    documents = sum(part.documents for part in parts)
    return f"{documents:,} documents, {size / 1e6:,.1f} MB, in {len(parts)} components"
