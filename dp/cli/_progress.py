"""Progress bars: of each run, with loss, accuracy and epsilon so far; of verifying."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dp.cli._training import Point, Shown


__all__ = ("progress_of", "recomputing")


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


@contextmanager
def recomputing(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how far epsilons were computed again; the bar goes when the context ends."""
    progress = Progress(
        TextColumn("composing releases"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("", total=1, visible=False)

    def update(composed: int, of_all: int) -> None:
        progress.update(task, completed=composed, total=of_all, visible=True)

    with progress:
        yield update
