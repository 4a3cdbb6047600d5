"""Tells on stderr how a preparation is going."""

import sys
from collections.abc import Iterator, Mapping

import rich.console
import rich.progress

from starcoder_jax.data.corpus import SourceCounts


class Progress:
    """A line for each finished stage and, on a terminal, a bar for the one under way."""

    def __init__(self):
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            console=rich.console.Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._stage = self._bar.add_task("", visible=False)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        """Prints a line."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def reading(self, task: str, read: int) -> None:
        """Shows that so many texts of a source were read."""
        self._show(f"reading {task}", completed=read)

    def tokenizing(self, task: str, total: int, documents: Iterator) -> Iterator:
        """Passes documents on, of a task that has `total`, and shows how many there were."""
        self._show(f"tokenizing {task}", total=total)
        for document in documents:
            self._bar.advance(self._stage)
            yield document

    def sources(self, counts: Mapping[str, SourceCounts]) -> None:
        """Prints what became of the texts of each source."""
        for task, count in counts.items():
            self.message(
                f"{task}: {count.documents:,} of {count.read:,} texts kept, "
                f"{count.bytes / 1e6:,.1f} MB"
            )
            for heading, numbers in (("dropped", count.dropped), ("license", count.licenses)):
                for name, number in numbers.most_common():
                    self.message(f"  {heading:<7} {number:>11,}  {name}")
                    heading = ""

    def _show(self, description: str, *, total: int | None = None, completed: int = 0) -> None:
        self._bar.update(
            self._stage, description=description, total=total, completed=completed, visible=True
        )
