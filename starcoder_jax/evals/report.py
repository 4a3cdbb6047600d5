"""The page about an evaluation: one HTML file that needs nothing else."""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from html import escape

from starcoder_jax.evals.scoring import Scored
from starcoder_jax.files import replace_file
from starcoder_jax.pages import STYLE

# Failures of a kind that are shown in full.
_SHOWN = 50

_KINDS = {
    "failed": "an assertion of the tests failed",
    "exception": "an error that nothing caught",
    "syntax": "the program does not parse or compile",
    "timeout": "the program did not end in time",
    "memory": "the program took more memory than it may",
    "output": "the program wrote more than it may",
    "exited": "the program ended before its tests did",
    "killed": "the program ended by a signal",
    "different": "not what was there",
}

_MORE_STYLE = """
details.card { padding: .5rem 1rem; margin: .5rem 0; }
details h4 { margin: .8rem 0 0; font-weight: 600; font-size: .875rem; }
table { width: auto; }
"""


def write_report(
    path: pathlib.Path, record: Mapping[str, object], scored: Sequence[Scored]
) -> None:
    """Writes the page: figures, failures by kind, and how the figures came about.

    Args:
        path: of the page.
        record: the result, but for its samples.
        scored: what the result is about; empty if nothing was run or compared.

    Raises:
        OSError: naming the file.
    """
    title = f"{record['task']}: {_subject(record)}"
    about = json.dumps({k: v for k, v in record.items() if k != "samples"}, indent=2)
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_MORE_STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="quiet">{escape(str(record["date"]))}</p>'
        f"</header>{_figures(record)}{_skipped(record)}{_kinds(scored)}{_failures(scored)}"
        f"<section><h2>How this was measured</h2>{_pre(about)}</section></body></html>\n"
    )
    # Generated text may hold code points that UTF-8 has no bytes for.
    replace_file(path, page.encode("utf-8", "replace"))


def _subject(record: Mapping[str, object]) -> str:
    source = record["source"]
    return str(source.get("checkpoint") or source.get("samples") or f"{source['solutions']} code")


def _figures(record: Mapping[str, object]) -> str:
    metrics = record["metrics"]
    cards = []
    for name, value in metrics.items():
        if name.endswith("_stderr"):
            continue
        error = metrics.get(f"{name}_stderr")
        note = "" if error is None else f"± {error:.4f} (standard error over problems)"
        cards.append(
            f'<div class="card"><span class="quiet">{escape(name)}</span><b>{value:.4f}</b>'
            f'<span class="quiet">{note}</span></div>'
        )
    return f'<section class="figures">{"".join(cards)}</section>'


def _skipped(record: Mapping[str, object]) -> str:
    return "".join(
        f'<p class="warning">{escape(language)} was skipped: {escape(reason)}</p>'
        for language, reason in record.get("skipped", {}).items()
    )


def _kinds(scored: Sequence[Scored]) -> str:
    if not scored:
        return ""
    counts = collections.Counter(item.outcome.reason for item in scored)
    rows = "".join(
        f"<tr><td>{escape(reason)}</td><td>{count:,}</td><td>{count / len(scored):.1%}</td></tr>"
        for reason, count in counts.most_common()
    )
    return (
        "<section><h2>Samples by outcome</h2>"
        '<div class="table card"><table><thead><tr><th>Outcome</th><th>Samples</th><th>Share</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _failures(scored: Sequence[Scored]) -> str:
    by_kind = collections.defaultdict(list)
    for item in scored:
        if not item.outcome.passed:
            by_kind[item.outcome.reason].append(item)
    sections = []
    for kind, items in sorted(by_kind.items(), key=lambda entry: -len(entry[1])):
        more = len(items) - _SHOWN
        note = f'<p class="quiet">and {more:,} more, named in the result file</p>'
        sections.append(
            f"<h3>{escape(kind)} ({len(items):,})</h3>"
            f'<p class="quiet">{escape(_KINDS.get(kind, ""))}</p>'
            + "".join(map(_failure, items[:_SHOWN]))
            + (note if more > 0 else "")
        )
    return f"<section><h2>Failures by kind</h2>{''.join(sections)}</section>" if sections else ""


def _failure(item: Scored) -> str:
    problem, sample = item.problem, item.sample
    parts = [("Prompt", problem.prompt)]
    if problem.suffix is not None:
        parts.append(("Text after the gap", problem.suffix))
    if "first_answer" in sample.about:
        parts.append(("First answer", str(sample.about["first_answer"])))
    parts.append(("Solution" if sample.is_solution else "Completion", sample.text))
    if item.outcome.detail:
        parts.append(("What happened", item.outcome.detail))
    body = "".join(f"<h4>{name}</h4>{_pre(text)}" for name, text in parts)
    name = f"{problem.task_id}, sample {sample.index}"
    return f'<details class="card"><summary>{escape(name)}</summary>{body}</details>'


def _pre(text: str) -> str:
    # HTML drops a newline right after <pre>; this one is dropped in place of the text's own.
    return f"<pre>\n{escape(text)}</pre>"
