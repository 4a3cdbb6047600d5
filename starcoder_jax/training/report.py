"""The report of a run: one self-contained HTML page, in WORKDIR, that is rewritten as it goes."""

import dataclasses
import datetime
import math
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from html import escape

from starcoder_jax.files import replace_file
from starcoder_jax.pages import STYLE, format_number
from starcoder_jax.training.goodput import Cause, read_account
from starcoder_jax.training.metrics import read_metrics
from starcoder_jax.training.report_charts import line_chart, stacked_bar

REPORT_FILE = "report.html"

# The metrics that have a chart, in this order; after them comes every metric named eval/….
_CHARTS = {
    "loss": "Training loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
    "mfu": "Model FLOPs utilisation (MFU)",
    "host_memory_bytes": "Host memory, bytes",
    "device_memory_peak_bytes": "Device memory at its peak, bytes",
}

# Lines shown before and after an infilled middle.
_CONTEXT_LINES = 12


@dataclasses.dataclass(frozen=True)
class HeldOutFile:
    """What it takes to write down one file that the model was not trained on.

    `path` is the name to show, `num_bytes` at least 1; `model_bits` is minus log2 of the
    probability the model gives to the file, `xz_bits` the size in bits `xz -9e` makes of it.
    """

    path: str
    num_bytes: int
    model_bits: float
    xz_bits: float

    def __post_init__(self):
        if self.num_bytes < 1 or self.xz_bits <= 0:
            raise ValueError(f"held-out file {self.path} is empty; leave it out of the report")

    @property
    def model_bits_per_byte(self) -> float:
        """Bits the model spends on a byte."""
        return self.model_bits / self.num_bytes

    @property
    def xz_bits_per_byte(self) -> float:
        """Bits xz spends on a byte."""
        return self.xz_bits / self.num_bytes

    @property
    def gain(self) -> float:
        """The share of xz's bits that the model saves; negative where it spends more."""
        return 1 - self.model_bits / self.xz_bits


@dataclasses.dataclass(frozen=True)
class InfillSample:
    """A held-out file whose `middle` was taken out, and the `completion` the model wrote there."""

    path: str
    prefix: str
    middle: str
    suffix: str
    completion: str


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str,
    config_text: str,
    sample: InfillSample | None,
    heldout: Sequence[HeldOutFile],
    next_command: str | None,
) -> None:
    """Writes `WORKDIR/report.html` from the metrics and the journal in `WORKDIR` and from these.

    The page needs no network and no JavaScript. A reader never sees half of it.

    Args:
      workdir: the run's directory, which exists.
      title: the heading.
      config_text: the configuration the run uses, as it is.
      sample: None leaves the section out.
      heldout: an empty sequence leaves the section out.
      next_command: a command line to try now; None leaves the section out.

    Raises:
      ValueError: metrics.jsonl is damaged.
      OSError: naming the file; an earlier report stays as it was.
    """
    records, account = read_metrics(workdir), read_account(workdir)
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    config = f"<details><summary>config.gin</summary>{_code(escape(config_text))}</details>"
    command = _code(escape(next_command), "command") if next_command else ""
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="quiet">as of {written}</p></header>'
        + _key_figures(records, heldout, account)
        + _section("Curves", _curves(records))
        + _section("Where the time went", _times(account) if account else "")
        + _section("Held-out files", _heldout_table(heldout) if heldout else "")
        + _section("Infilling", _infilling(sample) if sample else "")
        + _section("Configuration", config)
        + _section("Try next", command)
        + "</body></html>\n"
    )
    # Paths and generated text may hold code points that UTF-8 has no bytes for.
    replace_file(pathlib.Path(workdir) / REPORT_FILE, page.encode("utf-8", "replace"))


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{heading}</h2>{body}</section>" if body else ""


def _code(body: str, kind: str = "code") -> str:
    # HTML drops a newline right after <pre>; this one is dropped in place of the text's own.
    return f'<pre class="{kind}">\n{body}</pre>'


def _series(records: Sequence[Mapping], name: str) -> list[tuple[int, float]]:
    return [
        (record["step"], record[name])
        for record in records
        if isinstance(record.get(name), numbers.Real)
    ]


def _total(heldout: Sequence[HeldOutFile]) -> HeldOutFile:
    """All files as one: sums of bits over sums of bytes."""
    return HeldOutFile(
        path=f"{len(heldout):,} files" if len(heldout) > 1 else "1 file",
        num_bytes=sum(file.num_bytes for file in heldout),
        model_bits=math.fsum(file.model_bits for file in heldout),
        xz_bits=math.fsum(file.xz_bits for file in heldout),
    )


def _verdict(total: HeldOutFile) -> str:
    """The model beside xz in a few words."""
    share, xz = f"{abs(total.gain):.0%}", f"xz -9e ({total.xz_bits_per_byte:.3f})"
    if not math.isfinite(total.gain):
        return f"not finite: the model has diverged; {xz}"
    if share == "0%":
        return f"level with {xz}"
    return f"{share} {'fewer' if total.gain > 0 else 'more'} than {xz}"


def _key_figures(
    records: Sequence[Mapping], heldout: Sequence[HeldOutFile], account: Mapping[Cause, float]
) -> str:
    figures = []
    if records:
        figures.append(("Step", f"{records[-1]['step']:,}", ""))
    if tokens := _series(records, "tokens"):
        figures.append(("Tokens seen", format_number(tokens[-1][1]), ""))
    if losses := _series(records, "loss"):
        figures.append(("Training loss", format_number(losses[-1][1]), "nats a token"))
    if heldout:
        total = _total(heldout)
        value = f"{total.model_bits_per_byte:.3f}"
        figures.append(("Held-out bits per byte", value, _verdict(total)))
    if utilisation := _series(records, "mfu"):
        figures.append(("MFU", f"{utilisation[-1][1]:.1%}", "of peak bfloat16 FLOP/s"))
    if account:
        goodput = account[Cause.TRAINING] / sum(account.values())
        figures.append(("Goodput", f"{goodput:.1%}", "of the time trained the model"))
    cards = "".join(
        f'<div class="card"><span class="quiet">{label}</span><b>{value}</b>'
        f'<span class="quiet">{note}</span></div>'
        for label, value, note in figures
    )
    empty = "" if records else '<p class="quiet">No step has been logged yet.</p>'
    return f'{empty}<section class="figures">{cards}</section>'


def _curves(records: Sequence[Mapping]) -> str:
    evals = dict.fromkeys(name for record in records for name in record if name.startswith("eval/"))
    charts = [
        line_chart(label, points, records[-1]["step"])
        for name, label in (_CHARTS | {name: name for name in evals}).items()
        if (points := _series(records, name))
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _times(account: Mapping[Cause, float]) -> str:
    return stacked_bar("From the first start to the last logged step", list(account.items()))


def _heldout_table(heldout: Sequence[HeldOutFile]) -> str:
    def row(file: HeldOutFile) -> str:
        side = "better" if file.gain > 0 else "worse"
        gain = f"{file.gain:+.1%}" if math.isfinite(file.gain) else "not finite"
        return (
            f"<tr><td>{escape(file.path)}</td><td>{file.num_bytes:,}</td>"
            f"<td>{file.model_bits_per_byte:.3f}</td><td>{file.xz_bits_per_byte:.3f}</td>"
            f'<td class="{side}">{gain}</td></tr>'
        )

    # A NaN compares with nothing: such files go last.
    ordered = sorted(heldout, key=lambda file: (math.isnan(file.gain), -file.gain, file.path))
    return (
        "<p>Bits per byte, file by file: what it takes the model to write down code it was not "
        "trained on, beside <code>xz -9e</code>. Fewer is better; the gain is the share of xz's "
        'bits that the model saves.</p><div class="table card"><table><thead><tr><th>File</th>'
        "<th>Bytes</th><th>Model</th><th>xz -9e</th><th>Gain</th></tr></thead>"
        f"<tbody>{''.join(map(row, ordered))}</tbody><tfoot>{row(_total(heldout))}</tfoot>"
        "</table></div>"
    )


def _infilling(sample: InfillSample) -> str:
    before, after = sample.prefix.split("\n"), sample.suffix.split("\n")
    above, below = max(len(before) - _CONTEXT_LINES, 0), max(len(after) - _CONTEXT_LINES, 0)
    code = _code(
        (f"<i>… {above:,} lines above …</i>\n" if above else "")
        + escape("\n".join(before[above:]))
        + f"<mark>{escape(sample.completion)}</mark>"
        + escape("\n".join(after[:_CONTEXT_LINES]))
        + (f"\n<i>… {below:,} lines below …</i>" if below else "")
    )
    if sample.completion == sample.middle:
        outcome = "<p>This is what was there, to the letter.</p>"
    else:
        nothing = "" if sample.completion else "The model wrote nothing. "
        outcome = f"<p>{nothing}What was there:</p>{_code(escape(sample.middle))}"
    return (
        f"<p><code>{escape(sample.path)}</code> is held out. Its middle was taken away; the marked "
        f"text is what the model put there.</p>{code}{outcome}"
    )
