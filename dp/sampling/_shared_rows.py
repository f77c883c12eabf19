"""Whether rows that a dataset makes as it reads them have the same data in common.

A window of a series, of a text or of a recording shares most of it with the next window.
A dataset that is made longer by ``row % n`` has each example several times, and one that
draws a row at random has any example at any number. What a row is to predict, or its
lag, may be the input of the row beside it. So a few rows are read by one seed, and
compared with those beside them, and with those that are as many rows further on as the
dataset may hold.

Not seen: rows that share data by other rules or in another order, that are scaled each
by itself, or changed by random numbers that no seed decides; rows of few and whole
numbers, in which what is the same may be so by chance.

Shapes: ``T`` places along the axis of a window, ``F`` numbers at each.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from dp._containers import is_sequence, parts_of
from dp.exceptions import SamplingMismatchError
from dp.sampling._collation import seeded
from dp.sampling._common_parts import (
    ENOUGH,
    Told,
    are_own,
    by_key,
    handed_on,
    key_of,
    keys_in,
)
from dp.sampling._own_rows import reads_any


__all__ = ("AT_HAND", "LEAST", "check_shared_rows", "leaves_of", "shifted")

AT_HAND: Final = (TensorDataset, Tensor, np.ndarray, list, tuple)
"""Types of datasets whose rows are in memory, as they are."""
LEAST: Final = 16
"""Rows of a dataset that is looked at."""

_PLACES: Final = (0.09, 0.17, 0.31, 0.42, 0.53, 0.66, 0.78, 0.91)  # In a dataset.
_FEW_PLACES: Final = (0.2, 0.5, 0.8)
_MANY_PLACES: Final = 6  # Of 8 that have to have rows of their own.
_MOST_PAIRS: Final = 2 / 3  # A series ends somewhere; a group has one first row.
_MOST_TIMES: Final = 64
_TIMES: Final = (2, 3, 4, 5, 10)  # As often a dataset may have been repeated.
_MANY_WHOLE: Final = 16  # Values in a row of whole numbers that tells it from others.
_FEWEST: Final = 3  # Places of a window.
_MOST: Final = 2**22  # Numbers of a row that are compared.
_NUMBERS: Final = (int, float, np.number)
_Numbers = NDArray[np.int64]
_Leaves = list[NDArray[Any]]
_Pair = tuple[int, int]


def check_shared_rows(source: Any, rows: _Numbers, owners: _Numbers) -> None:
    """Raise if rows of a dataset that are of several units have the same data.

    Args:
        source: What rows are read from.
        rows: Their numbers there.
        owners: The unit of each.

    Raises:
        SamplingMismatchError: If they do.
    """
    if len(rows) < LEAST:
        return
    order = np.argsort(rows)
    compared = _Compared(source, rows[order], owners[order])
    try:
        told = compared.finding()
    except Exception:  # noqa: BLE001 -- of the caller's own types; training shows it
        return
    if told is not None:
        raise SamplingMismatchError(told)


@final
class _Compared:
    """Pairs of rows, in the order of their numbers."""

    def __init__(self, source: Any, rows: _Numbers, owners: _Numbers) -> None:
        self._source = source
        self._rows = rows
        self._owners = owners

    def finding(self) -> str | None:
        """Return what rows have in common, in words; None if that is nothing."""
        if (by_seed := self._by_seed_alone()) is not None:
            # Random numbers alone are nobody's, as in a dataset for trying things out.
            is_read = by_seed and reads_any(self._source, int(self._rows[0]))
            return _AT_RANDOM.format(type(self._source).__name__) if is_read else None
        if not (neighbours := self._neighbours(_PLACES)):
            return None
        # By row // n, every n-th row is another one than the row after it.
        if self._are_same(neighbours, self._neighbours(_PLACES, 1)):
            # Or a table of few values is sorted: equal rows may be two people's.
            return _REPEATED.format(*neighbours[0]) if self._is_shorter() else None
        if (told := self._in_common()) is not None:
            return told
        for step in sorted(self._steps()):
            further = self._rows[np.isin(self._rows + step, self._rows)]
            pairs = self._pairs(further, further + step, _PLACES)
            if pairs and self._are_same(pairs):
                return _REPEATED.format(*pairs[0])
        return None

    def _in_common(self) -> str | None:
        """Return what rows have in common with those beside them; None if nothing."""
        neighbours = self._neighbours(_FEW_PLACES)
        if self._are_windows(neighbours, self._neighbours(_FEW_PLACES, 1)):
            return _WINDOWS.format(*neighbours[0])
        neighbours = self._neighbours(_PLACES)
        if self._are_handed_on(neighbours, self._neighbours(_PLACES, 1)):
            return _HANDED_ON.format(*neighbours[0])
        return None

    def _by_seed_alone(self) -> bool | None:
        """Whether rows are others by another seed; None unless a seed decides all.

        By the same seed, they are then the same, whichever is asked for.
        """
        told = Told()
        rows = [int(self._rows[int(part * len(self._rows))]) for part in _PLACES]
        for seed, row in enumerate(rows):
            one, other = self._leaves(row, seed), self._leaves(rows[seed - 1], seed)
            if not _equal(one, other):
                return None
            told.add(*one)
        first, second = (self._leaves(rows[0], seed) for seed in range(2))
        is_told = told.bits(fewest_whole=_MANY_WHOLE) >= ENOUGH
        return is_told and not _equal(first, second)

    def _neighbours(self, parts: Sequence[float], later: int = 0) -> list[_Pair]:
        return self._pairs(self._rows[:-1], self._rows[1:], parts, later)

    def _pairs(
        self, one: _Numbers, other: _Numbers, parts: Sequence[float], later: int = 0
    ) -> list[_Pair]:
        """Return a few pairs of rows of different units, from all over the dataset."""
        owner_of = partial(np.searchsorted, self._rows)
        apart = self._owners[owner_of(one)] != self._owners[owner_of(other)]
        one, other = one[apart], other[apart]
        last = len(one) - 1
        places = [min(int(part * len(one)) + later, last) for part in parts]
        return [(int(one[i]), int(other[i])) for i in places if last >= 0]

    def _is_shorter(self) -> bool:
        """Whether a dataset keeps so many things that each would be several rows."""
        times = [len(self._rows) / length for length in self._lengths()]
        return any(
            1 < round(n) <= _MOST_TIMES
            and abs(n / round(n) - 1) <= 1 / len(self._rows) * n
            for n in times
        )

    def _lengths(self) -> set[int]:
        kept = [*getattr(self._source, "__dict__", {}).values()]
        lengths = {len(value) for value in kept if isinstance(value, Sized)}
        return {length for length in lengths if 1 < length < len(self._rows)}

    def _steps(self) -> set[int]:
        """Return after how many rows a dataset may begin anew."""
        by_times = {len(self._rows) // times for times in _TIMES}
        return self._lengths() | {step for step in by_times if step > 1}

    def _leaves(self, row: int, seed: int = 0) -> _Leaves:
        return leaves_of(self._source, row, seed)

    def _are_same(self, *families: Sequence[_Pair]) -> bool:
        """Whether the rows of a pair from each place are equal, and not by chance.

        By chance, rows of few values are equal, those from other places as well.
        """
        told, distinct = Told(), set()
        for seed, pairs in enumerate(zip(*families, strict=True)):
            rows = [[self._leaves(row, seed) for row in pair] for pair in pairs]
            same = [one for one, other in rows if _equal(one, other)]
            if not same:
                return False
            told.add(*same[0])
            distinct.add(b"".join(leaf.tobytes() for leaf in same[0]))
        is_told = told.bits(fewest_whole=_MANY_WHOLE) >= ENOUGH
        return is_told and len(distinct) >= _MANY_PLACES

    def _are_windows(self, *families: Sequence[_Pair]) -> bool:
        """Whether rows of a pair from each place are each other, shifted along one axis."""
        # By place, pair and row: the leaves. Where a series ends, a pair is of two.
        read = [
            [[*map(self._leaves, pair)] for pair in pairs]
            for pairs in zip(*families, strict=True)
        ]
        return any(
            self._are_shifted(read, leaf, axis, turned)
            for leaf, array in enumerate(read[0][0][0])
            for axis in range(array.ndim)
            for turned in (1, -1)
        )

    def _are_handed_on(self, *families: Sequence[_Pair]) -> bool:
        """Whether a part of a row is another part of the row beside it, nearly always."""
        # Example: (x[i], x[i + 1]) and (x[i + 1], x[i + 2]): part 1 is part 0 of the next.
        places = [
            [
                [by_key(self._leaves(row), numbers=True) for row in pair]
                for pair in pairs
            ]
            for pairs in zip(*families, strict=True)
        ]
        found = [handed_on(*pair) for pairs in places for pair in pairs]
        times = Counter(parts for one in found for parts in one)
        # Hours of the day, or levels of few, are in rows from other places as well.
        holders = Counter(key for pairs in places for key in keys_in(pairs))
        own = {
            parts: [one[parts] for one in found if parts in one]
            for parts, number in times.items()
            if number > _MOST_PAIRS * len(found)
        }
        return any(
            are_own([value for value in values if holders[key_of(value)] == 1])
            for values in own.values()
        )

    def _are_shifted(
        self,
        read: Sequence[Sequence[Sequence[_Leaves]]],
        leaf: int,
        axis: int,
        turned: int,
    ) -> bool:
        told = Told()
        for pairs in read:
            found = [shifted(pair[::turned], leaf, axis) for pair in pairs]
            common = [one for one in found if one is not None]
            if not common:
                return False
            told.add(common[0])
        return told.bits() >= ENOUGH


_WINDOWS: Final = (
    "rows {} and {} of the dataset have data in common: one is the other, shifted, as"
    " overlapping windows of a series or a text are. What is in several rows moves a sum"
    " once for each of them. Cut windows that do not overlap, each as far from the last"
    " as it is long, with what it is to predict, or say what they are of: units="
)
_HANDED_ON: Final = (
    "rows {} and {} of the dataset have data in common: a part of one is another part of"
    " the other, as where what a row is to predict, or its lag, is the input of the next."
    " What is in several rows moves a sum once for each of them. Make rows that are so far"
    " apart that no two have data in common, or say what they are of: units="
)
_REPEATED: Final = (
    "rows {} and {} of the dataset are the same example, as where a dataset is made"
    " longer by row % n: drawn together, it would count twice. Leave each example in once,"
    " and take more steps, or say whose rows they are: units="
)
_AT_RANDOM: Final = (
    "{}.__getitem__ draws a row at random, whichever is asked for, so that an example may"
    " be in a batch several times, and more often than the plan says. Return the row that"
    " is asked for: the loader draws"
)


def _equal(one: _Leaves, other: _Leaves) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def shifted(pair: Sequence[_Leaves], leaf: int, axis: int) -> NDArray[Any] | None:
    """Return where an array of a row repeats that of another, from further on.

    Args:
        pair: The arrays of the other row, and those of the one that may repeat it.
        leaf: Which array.
        axis: Along which of its axes.

    Returns:
        What is the same, where it changes; None if the row does not go on from there.
    """
    one, other = pair
    if not _are_along(one, other, one[leaf].shape[axis]):
        return None
    return _overlap(one[leaf], other[leaf], axis)


def _are_along(one: _Leaves, other: _Leaves, length: int) -> bool:
    """Whether all that is as long as a window is the same in both rows, or moved on."""
    # Example: a mask of 5 of 8 tokens is one of 6, shifted; the tokens it masks are not.
    return all(
        length not in a.shape
        or np.array_equal(a, b)
        or any(
            a.shape[k] == length and _overlap(a, b, k) is not None
            for k in range(a.ndim)
        )
        for a, b in zip(one, other, strict=True)
    )


def _overlap(one: NDArray[Any], other: NDArray[Any], axis: int) -> NDArray[Any] | None:
    """Return where *other* repeats changes of *one*, from further on; None if nowhere."""
    if one.shape != other.shape or one.shape[axis] < _FEWEST:
        return None
    # Example: [3, 1, 4, 1] and [1, 4, 1, 5] have [1, 4, 1] in common, at a shift of 1.
    length = one.shape[axis]
    one_TF, other_TF = (
        np.moveaxis(a, axis, 0).reshape(length, -1) for a in (one, other)
    )
    for shift in 1 + np.flatnonzero((one_TF[1:] == other_TF[0]).all(1)):
        common_TF = other_TF[: length - shift]
        # What is periodic, such as the hour of the day, is its own window.
        if np.array_equal(one_TF[shift:], common_TF) and not np.array_equal(
            one_TF[shift:], one_TF[: length - shift]
        ):
            # Of a run of the same, as of padding, one place alone is not by chance.
            is_new_T = (common_TF[1:] != common_TF[:-1]).any(1)
            changes_TF: NDArray[Any] = common_TF[np.append(True, is_new_T)]
            return changes_TF
    return None


def leaves_of(source: Any, row: int, seed: int = 0) -> _Leaves:
    """Return the numbers of a row that is read by a seed; none of very many."""
    # To seed all generators takes a hundred times as long as to read what is at hand.
    with nullcontext() if type(source) in AT_HAND else seeded(seed):
        leaves = [*_arrays_of(source[row])]
    return leaves if sum(leaf.size for leaf in leaves) <= _MOST else []


def _arrays_of(part: Any) -> Iterator[NDArray[Any]]:
    """Yield the numbers of a row, and its texts as numbers."""
    if isinstance(part, str):
        part = [*map(ord, part)]
    if isinstance(part, Tensor):
        if part.layout == torch.strided and not part.is_complex():
            yield part.detach().cpu().double().numpy()
    elif isinstance(part, np.ndarray):
        if part.dtype.kind in "biuf":
            yield part
    elif isinstance(part, _NUMBERS) or _has_numbers(part):
        yield np.asarray(part)
    else:
        for value in (parts_of(part) or {}).values():
            yield from _arrays_of(value)


def _has_numbers(part: Any) -> bool:
    return is_sequence(part) and bool(part) and isinstance(part[0], _NUMBERS)
