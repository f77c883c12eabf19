"""The report of a run: a table on the screen, and a folder of files."""

from pathlib import Path
from typing import Final

from rich.table import Table as Grid

from dp.certificate import Certificate
from dp.cli._errors import InputError
from dp.cli._training import Run


__all__ = ("PICTURE", "open_folder", "summary", "write")

PICTURE: Final = "training.png"


def open_folder(folder: Path, file: str = PICTURE) -> None:
    """Create the report's folder, before anything is trained or spent.

    Raises:
        InputError: If it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    except OSError as error:
        raise InputError(
            f"--report {folder} cannot be written to: {error.strerror}"
        ) from error


def write(folder: Path, certificate: Certificate, private: Run, plain: Run) -> None:
    """Write the certificate and the picture into *folder*, over earlier ones."""
    certificate.write(folder)
    _draw(folder / PICTURE, private, plain)


def summary(certificate: Certificate, private: Run, plain: Run) -> Grid:
    """Return the table that compares both runs."""
    grid = Grid()
    for heading in ("", "test accuracy", "epsilon", "delta", "steps", "seconds"):
        grid.add_column(heading, justify="right" if heading else "left")
    grid.add_row(
        "private" if certificate.is_private else "NOT PRIVATE",
        f"{private.points[-1].accuracy:.3f}",
        f"{certificate.epsilon:.3f}",
        f"{certificate.delta:g}",
        str(certificate.steps),
        f"{private.seconds:.1f}",
    )
    last = plain.points[-1]
    grid.add_row(
        "not private",
        f"{last.accuracy:.3f}",
        "infinite",
        "",
        str(last.step),
        f"{plain.seconds:.1f}",
    )
    return grid


def _draw(path: Path, private: Run, plain: Run) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 -- half a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    accuracy = figure.subplots()
    for run, label, style in ((private, "private", "-"), (plain, "not private", ":")):
        accuracy.plot(
            [point.step for point in run.points],
            [point.accuracy for point in run.points],
            style,
            color="tab:blue",
            label=f"accuracy, {label}",
        )
    accuracy.set(xlabel="step", ylabel="accuracy on held-out rows", ylim=(0, 1))
    cost = accuracy.twinx()
    cost.plot(
        [point.step for point in private.points],
        [point.epsilon for point in private.points],
        color="tab:red",
        label="epsilon, if planned to stop here",
    )
    cost.set(ylabel="epsilon", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=150)
