"""Whether rows of a dataset look like copies of each other, wherever they are.

To balance classes, rows of a rare one are often drawn again and again, and pairs are
made of a few examples: each of these is in many rows, and moves a sum once for each.
So is a number of a series in windows that overlap, also where they were shuffled. Equal
rows may also be several people's, where a row has few values. So some rows are
compared, and what looks like copies is told of, and not refused.

Example: rows of (x, y, z) are copies if those with equal x and y have equal z, and so on
for each of the three: no value is a row's own. Of answers to three questions, some with
equal x and y differ in z.

Not seen: copies that were changed, a few copies in a large dataset, and rows of whole
numbers, as of texts.

Shapes: ``N`` rows, ``C`` columns, which are numbers or several numbers each.
"""

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dp.sampling._common_parts import ENOUGH, Leaves, Told, by_key
from dp.sampling._shared_rows import AT_HAND, LEAST, leaves_of, shifted


__all__ = ("warn_of_copies",)

_MOST_AT_HAND: Final = 512  # Rows that are compared, of those in memory.
_MOST_READ: Final = 64  # Of others, as of files.
_MOST_NUMBERS: Final = 2**24  # Of all these rows together.
_MOST_COLUMNS: Final = 32
_HALF: Final = 32  # Of the bits of a number.
_FEWEST: Final = 3  # Different rows that have copies.
_MOST_OF_A_WINDOW: Final = 4096  # Numbers.
_MOST_CANDIDATES: Final = 2048  # Pairs that are compared.
_AGREEING: Final = 0.9  # Of pairs that are equal in all other columns.
_Numbers = NDArray[np.int64]
_Hashes = NDArray[np.uint64]
_Read = list[tuple[Leaves, int]]


def warn_of_copies(source: Any, rows: _Numbers, owners: _Numbers) -> None:
    """Warn if several rows of a dataset seem to be of the same examples.

    Args:
        source: What rows are read from.
        rows: Their numbers there.
        owners: The unit of each.
    """
    if len(rows) < LEAST:
        return
    try:
        read = _read(source, rows, owners)
        is_copied = bool(read) and any(
            are_seen(read) for are_seen in (_are_copies, _change_parts, _overlap)
        )
    except Exception:  # noqa: BLE001 -- of the caller's own types; training shows it
        return
    if is_copied:
        warnings.warn(
            "rows of the dataset have the same values as other rows, as where a rare class"
            " was drawn several times to balance it, where pairs are made of a few examples,"
            " or where windows of a series overlap. What is in several rows moves a sum once"
            " for each, which epsilon does not count. Leave each example in once, and weigh"
            " its loss instead; cut windows that do not overlap; or say whose rows they are:"
            " units=. If they are different people's, and equal by chance, all is well",
            stacklevel=5,
        )


def _read(source: Any, rows: _Numbers, owners: _Numbers) -> _Read:
    """Return the numbers of some rows, and whose they are."""
    most = min(len(rows), _MOST_AT_HAND if type(source) in AT_HAND else _MOST_READ)
    # Which ones is no secret, and nothing depends on it but a warning.
    chosen = np.random.default_rng(0).choice(len(rows), most, replace=False)
    read, size = [], 0
    for i in chosen:
        leaves = leaves_of(source, int(rows[i]))
        size += sum(leaf.size for leaf in leaves)
        if size > _MOST_NUMBERS:
            break
        read.append((leaves, int(owners[i])))
    return read


def _are_copies(read: _Read) -> bool:
    """Whether rows are equal to others, and not by chance."""
    flat = [_flat(leaves) for leaves, _ in read]
    hashes_NC = _by_column(flat)
    owners_N = np.array([owner for _, owner in read])
    total_N = hashes_NC.sum(1)
    _, firsts, times = np.unique(total_N, return_index=True, return_counts=True)
    repeated = [flat[i] for i in firsts[times > 1]]
    if len(repeated) < _FEWEST or not _are_own(repeated):
        return False
    # Where all but one column are equal, that one has to be, too.
    num_pairs = _num_pairs(total_N, owners_N)
    return num_pairs >= _FEWEST and all(
        num_pairs >= _AGREEING * _num_pairs(total_N - own_N, owners_N)
        for own_N in hashes_NC.T
    )


def _change_parts(read: _Read) -> bool:
    """Whether parts of rows are other parts of other rows, as of pairs of examples."""
    found: dict[object, tuple[NDArray[Any], set[int], set[int]]] = {}
    for leaves, owner in read:
        for key, (part, places) in by_key(leaves, numbers=False).items():
            _, at, of = found.setdefault(key, (part, set(), set()))
            at.add(places[0])
            of.add(owner)
    exchanged = [
        part
        for part, at, of in found.values()
        if len(at) > 1 and len(of) > 1 and _are_own([part])
    ]
    return len(exchanged) >= _FEWEST


def _overlap(read: _Read) -> bool:
    """Whether rows are other rows, shifted along an axis, in whatever order they are."""
    places: dict[object, list[int]] = {}
    begins: list[tuple[int, int, int, object]] = []
    for row, (leaves, _) in enumerate(read):
        for leaf, axis, slices in _along_axes(leaves):
            begins.append((row, leaf, axis, (leaf, axis, slices[0])))
            for key in slices[1:]:
                places.setdefault((leaf, axis, key), []).append(row)
    # Where a row begins within another one, all that follows has to be the same.
    candidates = (
        (read[within], read[row], leaf, axis)
        for row, leaf, axis, key in begins
        for within in places.get(key, ())
    )
    common = (
        shifted((one, other), leaf, axis)
        for (one, of_one), (other, of_other), leaf, axis in islice(
            candidates, _MOST_CANDIDATES
        )
        if of_one != of_other
    )
    found = (1 for values in common if values is not None and _are_own([values]))
    return len([*islice(found, _FEWEST)]) == _FEWEST


def _along_axes(leaves: Leaves) -> Iterator[tuple[int, int, list[bytes]]]:
    """Yield the slices of arrays along each axis, if the first one is of fractions."""
    for leaf, array in enumerate(leaves):
        for axis in range(array.ndim if array.size <= _MOST_OF_A_WINDOW else 0):
            slices = np.moveaxis(array, axis, 0)
            if len(slices) and (slices[0] != np.round(slices[0])).any():
                yield leaf, axis, [one.tobytes() for one in slices]


def _are_own(values: Leaves) -> bool:
    """Whether values are so many fractions that they are hardly equal by chance."""
    told = Told()
    told.add(*[value[value != np.round(value)] for value in values])
    return told.bits() >= ENOUGH


def _flat(leaves: Leaves) -> NDArray[np.float64]:
    return np.concatenate(
        [np.zeros(0), *(leaf.ravel().astype(float) for leaf in leaves)]
    )


def _by_column(flat: list[NDArray[np.float64]]) -> _Hashes:
    """Return [N, C] hashes of rows of one size, cut into columns; others all differ."""
    size = len(flat[0])
    if any(len(row) != size for row in flat) or size < 2:  # noqa: PLR2004 -- columns
        return np.arange(len(flat), dtype=np.uint64)[:, None]
    bits = np.stack(flat).view(np.uint64)
    draws = np.random.default_rng(0)
    bits ^= bits >> np.uint64(_HALF)  # What is multiplied carries upwards alone.
    bits *= 2 * draws.integers(2**63, size=size, dtype=np.uint64) + 1
    starts = np.arange(0, size, -(-size // _MOST_COLUMNS))
    return np.add.reduceat(bits, starts, axis=1)


def _num_pairs(values_N: _Hashes, owners_N: _Numbers) -> int:
    """Return how many pairs of rows of two units have equal values."""
    both = np.stack([values_N, owners_N.astype(np.uint64)], 1)
    _, times = np.unique(np.unique(both, axis=0)[:, 0], return_counts=True)
    return int((times * (times - 1) // 2).sum())
