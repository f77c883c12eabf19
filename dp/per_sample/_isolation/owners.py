"""Owners: which unit's losses send a gradient to which elements of a tensor.

A *unit* is what one contribution is clipped for: an example, or a user with all of
theirs. Units are numbered 0 .. U - 1. Every element of every tensor between the losses
and a use of a parameter has one owner, or none (:data:`NOBODY`), or gradients of
several units meet in it (:data:`MIXED`), and then there is no gradient of one unit.

The owners of a tensor are a value. Those of ordinary batches are *regular*, three
integers; those of packed, ragged or routed batches are a tensor of unit numbers, which
is short: an axis along which nothing differs has length 1.

>>> examples_first = Owners.regular(axis=0)
>>> examples_first.as_rows(rank=2, num_units=3).tolist()
[[0], [1], [2]]
>>> packed = Owners.irregular(torch.tensor([0, 0, 0, 1, 2, 2]).view(-1, 1))
>>> packed.as_rows(rank=2, num_units=3).flatten().tolist()
[0, 0, 0, 1, 2, 2]

Shapes: ``U`` units, ``N`` entries of the axis along which owners differ.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, final

import torch
from torch import Tensor


__all__ = (
    "EVERYBODYS",
    "MIXED",
    "NOBODY",
    "NOBODYS",
    "Owners",
    "meet",
    "meet_over",
    "merged",
    "regularized",
    "scattered",
    "shortened",
)

NOBODY: Final = -1  # No gradient flows to the element.
MIXED: Final = -2  # Gradients of several units meet in it.
_IRREGULAR: Final = -3
_LARGEST: Final = torch.iinfo(torch.int64).max


@final
class Owners(NamedTuple):
    """The owner of every element of a tensor.

    Attributes:
        axis: Of regular owners, the axis along which they differ, from the front. Its
            length is ``outer * U * inner``, and entry i belongs to unit
            ``(i // inner) % U``, wherever it is on the other axes. NOBODY and MIXED
            stand for a tensor that is nobody's, or everybody's, as a whole.
        outer: How often the units come one after another: positions before units.
        inner: How many entries of a unit follow one another: positions behind units.
        rows: Of irregular owners, whole numbers that broadcast to the tensor's shape:
            a unit, NOBODY or MIXED.
    """

    axis: int
    outer: int = 1
    inner: int = 1
    rows: Tensor | None = None

    @classmethod
    def regular(cls, axis: int, outer: int = 1, inner: int = 1) -> "Owners":
        """Return the owners of units that lie along one axis in their order."""
        return cls(axis, outer, inner)

    @classmethod
    def irregular(cls, rows: Tensor) -> "Owners":
        """Return owners that are given one by one."""
        return cls(_IRREGULAR, rows=rows)

    @property
    def is_regular(self) -> bool:
        """Whether the units lie along one axis, each with as many entries."""
        return self.axis >= 0

    def as_rows(
        self, rank: int, num_units: int, device: torch.device | None = None
    ) -> Tensor:
        """Return the owners as a tensor that broadcasts to a shape of *rank* axes."""
        if self.rows is not None:
            rows = self.rows if device is None else self.rows.to(device)
            return rows.view([1] * (rank - rows.dim()) + list(rows.shape))
        if self.axis < 0:
            return torch.full([1] * rank, self.axis, device=device)
        # Example: 3 units with outer 2 and inner 2 are 0 0 1 1 2 2 0 0 1 1 2 2.
        unit_N = torch.arange(num_units, device=device)
        unit_N = unit_N.repeat_interleave(self.inner).repeat(self.outer)
        return unit_N.view([-1 if k == self.axis else 1 for k in range(rank)])

    def has_mixed(self) -> bool:
        """Whether gradients of several units meet somewhere."""
        if self.rows is None:
            return self.axis == MIXED
        return bool((self.rows == MIXED).any())

    def is_same(self, other: "Owners") -> bool:
        """Whether two tensors of one shape have the same owners, as far as written."""
        # Regular owners and the same ones written out count as different here: that
        # costs a comparison row by row, and no correctness.
        if self.rows is None or other.rows is None:
            return self[:3] == other[:3]
        return self.rows is other.rows or (
            self.rows.shape == other.rows.shape and torch.equal(self.rows, other.rows)
        )


NOBODYS: Final = Owners(NOBODY)
EVERYBODYS: Final = Owners(MIXED)


def merged(low: Tensor, high: Tensor, mixed: Tensor) -> Tensor:
    """Return the only owner among several, or MIXED, or NOBODY.

    Args:
        low: The smallest unit, or a number above all units if there is none.
        high: The largest unit, or NOBODY.
        mixed: Whether one of them is MIXED already.
    """
    # Example: owners 2, nobody, 2 have low 2 and high 2: unit 2's. Owners 0, 2 have low
    # 0 and high 2: mixed, as is everything that a mixed element is added to.
    one = torch.where(high < 0, NOBODY, torch.where(low == high, high, MIXED))
    return torch.where(mixed, MIXED, one)


def meet(rows: Tensor, axis: int) -> Tensor:
    """Return whose gradients meet in a sum over *axis*, which is kept, of length 1."""
    if rows.shape[axis] == 1:
        return rows
    if rows.numel() == 0:
        return rows.new_full(
            [1 if k == axis % rows.dim() else n for k, n in enumerate(rows.shape)],
            NOBODY,
        )
    # If the smallest unit is the largest, there is one alone. Nobody counts as neither.
    low = torch.where(rows < 0, _LARGEST, rows).amin(axis, keepdim=True)
    high = rows.clamp(min=NOBODY).amax(axis, keepdim=True)
    return merged(low, high, (rows == MIXED).any(axis, keepdim=True))


def meet_over(rows: Tensor, axes: Iterable[int]) -> Tensor:
    """Return whose gradients meet in a sum over several axes, which are kept."""
    for axis in axes:
        rows = meet(rows, axis)
    return rows


def shortened(rows: Tensor, axes: Iterable[int]) -> Tensor:
    """Return the owners with length 1 along the axes on which nothing differs."""
    for axis in axes:
        if rows.shape[axis] > 1:
            first = rows.narrow(axis, 0, 1)
            if bool((rows == first).all()):
                rows = first
    return rows


def scattered(rows: Tensor, shape: Sequence[int], axis: int, index: Tensor) -> Tensor:
    """Return the owners of a tensor of *shape* from which *index* was gathered.

    Owners are written by index, and read again: what then is another's was taken for
    two units, which seldom happens.
    """
    written = rows.new_full([*shape], NOBODY).scatter_(axis, index, rows)
    if bool((written.gather(axis, index) == rows).all()):
        return written
    # Example: rows 0 and 2 of units 0 and 1 were both taken from place 5: written, place 5
    # says 1, read for row 0 it is not 0, so it is looked at which owners it has: mixed.
    low, high = torch.where(rows < 0, _LARGEST, rows), rows.clamp(min=NOBODY)
    mixed = (rows == MIXED).to(torch.int8)
    return merged(
        rows.new_full([*shape], _LARGEST).scatter_reduce(axis, index, low, "amin"),
        rows.new_full([*shape], NOBODY).scatter_reduce(axis, index, high, "amax"),
        mixed.new_zeros([*shape]).scatter_reduce(axis, index, mixed, "amax").bool(),
    )


def regularized(owners: Owners, shape: Sequence[int], num_units: int) -> Owners:
    """Return irregular owners as three integers, if units do lie along one axis.

    What is nobody's holds zeros, which may count as anybody's: a slice of the batch
    leaves the rest nobody's, and is regular all the same.
    """
    rows = owners.rows
    if rows is None:
        return owners
    rows = rows.view([1] * (len(shape) - rows.dim()) + list(rows.shape))
    if bool((rows == NOBODY).all()):
        return NOBODYS
    for axis, length in enumerate(rows.shape):
        # An axis of 7 cannot hold 3 units equally often, as three integers say it.
        if length > 1 and length % num_units == 0:
            for candidate in _candidates(rows, axis, num_units):
                expected = candidate.as_rows(len(shape), num_units, rows.device)
                if bool(((rows == expected) | (rows == NOBODY)).all()):
                    return candidate
    return Owners.irregular(shortened(rows, range(len(shape))))


def _candidates(rows: Tensor, axis: int, num_units: int) -> list[Owners]:
    """Return the ways in which units may lie along an axis."""
    # An axis of 12 with 3 units may hold them as 0000 1111 2222, as 012 012 012 012, or in
    # runs as long as the first one: 00 11 22 00 11 22.
    shared = rows.shape[axis] // num_units
    unit_N = rows.amax([k for k in range(rows.dim()) if k != axis]).flatten()
    changes_N = (unit_N != unit_N[0]).to(torch.int8)
    first_run = int(changes_N.argmax()) or 1
    inner = dict.fromkeys((shared, 1, first_run))
    return [
        Owners.regular(axis, shared // n, n) for n in inner if n and shared % n == 0
    ]
