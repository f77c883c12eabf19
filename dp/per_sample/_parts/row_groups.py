"""Which rows of a use are each unit's, laid out for computations by unit.

Where units lie along no axis (packed sequences, users of several losses, routed
tokens) a use has R rows in any order, and an owner for each. Weighted sums need no
more than that. Norms need each unit's rows together: rows are sorted by owner, and
units with about as many rows form a *bucket*, a zero-padded batch [units, T, ...] that
is served like any other batch.

Units with 1, 5, 6 and 20 rows come in three buckets, of 1 x 1, 2 x 6 and 1 x 20 rows:
in a bucket nobody has more than twice the rows of another, so padding never takes more
memory than the rows themselves.

Shapes: ``R`` rows, ``U`` units, ``u`` units of a bucket, ``r`` their rows, ``T`` rows of
a unit, at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


__all__ = ("Bucket", "RowGroups")


@final
@dataclass(frozen=True, slots=True)
class Bucket:
    """Units with about as many rows.

    Attributes:
        units_u: The units.
        length: The largest number of rows of one of them.
        rows_r: Their rows, unit by unit.
        slots_r: Where each row goes among u * T; None if it is already there, since all
            units have as many rows.
    """

    units_u: Tensor
    length: int
    rows_r: Tensor
    slots_r: Tensor | None

    def gather(self, values_R: Tensor) -> Tensor:
        """Return [u, T, ...] of [R, ...], with zeros behind a unit's last row."""
        values_r = values_R[self.rows_r]
        shape = (len(self.units_u), self.length, *values_R.shape[1:])
        if self.slots_r is None:
            return values_r.view(shape)
        padded = values_R.new_zeros(shape[0] * shape[1], *shape[2:])
        return padded.index_copy_(0, self.slots_r, values_r).view(shape)


@final
class RowGroups:
    """The rows of a use, by unit.

    Args:
        owner_R: The unit of each row: 0 .. U - 1. There are no rows of nobody.
        num_units: U; a unit may have no row.
    """

    __slots__ = ("_buckets", "num_units", "owner_R")

    def __init__(self, owner_R: Tensor, num_units: int) -> None:
        self.owner_R = owner_R
        self.num_units = num_units
        self._buckets: Sequence[Bucket] | None = None

    @property
    def buckets(self) -> Sequence[Bucket]:
        """The buckets; no unit without rows is in one."""
        if self._buckets is None:
            self._buckets = [*self._make_buckets()]
        return self._buckets

    def _make_buckets(self) -> Iterator[Bucket]:
        counts_U = torch.bincount(self.owner_R, minlength=self.num_units)
        order_R = self.owner_R.argsort(stable=True)
        owner_R = self.owner_R[order_R]
        start_U = counts_U.cumsum(0) - counts_U
        position_R = torch.arange(len(order_R), device=order_R.device)
        position_R -= start_U[owner_R]  # Of a row among its unit's.
        # The exponent e of a count in [2^(e - 1), 2^e), found without rounding.
        exponent_U = torch.frexp(counts_U.double()).exponent
        for exponent in exponent_U[counts_U > 0].unique().tolist():
            is_in_U = (exponent_U == exponent) & (counts_U > 0)
            units_u = is_in_U.nonzero()[:, 0]
            length = int(counts_U[units_u].max())
            chosen_r = is_in_U[owner_R].nonzero()[:, 0]
            slots_r = None
            if len(chosen_r) < len(units_u) * length:
                place_U = is_in_U.cumsum(0) - 1  # Of a unit in its bucket.
                slots_r = place_U[owner_R[chosen_r]] * length + position_R[chosen_r]
            yield Bucket(units_u, length, order_R[chosen_r], slots_r)

    def total(self, values_R: Tensor, total_U: Tensor) -> Tensor:
        """Add [R, ...] to [U, ...] by unit, in place, and return it."""
        return total_U.index_add_(0, self.owner_R, values_R)

    def within(self, units: slice) -> tuple[Tensor, "RowGroups"]:
        """Return the rows of consecutive units, and their groups."""
        start, stop, _ = units.indices(self.num_units)
        rows_r = ((self.owner_R >= start) & (self.owner_R < stop)).nonzero()[:, 0]
        return rows_r, RowGroups(self.owner_R[rows_r] - start, stop - start)
