"""Which rows of a use are each unit's, laid out for computations by unit.

Where units lie along no axis (packed sequences, users of several losses, routed
tokens) a use has R rows in any order, and an owner for each. Weighted sums need no
more than that. Norms need each unit's rows together: rows are sorted by owner, and
units with about as many rows form a *bucket*, a zero-padded batch [units, T, ...] that
is served like any other batch.

Units with 1, 5, 6 and 20 rows come in three buckets, of 1 x 1, 2 x 6 and 1 x 20 rows:
in a bucket nobody has more than twice the rows of another, so padding never takes more
memory than the rows themselves.

Shapes: ``R`` rows, ``r`` rows that are a unit's, ``U`` units, ``u`` units of a bucket,
``T`` rows of a unit, at most.
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
        rows: Their rows, unit by unit.
        slots: Where each row goes among u * T; None if it is already there, since all
            units have as many rows.
    """

    units_u: Tensor
    length: int
    rows: Tensor
    slots: Tensor | None

    def gather(self, values_r: Tensor) -> Tensor:
        """Return [u, T, ...] of [r, ...], with zeros behind a unit's last row."""
        values = values_r[self.rows]
        shape = (len(self.units_u), self.length, *values_r.shape[1:])
        if self.slots is None:
            return values.view(shape)
        padded = values_r.new_zeros(shape[0] * shape[1], *shape[2:])
        return padded.index_copy_(0, self.slots, values).view(shape)


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
            self._buckets = [*self._make_buckets()]
        return self._buckets

    def _make_buckets(self) -> Iterator[Bucket]:
        counts_U = torch.bincount(self.owner_r, minlength=self.num_units)
        order_r = self.owner_r.argsort(stable=True)
        owner_r = self.owner_r[order_r]
        start_U = counts_U.cumsum(0) - counts_U
        position_r = torch.arange(len(order_r), device=order_r.device)
        position_r -= start_U[owner_r]  # Of a row among its unit's.
        # The exponent e of a count in [2^(e - 1), 2^e), found without rounding.
        exponent_U = torch.frexp(counts_U.double()).exponent
        for exponent in exponent_U[counts_U > 0].unique().tolist():
            is_in_U = (exponent_U == exponent) & (counts_U > 0)
            units_u = is_in_U.nonzero()[:, 0]
            length = int(counts_U[units_u].max())
            chosen = is_in_U[owner_r].nonzero()[:, 0]
            slots = None
            if len(chosen) < len(units_u) * length:
                place_U = is_in_U.cumsum(0) - 1  # Of a unit in its bucket.
                slots = place_U[owner_r[chosen]] * length + position_r[chosen]
            yield Bucket(units_u, length, order_r[chosen], slots)

    def within(self, units: slice) -> tuple[Tensor, "RowGroups"]:
        """Return which of the owned rows are those of consecutive units, in groups."""
        start, stop, _ = units.indices(self.num_units)
        mine_r = (self.owner_r >= start) & (self.owner_r < stop)
        rows = mine_r.nonzero()[:, 0]
        return rows, RowGroups(self.owner_r[rows] - start, stop - start)
