"""Which rows of a use are each unit's, laid out for computations by unit.

Where units lie along no axis (packed sequences, users of several losses, routed
tokens) a use has R rows in any order, and an owner for each. Weighted sums need no
more than that. Norms need each unit's rows together: rows are sorted by owner, and
units with about as many rows form a *bucket*, a zero-padded batch [units, T, ...] that
is served like any other batch.

Units with 1, 5, 6 and 20 rows come in three buckets, of 1 x 1, 2 x 6 and 1 x 20 rows:
within a bucket no unit has twice as many rows as another, so padding takes less memory
than the rows themselves. A bucket takes two dozen calls, however small it is: among many
longer units, those with 1, 5 and 6 rows would be one bucket of 3 x 6 rows.

Shapes: ``R`` rows, ``r`` rows that are a unit's, ``U`` units, ``u`` units of a bucket,
``T`` rows of a unit, at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor


__all__ = ("Bucket", "RowGroups")

# Of all rows, and of all pairs of a unit's: how many may be added for fewer buckets.
_MORE: Final = 1 / 16


@final
@dataclass(frozen=True, slots=True)
class Bucket:
    """Units with about as many rows.

    Attributes:
        units_u: The units.
        length: The largest number of rows of one of them.
        rows: Their rows, u * T of them: any row where a unit has no more.
        padding: Which these are.
    """

    units_u: Tensor
    length: int
    rows: Tensor
    padding: Tensor

    def gather(self, values_r: Tensor) -> Tensor:
        """Return [u, T, ...] of [r, ...], with zeros behind a unit's last row."""
        # Filled and not multiplied: the row that stands for padding may be infinite.
        values = values_r.index_select(0, self.rows).index_fill_(0, self.padding, 0)
        return values.view(len(self.units_u), self.length, *values_r.shape[1:])


@final
class RowGroups:
    """The rows of a use, by unit.

    Args:
        unit_R: The unit of each row, 0 .. U - 1, or a negative number if it is nobody's.
        num_units: U; a unit may have no row.

    Attributes:
        owned_r: The rows that are a unit's; None if all of them are.
        owner_r: The unit of each of these.
    """

    __slots__ = ("_buckets", "num_units", "owned_r", "owner_r", "unit_R")

    def __init__(self, unit_R: Tensor, num_units: int) -> None:
        self.unit_R = unit_R
        self.num_units = num_units
        self.owned_r: Tensor | None = None
        self.owner_r = unit_R
        self._buckets: Sequence[Bucket] | None = None
        is_owned_R = unit_R >= 0
        if not bool(is_owned_R.all()):
            self.owned_r = is_owned_R.nonzero()[:, 0]
            self.owner_r = unit_R[self.owned_r]

    @property
    def buckets(self) -> Sequence[Bucket]:
        """The buckets; no unit without rows is in one."""
        if self._buckets is None:
            self._buckets = self._make_buckets()
        return self._buckets

    def _make_buckets(self) -> list[Bucket]:
        """Sort units by bucket, and rows by their unit's place, once for all buckets."""
        counts_U = self.owner_r.bincount(minlength=self.num_units)
        # The exponent e of a count in [2^(e - 1), 2^e), found without rounding, numbers
        # its bucket; units without rows are in bucket 0.
        # Example: units with 1, 5, 6 and 20 rows are in the buckets 1, 3, 3 and 5.
        exponent_U = torch.frexp(counts_U.double()).exponent.long()
        joined_E = _joined(_sizes(exponent_U, counts_U).tolist())
        bucket_U = counts_U.new_tensor(joined_E)[exponent_U]
        sizes_E = _sizes(bucket_U, counts_U)
        num_units_E, _, length_E = sizes_E.unbind(1)
        unit_U = bucket_U.argsort(stable=True)
        rank_U = torch.empty_like(unit_U)
        rank_U[unit_U] = torch.arange(len(unit_U), device=unit_U.device)
        # Rows of a bucket's first unit come first, then those of its second: [r].
        rank_r, row_r = rank_U[self.owner_r].sort(stable=True)
        bucket_r = bucket_U[unit_U][rank_r]
        place_r = rank_r - _starts(num_units_E)[bucket_r]  # Of its unit in the bucket.
        position_r = torch.arange(len(row_r), device=row_r.device)
        position_r -= _starts(counts_U[unit_U])[rank_r]  # Of a row among its unit's.
        slot_r = place_r * length_E[bucket_r] + position_r
        return _cut(unit_U, row_r, slot_r, sizes_E.tolist())

    def within(self, units: slice) -> tuple[Tensor, "RowGroups"]:
        """Return which of the owned rows are those of consecutive units, in groups."""
        start, stop, _ = units.indices(self.num_units)
        mine_r = (self.owner_r >= start) & (self.owner_r < stop)
        rows = mine_r.nonzero()[:, 0]
        return rows, RowGroups(self.owner_r[rows] - start, stop - start)


def _sizes(bucket_U: Tensor, counts_U: Tensor) -> Tensor:
    """Return [E, 3]: a bucket's units, their rows, and the rows of the longest."""
    num_units_E = bucket_U.bincount()
    num_rows_E = torch.zeros_like(num_units_E).index_add_(0, bucket_U, counts_U)
    length_E = torch.zeros_like(num_units_E)
    length_E.scatter_reduce_(0, bucket_U, counts_U, "amax")
    return torch.stack([num_units_E, num_rows_E, length_E], 1)


def _joined(sizes: Sequence[Sequence[int]]) -> list[int]:
    """Return by bucket the one that its units go to: itself, or a longer one.

    Args:
        sizes: See :func:`_sizes`. The first bucket is that of units without rows.
    """
    more_rows = _MORE * sum(rows for _, rows, _ in sizes)
    more_pairs = _MORE * sum(units * length**2 for units, _, length in sizes)
    bucket_of = [*range(len(sizes))]
    together: list[int] = []
    num_units = before = 0
    for bucket, (units, _, length) in enumerate(sizes):
        if not length:
            continue
        rows = num_units * (length - before)
        pairs = num_units * (length**2 - before**2)
        if rows > more_rows or pairs > more_pairs:
            together, num_units, rows, pairs = [], 0, 0, 0
        more_rows, more_pairs = more_rows - rows, more_pairs - pairs
        together.append(bucket)
        num_units, before = num_units + units, length
        for shorter in together:
            bucket_of[shorter] = bucket
    return bucket_of


def _starts(sizes: Tensor) -> Tensor:
    return sizes.cumsum(0) - sizes


def _cut(
    unit_U: Tensor, row_r: Tensor, slot_r: Tensor, sizes: Sequence[Sequence[int]]
) -> list[Bucket]:
    """Return buckets of consecutive units and rows, given the sizes of each bucket.

    Args:
        unit_U: The units, by bucket.
        row_r: The rows, by bucket.
        slot_r: The place of each row in its bucket.
        sizes: The number of units, of rows, and of the rows of the longest unit.
    """
    buckets = []
    first_unit = first_row = 0
    for num_units, num_rows, length in sizes:
        units = unit_U[first_unit : first_unit + num_units]
        rows = slice(first_row, first_row + num_rows)
        first_unit, first_row = first_unit + num_units, rows.stop
        if num_rows:
            padded = row_r.new_full([num_units * length], -1)
            padded[slot_r[rows]] = row_r[rows]
            padding = (padded < 0).nonzero()[:, 0]
            buckets.append(Bucket(units, length, padded.clamp_(min=0), padding))
    return buckets
