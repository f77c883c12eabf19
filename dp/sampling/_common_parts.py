"""Values that rows have in common, and how unlikely that is by chance."""

from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray


__all__ = (
    "ENOUGH",
    "ByKey",
    "Told",
    "are_own",
    "by_key",
    "handed_on",
    "key_of",
    "keys_in",
)

ENOUGH: Final = 40.0  # Bits.
_OF_A_FRACTION: Final = 8.0  # Bits: hardly any two of a dataset's are equal by chance.
_MOST_ALONE: Final = 256  # Numbers of a row that are compared one by one.
_FEW_PARTS: Final = 8  # Of an array that are compared as well, as a pair of pictures.
_NONE: Final = np.empty(0)
Key = tuple[tuple[int, ...], bytes]
Leaves = list[NDArray[Any]]
Pair = tuple[int, int]
ByKey = dict[Key, tuple[NDArray[Any], list[int]]]
"""The parts of a row by what they hold, and where each is."""


@final
class Told:
    """How unlikely it is that values are equal by chance."""

    def __init__(self) -> None:
        self._arrays: Leaves = []

    def add(self, *arrays: NDArray[Any]) -> None:
        """Note values that were seen to be equal."""
        self._arrays += [array.ravel() for array in arrays]

    def bits(self, *, fewest_whole: int = 0) -> float:
        """Return minus the logarithm of about the probability, to base 2.

        Args:
            fewest_whole: Different whole numbers that there have to be to count.
        """
        values = np.concatenate([a.astype(np.float64) for a in self._arrays or [_NONE]])
        values = values[np.isfinite(values)]
        is_whole = values == np.round(values)
        bits = _OF_A_FRACTION * len(np.unique(values[~is_whole]))
        _, counts = np.unique(values[is_whole], return_counts=True)
        if len(counts) > fewest_whole:
            # Two are equal by chance with the sum of the squares of their shares.
            shares = counts / counts.sum()
            bits -= float(counts.sum() * np.log2(np.square(shares).sum()))
        return bits


def handed_on(one: ByKey, other: ByKey) -> dict[Pair, NDArray[Any]]:
    """Return what is one part of a row and another of the other row, by these parts."""
    # Example: (x[i], x[i + 1]) has x[i + 1] as part 1, and the next row has it as part 0.
    # What both hold in one place is no sign.
    return {
        (one[key][1][0], other[key][1][0]): one[key][0]
        for key in one.keys() & other.keys()
        if {*one[key][1]}.isdisjoint(other[key][1])
    }


def by_key(leaves: Leaves, *, numbers: bool) -> ByKey:
    """Return the parts of a row, and where each is: arrays, their own parts, numbers.

    Args:
        leaves: The arrays of the row.
        numbers: Whether each number of a short row is a part, too.
    """
    parts = [leaf for leaf in leaves if leaf.ndim]
    parts += [
        part
        for leaf in parts
        if 1 < len(leaf) <= _FEW_PARTS and leaf.ndim > 1
        for part in leaf
    ]
    if numbers and sum(leaf.size for leaf in leaves) <= _MOST_ALONE:
        parts += [np.asarray(number) for leaf in leaves for number in leaf.ravel()]
    found: ByKey = {}
    for place, part in enumerate(parts):
        found.setdefault(key_of(part), (part, []))[1].append(place)
    return found


def keys_in(pairs: Sequence[Sequence[ByKey]]) -> set[Key]:
    """Return what is in any of these rows."""
    return {key for pair in pairs for row in pair for key in row}


def key_of(part: NDArray[Any]) -> Key:
    """Return what tells arrays of other values or another shape apart."""
    return part.shape, part.astype(np.float64).tobytes()


def are_own(values: Leaves) -> bool:
    """Whether what was found at several places is equal there by no chance."""
    if not values:
        return False
    told = Told()
    told.add(*values)
    numbers = [float(value.flat[0]) for value in values]
    # Where an interval ends the next one begins, and time goes on.
    is_time = not values[0].ndim and numbers in (
        sorted(numbers),
        sorted(numbers, reverse=True),
    )
    return told.bits() >= ENOUGH and not is_time
