"""`render`: events, notebooks and pages become texts with special tokens."""

import collections
import functools
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack import record
from starcoder_jax.stack.record import Output
from starcoder_jax.stack.runner.steps import Map, Step
from starcoder_jax.stack.stages.render import events as github
from starcoder_jax.stack.stages.render.commits import render_commit
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.ir import render_ir
from starcoder_jax.stack.stages.render.issues import render_issue
from starcoder_jax.stack.stages.render.kaggle import render_kaggle
from starcoder_jax.stack.stages.render.notebooks import render_script, render_structured
from starcoder_jax.stack.stages.render.pages import render_page
from starcoder_jax.stack.stages.render.pull_requests import render_pull_request
from starcoder_jax.stack.stages.render.questions import render_question
from starcoder_jax.stack.stages.render.result import RejectedError, Rendered

_NOTEBOOK = "Jupyter Notebook"
_KINDS = (
    *("event", "commit_event", "question_event", "kaggle_event", "ir_event", "page"),
    _NOTEBOOK,
)
# Of the row it is made from, what a text keeps: those of one content keep what names it.
_OF_REPOSITORY = (
    *("repository", "stars", "forks", "declared_licenses", "detected_licenses", "license_type"),
)
_OF_CONTENT = ("path", "revision", "directory", "swhid", "timestamp", "language")
_ORDER = [(name, "ascending") for name in ("repository", "path", "revision", "swhid", "kind")]


class _Results:
    """What becomes of the rows that are rendered."""

    def __init__(self, rows: Sequence[Mapping]):
        self._rows = rows
        self.made: list[dict] = []
        self.reasons: dict[int, str] = {}
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, members: Sequence[int], render: Callable[[], Rendered]) -> str | None:
        """Makes one text of these rows, or says why each of them is dropped."""
        try:
            result = render()
        except RejectedError as error:
            self.reasons.update(dict.fromkeys(members, str(error)))
            return str(error)
        first = self._rows[members[0]]
        names = _OF_REPOSITORY + (_OF_CONTENT if len(members) == 1 and not result.path else ())
        row = {name: first[name] for name in (*names, "path")}
        row["kind"] = result.kind
        row["path"] = result.path or first["path"]
        row["content"], row["marks"] = result.encoded()
        if result.authors:
            row["details"] = json.dumps({"authors": list(result.authors)})
        self.made.append(row)
        self.reasons.update({n: why for n, why in result.unused.items() if n >= 0})
        self.counts[f"texts of kind {result.kind}"] += 1
        return None


def steps(config: RenderConfig, source: str) -> list[Step]:
    """One step, "render", for shards that hold whole repositories.

    Args:
        config: formats and thresholds.
        source: the step whose rows are rendered: files stay what they are, but for notebooks.
    """
    return [Map("render", (source,), functools.partial(_render, config=config))]


def _render(table: pa.Table, config: RenderConfig) -> Output:
    kinds = table["kind"].to_numpy(zero_copy_only=False)
    is_notebook = pc.and_(
        pc.equal(table["kind"], "file"), pc.fill_null(pc.equal(table["language"], _NOTEBOOK), False)
    )
    kinds = np.where(is_notebook.to_numpy(zero_copy_only=False), _NOTEBOOK, kinds)
    indices = np.flatnonzero(np.isin(kinds, _KINDS))
    kept = table.filter(pa.array(~np.isin(kinds, _KINDS)))
    if not len(indices):
        return Output(kept, record.select(kept, [None] * len(kept)).drops)
    chosen = table.take(pa.array(indices))
    rows = chosen.to_pylist()
    members: dict[str, list[int]] = {kind: [] for kind in _KINDS}
    for row, index in enumerate(indices):
        members[kinds[index]].append(row)
    results = _Results(rows)
    _render_events(rows, members["event"], results, config)
    _render_commits(rows, members["commit_event"], results, config)
    for row in members[_NOTEBOOK]:
        _render_notebook(rows, row, results, config)
    for row in members["kaggle_event"]:
        results.add([row], functools.partial(render_kaggle, rows[row]["content"], config))
    for row in members["page"]:
        content, path = rows[row]["content"], rows[row]["path"] or ""
        results.add([row], functools.partial(render_page, content, path, config))
    for (repository,), its in _groups(rows, members["question_event"], "repository").items():
        contents = [rows[row]["content"] for row in its]
        results.add(its, functools.partial(render_question, contents, repository, config))
    for names, its in _groups(rows, members["ir_event"], "repository", "path").items():
        contents = [rows[row]["content"] for row in its]
        results.add(its, functools.partial(render_ir, contents, its, names, config))
    whole = pa.concat_tables([kept, record.records(results.made)])
    whole = whole.take(pc.sort_indices(whole, sort_keys=_ORDER))
    results.counts["rows rendered"] = len(rows) - len(results.reasons)
    drops = record.select(chosen, [results.reasons.get(row) for row in range(len(rows))]).drops
    return Output(whole, drops, dict(results.counts))


def _groups(rows: Sequence[Mapping], members: Sequence[int], *names: str) -> dict:
    groups: dict[tuple, list[int]] = {}
    for row in members:
        groups.setdefault(tuple(rows[row][name] or "" for name in names), []).append(row)
    return groups


def _render_events(
    rows: Sequence[Mapping], members: Sequence[int], results: _Results, config: RenderConfig
) -> None:
    groups: dict[tuple[str, int], list[github.Event]] = {}
    for row in members:
        try:
            event = github.parsed(rows[row]["content"], row)
        except RejectedError as error:
            results.reasons[row] = str(error)
            continue
        groups.setdefault((rows[row]["repository"] or "", event.number), []).append(event)
    pull_requests = [key for key, its in groups.items() if _is_pull_request(its)]
    numbers = collections.Counter(repository for repository, _ in pull_requests)
    for key, its in groups.items():
        repository, _ = key
        if _is_pull_request(its):
            render = functools.partial(
                render_pull_request, its, repository, numbers[repository], config
            )
        else:
            render = functools.partial(render_issue, its, config)
        results.add([event.row for event in its], render)


def _is_pull_request(events: Sequence[github.Event]) -> bool:
    return any(event.in_pull_request for event in events)


def _render_commits(
    rows: Sequence[Mapping], members: Sequence[int], results: _Results, config: RenderConfig
) -> None:
    """One commit a file: the first that is kept, in the order of their SHA-1."""
    seen = set()
    for row in members:
        repository, path = rows[row]["repository"] or "", rows[row]["path"] or ""
        # commit/SHA-1/path
        file = (repository, path.split("/", 2)[-1])
        if file in seen:
            results.reasons[row] = "another commit of the file"
            continue
        render = functools.partial(render_commit, rows[row]["content"], repository, config)
        if results.add([row], render) is None:
            seen.add(file)


def _render_notebook(
    rows: Sequence[Mapping], row: int, results: _Results, config: RenderConfig
) -> None:
    """Both a script and a sequence of cells; the row is dropped only if it becomes neither."""
    content = rows[row]["content"]
    made = len(results.made)
    for render in (render_script, render_structured):
        results.add([row], functools.partial(render, content, config))
    if len(results.made) > made:
        results.reasons.pop(row, None)
