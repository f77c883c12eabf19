"""A user's CSV as a table to train on.

Three facts of the rows are taken for public, and the certificate says so: how many
units there are, the kind of task, and the set of classes. Everything else that is
learnt of the rows that are trained on is a private statistic, or a function of one row.

Shapes: ``N`` rows.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from torch.utils.data import TensorDataset

from dp._typing import Task
from dp.cli._declared import Declarations, columns_of, declared_columns
from dp.cli._errors import InputError
from dp.cli._input import Table, shuffled
from dp.cli._problem import Classification, Problem, Regression
from dp.cli._read import CsvFile, Layout, one_of, read_csv
from dp.tables import (
    Declared,
    Fitted,
    ScaledTarget,
    Shape,
    Shares,
    Statistics,
    Values,
    fit_encoder,
)
from dp.tables._values import Floats, Integers


__all__ = ("CsvOptions", "CsvTable", "open_csv")

_FEWEST_UNITS: Final = 20
_MOST_CLASSES: Final = 20  # Of numbers, if the task is not stated.
_LARGEST_SHARE_OF_CLASSES: Final = 0.5
_FEWEST_CLASSES: Final = 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
    """The options of ``train`` about a CSV file.

    Attributes:
        target: The column to predict.
        task: What kind of prediction; None decides by the column.
        classes: The classes; None for those that occur.
        unit_column: The column that says whose a row is; None if each is a unit.
        left_out: Columns to leave out.
        hold_out: The share of units that are held out.
        declarations: What columns hold.
        layout: How the file is written.
    """

    target: str | None
    task: Task | None = None
    classes: Sequence[str] = ()
    unit_column: str | None = None
    left_out: Sequence[str] = ()
    hold_out: float = 0.2
    declarations: Declarations = field(default_factory=Declarations)
    layout: Layout = field(default_factory=Layout)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CsvTable:
    """A CSV file that was read, before anything is learnt of its columns.

    Attributes:
        name: What it is called in reports.
        unit: What one unit of privacy is, for the certificate.
        columns: The features, by name.
        declared: What is declared of each, and of the target of a regression.
        target: The column to predict.
        classes: The classes; none for a regression.
        answers: The class of each row, -1 for none; or the number, NaN for none.
        units: The unit of each row, numbered.
        train_rows: The rows to train on, in a public order.
        test_rows: The rows held out.
    """

    name: str
    unit: str
    columns: dict[str, Values]
    declared: dict[str, Declared]
    target: str
    classes: tuple[str, ...]
    answers: Integers | Floats
    units: Integers | None
    train_rows: Integers
    test_rows: Integers

    @property
    def num_units(self) -> int:
        """How many units of privacy are trained on."""
        if self.units is None:
            return len(self.train_rows)
        return len(np.unique(self.units[self.train_rows]))

    @property
    def shape(self) -> Shape:
        """The public size of the table."""
        unknown = [n for n in self.columns if not self.declared[n].is_complete]
        measures_target = self.is_regression and self.target_range is None
        return Shape(
            num_units=self.num_units,
            num_measured=len(unknown) + measures_target,
            num_features=sum(self.declared[n].num_features for n in self.columns),
            num_outputs=max(1, len(self.classes)),
            is_regression=self.is_regression,
        )

    @property
    def is_regression(self) -> bool:
        """Whether a number is predicted."""
        return not self.classes

    @property
    def target_range(self) -> tuple[float, float] | None:
        """The range of a regression's target, if it is declared."""
        return self.declared[self.target].range if self.is_regression else None

    def fit(self, shares: Shares, statistics: Statistics) -> Fitted:
        """Release statistics of the columns, and return what they say."""
        rows_N = self._one_row_a_unit()
        measured = None
        if self.is_regression and self.target_range is None:
            no_text_N = np.full(len(rows_N), -1, dtype=np.int64)
            measured = Values(self.answers[rows_N].astype(np.float64), no_text_N)
        fitted = fit_encoder(
            {name: values[rows_N] for name, values in self.columns.items()},
            self.declared,
            measured,
            shares=shares,
            statistics=statistics,
        )
        if self.target_range is None:
            return fitted
        return replace(fitted, target=ScaledTarget.of_range(*self.target_range))

    def _one_row_a_unit(self) -> Integers:
        """Return one row to train on of every unit: its first, whatever it holds."""
        if self.units is None:
            return self.train_rows
        rows_N = np.sort(self.train_rows)
        _, first = np.unique(self.units[rows_N], return_index=True)
        return rows_N[first]

    def problem(self, fitted: Fitted) -> Problem:
        """Return what is trained for."""
        if fitted.target is None:
            return Classification(classes=self.classes)
        return Regression(target=fitted.target)

    def table(self, fitted: Fitted) -> Table:
        """Return the rows as features and targets."""
        answers_N = self.answers
        train_y = torch.from_numpy(answers_N[self.train_rows])
        if fitted.target is not None:
            train_y = fitted.target(train_y)
        is_known_N = ~np.isnan(answers_N) if self.is_regression else answers_N >= 0
        test_N = self.test_rows[is_known_N[self.test_rows]]
        units = None
        if self.units is not None:
            _, units = np.unique(self.units[self.train_rows], return_inverse=True)

        def features(rows_N: Integers) -> torch.Tensor:
            columns = {name: values[rows_N] for name, values in self.columns.items()}
            return fitted.encoder(columns)

        return Table(
            name=self.name,
            unit=self.unit,
            problem=self.problem(fitted),
            train=TensorDataset(features(self.train_rows), train_y),
            test=TensorDataset(features(test_N), torch.from_numpy(answers_N[test_N]))
            if len(test_N)
            else None,
            units=None if units is None else units.tolist(),
            num_units=self.num_units,
        )


def open_csv(path: Path, options: CsvOptions, *, known: str) -> CsvTable:
    """Read the CSV file at *path*.

    Args:
        path: Where it is.
        options: What the user says of it.
        known: What could be named instead, for the error if there is no such file.

    Raises:
        InputError: If it cannot be read, or not be trained on.
    """
    file = read_csv(path, options.layout, known=known)
    target = _target(file, options.target)
    left_out = columns_of(file, "--leave-out", options.left_out)
    units_N = None
    if options.unit_column is not None:
        (unit_column,) = columns_of(file, "--unit-column", [options.unit_column])
        units_N = _units(file, unit_column)
        left_out.append(unit_column)
    names = [n for n in file.names if n != target and n not in left_out]
    if not names:
        raise InputError(f"{path} has no column besides --target {target!r}")
    declared = declared_columns(file, [*names, target], options.declarations)
    classes, answers_N = _answers(file, target, options)
    columns = file.columns({name: declared[name].kind for name in names})
    train_N, test_N = _split(len(file), units_N, options.hold_out, path)
    return CsvTable(
        name=path.name,
        unit="one row of the file"
        if options.unit_column is None
        else f"one value of {options.unit_column}",
        columns=columns,
        declared=declared,
        target=target,
        classes=classes,
        answers=answers_N,
        units=units_N,
        train_rows=train_N,
        test_rows=test_N,
    )


def _target(file: CsvFile, target: str | None) -> str:
    if target is None:
        raise InputError(
            f"--target must name the column of {file.path} to predict:"
            f" {one_of(file.names)}"
        )
    (name,) = columns_of(file, "--target", [target])
    return name


def _units(file: CsvFile, column: str) -> Integers:
    _, units_N = file.labels(column)
    if (units_N < 0).any():
        raise InputError(
            f"--unit-column {column!r} has rows without a value, which belong to no"
            " unit; drop them, or give each a value of its own"
        )
    return units_N


def _answers(
    file: CsvFile, target: str, options: CsvOptions
) -> tuple[tuple[str, ...], Integers | Floats]:
    """Return the classes and every row's, or no classes and every row's number."""
    numbers = file.columns({target: "auto"})[target]
    if options.task == "regression":
        if options.classes:
            raise InputError("--classes is for classification, and --task regression")
        return (), numbers.numbers
    texts, labels_N = file.labels(target)
    where = f"column {target!r} of {file.path}"
    if options.classes:
        return _declared_classes(texts, labels_N, options.classes)
    are_numbers = not (numbers.buckets >= 0).any()
    if options.task is None and are_numbers and len(texts) > _MOST_CLASSES:
        return (), numbers.numbers
    if len(texts) < _FEWEST_CLASSES:
        raise InputError(f"{where} has one class only; there is nothing to learn")
    if len(texts) > _LARGEST_SHARE_OF_CLASSES * len(file):
        remedy = "predict numbers by --task regression" if are_numbers else "group them"
        raise InputError(
            f"{where} has nearly as many different values as rows: these are no"
            f" classes; {remedy}, or choose another --target"
        )
    return tuple(texts), labels_N


def _declared_classes(
    texts: Sequence[str], labels_N: Integers, given: Sequence[str]
) -> tuple[tuple[str, ...], Integers]:
    """Return the declared classes, which may be quoted; rows of any other have none."""
    rows = csv.reader(given, skipinitialspace=True)
    classes = tuple(dict.fromkeys(name.strip() for row in rows for name in row))
    if len(classes) < _FEWEST_CLASSES:
        raise InputError(f"--classes must name two classes or more, got {classes}")
    numbers = {name: number for number, name in enumerate(classes)}
    renumbered = np.array([numbers.get(text, -1) for text in texts] + [-1])
    return classes, renumbered[labels_N]


def _split(
    num_rows: int, units_N: Integers | None, hold_out: float, path: Path
) -> tuple[Integers, Integers]:
    """Hold out units by position alone, in an order that everyone knows."""
    if units_N is None:
        numbers_N = np.arange(num_rows)
        num_units = num_rows
    else:
        # In the order in which they come first in the file.
        _, first, numbers_N = np.unique(units_N, return_index=True, return_inverse=True)
        num_units = len(first)
        numbers_N = np.argsort(np.argsort(first))[numbers_N]
    if num_units < _FEWEST_UNITS:
        what = "rows" if units_N is None else "values of --unit-column"
        raise InputError(
            f"{path} has {num_units} {what}; at least {_FEWEST_UNITS} are needed"
        )
    order = shuffled(num_units).numpy()
    place = np.argsort(order)[numbers_N]
    cut = round(num_units * hold_out)
    rows_N = np.argsort(place, kind="stable")
    is_held_out = place[rows_N] < cut
    return rows_N[~is_held_out], rows_N[is_held_out]
