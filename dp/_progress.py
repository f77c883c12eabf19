"""Progress bars in one style, for audits and the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final


if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ("Bar", "Bars", "progress_bars")


@final
class Bar:
    """One bar, invisible until it first shows something."""

    def __init__(self, progress: "Progress | None" = None, name: str = "") -> None:
        self._progress = progress
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task(name, total=1, visible=False, figures="")

    def show(self, done: int, total: int, figures: str = "") -> None:
        """Show that *done* of *total* steps are done, and *figures* beside them."""
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, completed=done, total=total, figures=figures, visible=True
            )


@final
class Bars:
    """Bars below each other, one for each part of the work."""

    def __init__(self, progress: "Progress | None" = None) -> None:
        self._progress = progress

    def begin(self, name: str) -> Bar:
        """Return the bar of the next part."""
        return Bar(self._progress, name)


@contextmanager
def progress_bars(
    *, shown: bool = True, console: "Console | None" = None, transient: bool = False
) -> Iterator[Bars]:
    """Show progress bars until the context ends, if *shown*.

    Args:
        shown: Whether to show anything.
        console: Where to show it; standard output if None.
        transient: Whether the bars vanish in the end.
    """
    if not shown:
        yield Bars()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}{task.fields[figures]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=transient,
    ) as progress:
        yield Bars(progress)
