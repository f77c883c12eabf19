"""A progress bar for audits, or none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


__all__ = ("Bar", "bar_of")


@final
class Bar:
    """Shows how many steps of a run are done; shows nothing if it has no progress."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, name: str) -> "Bar":
        """Begin the bar of another run; return self."""
        if self._progress is not None:
            self._task = self._progress.add_task(name, total=None)
        return self

    def show(self, done: int, total: int) -> None:
        """Show that *done* of *total* steps are done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)


@contextmanager
def bar_of(*, shown: bool) -> Iterator[Bar]:
    """Show progress while the context lasts, if *shown*."""
    if not shown:
        yield Bar(None)
        return
    with Progress(
        TextColumn("{task.description:24}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f} steps"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    ) as progress:
        yield Bar(progress)
