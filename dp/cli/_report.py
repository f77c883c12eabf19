"""The report of a run: a table on the screen, and a folder of files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table as Grid

from dp._reports import bound
from dp.certificate import Certificate, Scores
from dp.cli._errors import InputError
from dp.cli._input import Table
from dp.cli._problem import Classification, Verdict
from dp.cli._training import Run


__all__ = ("PICTURE", "SCORES", "open_folder", "show", "write")

PICTURE: Final = "training.png"
SCORES: Final = "scores.json"


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


def write(
    folder: Path,
    table: Table,
    certificate: Certificate,
    private: Run,
    plain: Run | None,
    *,
    target_epsilon: float,
) -> None:
    """Write the certificate, the scores and the picture, over earlier ones."""
    along = _along(table, private, plain)
    certificate.write(folder, scores=along, target_epsilon=target_epsilon)
    scores = {
        "score": table.problem.score_name,
        "held_out_rows": _held_out(table),
        "private": _as_dict(table, private),
        "not_private": None if plain is None else _as_dict(table, plain),
    }
    text = json.dumps(scores, indent=2)
    (folder / SCORES).write_text(text + "\n", encoding="utf-8")
    _draw(folder / PICTURE, table, private, plain, target_epsilon=target_epsilon)


def _along(table: Table, private: Run, plain: Run | None) -> Scores | None:
    """Return the scores of the run, for the page; None if no rows were held out."""
    if table.test is None:
        return None
    verdict = _verdict(table, private)
    others = () if plain is None else plain.points
    return Scores(
        name=table.problem.score_name,
        data=table.name,
        steps=tuple(point.step for point in private.points),
        values=tuple(point.score for point in private.points),
        without_privacy=tuple((point.step, point.score) for point in others),
        verdict=f"On {_held_out(table)} held-out rows: {verdict.sentence}",
        is_good=verdict.is_better,
        highest=1.0 if isinstance(table.problem, Classification) else None,
    )


def _as_dict(table: Table, run: Run) -> dict[str, Any]:
    if table.test is None:
        return {"seconds": run.seconds}
    return {**asdict(_verdict(table, run)), "seconds": run.seconds}


def show(
    console: Console,
    table: Table,
    certificate: Certificate,
    private: Run,
    plain: Run | None,
) -> None:
    """Say what came of the training: first, whether the model is worth anything."""
    if table.test is None:
        console.print("No rows were held out, so no score was measured.")
    else:
        _tell(console, table, certificate, _verdict(table, private))
        if plain is not None:
            _tell_of_twin(console, _verdict(table, plain))
    console.print(_summary(table, certificate, private, plain))


@torch.no_grad()
def _verdict(table: Table, run: Run) -> Verdict:
    assert table.test is not None  # noqa: S101 -- asked by its callers
    x, y_N = table.test.tensors
    return table.problem.verdict(run.model(x), y_N)


def _tell(
    console: Console, table: Table, certificate: Certificate, verdict: Verdict
) -> None:
    if verdict.is_better:
        console.print(f"On {_held_out(table)} held-out rows: {verdict.sentence}.")
        return
    what = (
        "always naming the commonest class"
        if isinstance(table.problem, Classification)
        else "always naming the mean"
    )
    console.print(
        f"WARNING: the private model is no better than {what}, on {_held_out(table)}"
        f" held-out rows: {verdict.sentence}. At epsilon {bound(certificate.epsilon, 3)},"
        f" {table.num_units} rows are too few for {table.row_shape[0]} features, or the"
        " features say nothing. Remedies: more rows, fewer columns (--leave-out), public"
        " --ranges and --levels, or a larger --epsilon; --compare shows what a model"
        " without privacy reaches.",
        style="bold red",
    )


def _tell_of_twin(console: Console, verdict: Verdict) -> None:
    if not verdict.is_better:
        console.print(
            "The model without privacy is no better either, so that the data or their"
            f" scaling are at fault, and not the noise: {verdict.sentence}.",
            style="bold red",
        )


def _held_out(table: Table) -> int:
    return 0 if table.test is None else len(table.test)


def _summary(
    table: Table, certificate: Certificate, private: Run, plain: Run | None
) -> Grid:
    """Return the table that shows the run, and compares it with one without privacy."""
    grid = Grid()
    score = f"test {table.problem.score_name}"
    for heading in ("", score, "epsilon", "delta", "steps", "seconds"):
        grid.add_column(heading, justify="right" if heading else "left")
    name = "private" if certificate.is_private else "NOT PRIVATE"
    rows = [(name, private, bound(certificate.epsilon, 3), f"{certificate.delta:g}")]
    if plain is not None:
        rows.append(("not private", plain, "infinite", ""))
    for heading, run, epsilon, delta in rows:
        last = run.points[-1]
        shown = "" if table.test is None else f"{last.score:#.4g}"
        seconds = f"{run.seconds:.1f}"
        grid.add_row(heading, shown, epsilon, delta, str(last.step), seconds)
    return grid


def _draw(
    path: Path,
    table: Table,
    private: Run,
    plain: Run | None,
    *,
    target_epsilon: float,
) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 -- half a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [point.step for point in private.points]
    if table.test is not None:
        name = table.problem.score_name
        axes.set(ylabel=f"{name} on held-out rows")
        if isinstance(table.problem, Classification):
            axes.set(ylim=(0, 1))
        for run, label, style in (
            (private, "private", "-"),
            *([(plain, "not private", ":")] if plain is not None else []),
        ):
            axes.plot(
                [point.step for point in run.points],
                [point.score for point in run.points],
                style,
                color="tab:blue",
                label=f"{name}, {label}",
            )
    axes.set(xlabel="step", title=f"Training on {table.name}")
    cost = axes.twinx()
    cost.plot(
        steps,
        [point.epsilon for point in private.points],
        color="tab:red",
        label="epsilon, if planned to stop here",
    )
    cost.axhline(
        target_epsilon, color="tab:red", ls=":", label=f"target {target_epsilon:g}"
    )
    cost.set(ylabel="epsilon", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=150)
