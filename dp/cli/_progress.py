"""A progress bar for each run: loss, accuracy and epsilon so far, time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dp.cli._training import Point, Shown


__all__ = ("progress_of",)


@contextmanager
def progress_of(console: Console, num_steps: int) -> Iterator[Callable[[str], Shown]]:
    """Show progress while the context lasts; call with a name to begin a bar."""
    progress = Progress(
        TextColumn("{task.description:11}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}{task.fields[figures]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=console,
    )

    def show(name: str) -> Shown:
        task = progress.add_task(name, total=num_steps, figures="")

        def update(taken: int, point: Point) -> None:
            cost = f"  eps {point.epsilon:.2f}" if point.epsilon < float("inf") else ""
            figures = f"  loss {point.loss:.3f}  acc {point.accuracy:.3f}{cost}"
            progress.update(task, completed=taken, figures=figures)

        return update

    with progress:
        yield show
