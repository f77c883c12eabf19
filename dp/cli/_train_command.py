"""The commands ``train`` and ``predict``."""

from pathlib import Path
from typing import Annotated, Final

import typer

from dp.cli._errors import InputError
from dp.cli._options import (
    BUILT_IN,
    BatchSize,
    Categorical,
    Classes,
    Compare,
    Data,
    DataPath,
    DateFormat,
    Dates,
    DebugSeed,
    Decimal,
    Encoding,
    Epsilon,
    GroupSize,
    HoldOut,
    LearningRate,
    LeaveOut,
    Levels,
    MaxGradNorm,
    ModelKind,
    ModelPath,
    NoHeader,
    OptimizerName,
    Predictions,
    Ranges,
    Report,
    Sep,
    Target,
    TaskName,
    TrainingDelta,
    TrainingSteps,
    UnitColumn,
    check,
)


__all__ = ("predict_command", "train_command")

_LARGEST_HOLD_OUT: Final = 0.9


def train_command(
    *,
    data: Data = "mnist",
    target: Target = None,
    target_epsilon: Epsilon = 3.0,
    delta: TrainingDelta = None,
    task: TaskName = None,
    classes: Classes = None,
    unit_column: UnitColumn = None,
    ranges: Ranges = None,
    levels: Levels = None,
    categorical: Categorical = None,
    dates: Dates = None,
    date_format: DateFormat = None,
    leave_out: LeaveOut = None,
    hold_out: HoldOut = 0.2,
    sep: Sep = ",",
    decimal: Decimal = ".",
    encoding: Encoding = "utf-8",
    no_header: NoHeader = False,
    model: ModelKind = None,
    steps: TrainingSteps = None,
    batch_size: BatchSize = None,
    max_grad_norm: MaxGradNorm = 1.0,
    lr: LearningRate = None,
    optimizer: OptimizerName = "sgd",
    compare: Compare = False,
    group_size: GroupSize = 1,
    debug_seed: DebugSeed = None,
    report: Report = Path("report"),
) -> None:
    """Train a small model with privacy, and certify what it cost.

    Images get a small CNN; columns a linear model or one hidden layer, their scales and
    categories found by private statistics that the same epsilon pays for. A fifth of
    the rows is held out to measure a score; privacy covers the others. Under torchrun,
    all processes train together.
    """
    check(
        positive={
            "--epsilon": target_epsilon,
            "--max-grad-norm": max_grad_norm,
            "--batch-size": batch_size,
            "--lr": lr,
        },
        open_unit={"--delta": delta},
        count={"--steps": steps, "--group-size": group_size},
    )
    if not 0 <= hold_out <= _LARGEST_HOLD_OUT:
        raise InputError(
            f"--hold-out must be between 0 and {_LARGEST_HOLD_OUT}, got {hold_out}"
        )
    from dp.cli import _declared, _read, _tabular, _train  # noqa: PLC0415 -- torch
    from dp.tables import Parsing  # noqa: PLC0415 -- torch

    request = _train.Request(
        epsilon=target_epsilon,
        delta=delta,
        steps=steps,
        batch_size=batch_size,
        max_grad_norm=max_grad_norm,
        learning_rate=lr,
        optimizer=optimizer,
        model=model,
        compares=compare,
        group_size=group_size,
        debug_seed=debug_seed,
        report=report,
    )
    options = _tabular.CsvOptions(
        target=target,
        task=task,
        classes=classes or (),
        unit_column=unit_column,
        left_out=leave_out or (),
        hold_out=hold_out,
        declarations=_declared.Declarations(
            ranges=ranges,
            levels=levels,
            categorical=categorical or (),
            dates=dates or (),
        ),
        layout=_read.Layout(
            sep=sep,
            encoding=encoding,
            has_header=not no_header,
            parsing=Parsing(decimal=decimal, date_format=date_format),
        ),
    )
    if data not in BUILT_IN:
        _train.train_csv(Path(data), options, request)
        return
    if options != _tabular.CsvOptions(target=None):
        raise InputError(
            f"--target, and the other options that are for CSV files, cannot be used with"
            f" {data}, which needs none"
        )
    _train.train_built_in(data, request)


def predict_command(
    model: ModelPath,
    data: DataPath,
    *,
    out: Predictions = Path("predictions.csv"),
    sep: Annotated[
        str | None,
        typer.Option(help="The separator, if it is another.", metavar="CHARACTER"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="How text is encoded, if otherwise.", metavar="NAME"),
    ] = None,
    no_header: NoHeader = False,
) -> None:
    """Predict every row of a CSV file by a model that train left.

    The file is read as the one that the model was trained on, unless options say
    otherwise. Predictions are about its rows, and have no privacy of their own.
    """
    from dp.cli import _saved  # noqa: PLC0415 -- torch

    given = {
        "sep": sep,
        "encoding": encoding,
        "has_header": False if no_header else None,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    num_rows = _saved.predict(model, data, out, **changed)
    typer.echo(f"{num_rows} predictions are in {out}")
