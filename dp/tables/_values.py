"""The values of one column, and the cell of the histogram that each lies in.

A value lies in exactly one cell: a number in one of 121 cells (a sign and a power of
two from 2^-20 to 2^40, and one cell for zero and what is closer to it), a missing value
in a cell of its own, and a text in one of 2^14 buckets by a public hash. Which one is a
function of the value alone: no other row has a part in it.

Shapes: ``N`` rows.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, final

import numpy as np
from numpy.typing import NDArray


__all__ = (
    "CELLS",
    "CELL_EDGES",
    "FIRST_BUCKET",
    "NO_VALUE",
    "NUMBERS",
    "ZERO",
    "Values",
    "bucket_of",
)

_POWERS: Final = np.exp2(np.arange(-20, 41, dtype=np.float64))
CELL_EDGES: Final[NDArray[np.float64]] = np.concatenate([-_POWERS[::-1], _POWERS])
NUMBERS: Final = len(CELL_EDGES) - 1  # Cells of numbers come first.
ZERO: Final = NUMBERS // 2
NO_VALUE: Final = NUMBERS
FIRST_BUCKET: Final = NUMBERS + 1
_BUCKETS: Final = 1 << 14
CELLS: Final = FIRST_BUCKET + _BUCKETS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def bucket_of(text: str) -> int:
    """Return the bucket of a text, which is the same on every machine.

    >>> bucket_of("Private"), bucket_of("Self-employed")
    (3844, 6344)
    """
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _BUCKETS


@final
@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """The values of one column.

    Attributes:
        numbers: The numbers, of shape (N,); NaN where a value is no finite number.
        buckets: The buckets of texts, of shape (N,); -1 where a value is no text.
    """

    numbers: Floats
    buckets: Integers

    @property
    def gaps(self) -> NDArray[np.bool_]:
        """Where there is no value."""
        return np.isnan(self.numbers) & (self.buckets < 0)

    @property
    def cells(self) -> Integers:
        """The cell of each value: numbers, no value, or a bucket."""
        numbers_N = np.nan_to_num(self.numbers)
        by_size_N = np.searchsorted(CELL_EDGES, numbers_N, side="right") - 1
        cells_N = np.clip(by_size_N, 0, NUMBERS - 1)
        cells_N = np.where(np.isnan(self.numbers), NO_VALUE, cells_N)
        return np.where(self.buckets >= 0, FIRST_BUCKET + self.buckets, cells_N)

    def __getitem__(self, rows: Integers) -> "Values":
        """Return the values of some rows."""
        return Values(self.numbers[rows], self.buckets[rows])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)
