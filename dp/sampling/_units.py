"""Units of privacy that have several rows of a dataset, such as users."""

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence
from numbers import Number
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray

from dp.sampling._draws import random_subset


__all__ = (
    "ONE_EXAMPLE",
    "UnitIndex",
    "Units",
    "check_units",
    "column_of_units",
    "index_of",
)

ONE_EXAMPLE: Final = "one training example"
# Whose hash is the address; and of which one, NaN or NaT, is not equal to itself.
_BY_IDENTITY: Final[tuple[object, ...]] = (object.__hash__, torch.Tensor.__hash__)
_NUMBERS: Final = (Number, np.generic)
_COLUMN: Final = re.compile(r"one value of (.+)")

Units = Sequence[Hashable] | NDArray[Any] | torch.Tensor


@final
class UnitIndex:
    """An index from each unit to its rows.

    Args:
        units: The unit of every row of the dataset, in its order.
        num_rows: How many rows the dataset has.
        max_per_unit: The most rows of a unit in one batch; None for no limit.

    Raises:
        ValueError: If there is not one unit a row, or if one is NaN or None.
        TypeError: If units are not hashable, or not told apart by their values.
    """

    __slots__ = (
        "_first_row",
        "_max_per_unit",
        "_rows",
        "digest",
        "num_units",
        "unit_of_row",
        "values",
    )

    def __init__(
        self, units: Units, *, num_rows: int, max_per_unit: int | None
    ) -> None:
        unit_of_row, self.values = _numbered(units)
        if len(unit_of_row) != num_rows:
            raise ValueError(
                f"units must name the unit of each row of the dataset, which has"
                f" {num_rows}, got {len(unit_of_row)}"
            )
        self.unit_of_row = unit_of_row
        # Example: users a, b, a are numbered 0, 1, 0. Rows by user are 0, 2, 1, and
        # begin at 0 and 2: user 0 has rows 0 and 2.
        self._rows = np.argsort(unit_of_row, kind="stable")
        num_of_unit = np.bincount(unit_of_row)
        self._first_row = np.concatenate([[0], np.cumsum(num_of_unit)])
        self._max_per_unit = max_per_unit
        self.num_units = len(num_of_unit)
        self.digest = hashlib.sha256(unit_of_row.tobytes()).hexdigest()

    def rows_of(self, unit: int) -> list[int]:
        """Return the rows of a unit, or a fresh random part of them if it has many.

        Which part depends on nothing but the unit and coins of its own, so a unit's
        contribution stays its own.
        """
        start, stop = self._first_row[unit : unit + 2]
        rows: list[int] = self._rows[start:stop].tolist()
        if self._max_per_unit is None:
            return rows
        return random_subset(rows, size=self._max_per_unit)

    def select(self, units: Sequence[int]) -> tuple[list[int], NDArray[np.int64]]:
        """Return the rows of *units*, and for each the position of its unit."""
        rows_of = [self.rows_of(unit) for unit in units]
        # Units 5 and 9 with two rows and one: positions 0, 0, 1 in the batch.
        position_of_row = np.repeat(np.arange(len(rows_of)), [len(r) for r in rows_of])
        return [row for rows in rows_of for row in rows], position_of_row


def _numbered(units: Units) -> tuple[NDArray[np.int64], list[Hashable]]:
    """Return units as numbers from 0, in the order of their first rows, and the units."""
    if isinstance(units, torch.Tensor):
        units = units.cpu().numpy()
    if isinstance(units, np.ndarray):
        if units.ndim != 1:
            raise ValueError(f"units must be a vector, got shape {units.shape}")
        units = units.tolist()
    numbers: dict[Hashable, int] = {}
    unit_of_row = np.fromiter(
        (numbers.setdefault(unit, len(numbers)) for unit in units), dtype=np.int64
    )
    _check_values(numbers)
    return unit_of_row, [*numbers]


def _check_values(units: Iterable[Hashable]) -> None:
    """Raise if two rows of one unit could be taken for rows of two, or two units for one.

    Raises:
        ValueError: If a unit is NaN, or missing.
        TypeError: If one is hashed by where it lies, as tensors are.
    """
    # Example: units=[row["user"] for row in data] has a tensor for each row. Two that
    # say 7 are different keys, and user 7 would be clipped once for each of their rows.
    for unit in units:
        for part in unit if isinstance(unit, tuple) else (unit,):
            if isinstance(part, _NUMBERS) and part != part:  # noqa: PLR0124 -- only NaN is not itself
                raise ValueError(
                    "units has NaN, which equals nothing, not even itself, so whose those"
                    " rows are is not known; give them their unit, or leave them out of"
                    " the dataset"
                )
            if part is None:
                raise ValueError(
                    "units has None, under which the rows of several people may lie:"
                    " clipped as one, each of them moves the sum by up to twice the"
                    " clipping norm; give those rows their unit, or one of its own each,"
                    " or leave them out of the dataset"
                )
            if type(part).__hash__ in _BY_IDENTITY:
                raise TypeError(
                    f"units has a {type(part).__name__}, of which two with the same value"
                    " are different units, so that the rows of one unit would be clipped"
                    " one by one; pass values, such as int(user) or user.id"
                )


def index_of(loader: object) -> UnitIndex | None:
    """Return the index of a loader's units; None if every row is a unit."""
    index: UnitIndex | None = getattr(loader, "_units", None)
    return index


def column_of_units(unit_of_privacy: str) -> str | None:
    """Return what groups rows into units, for one that may have several rows.

    >>> column_of_units("one value of user_id")
    'user_id'
    """
    match = _COLUMN.fullmatch(unit_of_privacy.strip())
    return None if match is None else match[1]


def check_units(unit_of_privacy: str, *, has_units: bool) -> None:
    """Raise if rows are grouped where the plan says they are not, or the reverse."""
    if has_units and unit_of_privacy == ONE_EXAMPLE:
        raise ValueError(
            f"units= groups rows, but the plan protects {ONE_EXAMPLE!r}, of which a unit"
            " may have many; plan with unit_of_privacy='one value of ...'"
        )
    column = column_of_units(unit_of_privacy)
    if not has_units and column is not None:
        raise ValueError(
            f"the plan protects {unit_of_privacy!r}, but whose each row is was not said;"
            f" pass units=, the {column} of every row, or units=range(len(dataset)) if"
            " no two rows share one"
        )
