"""One histogram of all columns: magnitudes, spreads, gaps and frequent texts at once.

The statistic counts, for every column, how many rows lie in each cell, times the whole
weight ``w`` of the column. **Sensitivity**: a row lies in exactly one cell of each of
``D`` columns, so that it adds a vector of ``D`` numbers that are not zero, the columns'
weights, whose L2 norm is ``sqrt(sum of w^2)``; a row that is taken away, or replaced by
nothing, takes the same vector away. Weighted counts are whole numbers below 2^53: their
sums in float64 are exact.

Reading the noisy counts is post-processing. It prefers numbers that are usual in tables,
above zero and near one, where counts leave it open: a constant of this program.

Shapes: ``D`` columns, ``K`` cells of one column, ``N`` rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray

from dp.query import Statistic
from dp.tables._values import (
    CELL_EDGES,
    CELLS,
    FIRST_BUCKET,
    NO_VALUE,
    NUMBERS,
    ZERO,
    Floats,
    Values,
)


__all__ = ("ColumnSummary", "histogram", "summarize")

# How many standard deviations of its noise a count must exceed. There are 2^14 buckets
# a column, so that chance alone passes the first in one column of two hundred.
_FREQUENT: Final = 5.0
_HAS_GAPS: Final = 4.0
_HAS_NUMBERS: Final = 4.0
_MIDDLE: Final = (CELL_EDGES[1:] + CELL_EDGES[:-1]) / 2
_WIDTH: Final = np.diff(CELL_EDGES)
_UNUSUAL: Final = 0.5  # Deducted from numbers below zero, and for each power of 1024.
_POWERS: Final = np.where(
    np.arange(NUMBERS) == ZERO, 0, np.log2(np.abs(_MIDDLE) + 1e-9)
)
_DEDUCTION: Final = 1 + _UNUSUAL * (np.abs(_POWERS) / 10 + (_MIDDLE < 0))


def histogram(columns: Sequence[Values], weights: Sequence[int]) -> Statistic:
    """Return the weighted counts of every cell of every column, and their sensitivity.

    Args:
        columns: The columns.
        weights: By what each column's counts are multiplied, so that noise hides less
            of them and more of the others.
    """
    counts_DK = np.stack(
        [
            weight * np.bincount(column.cells, minlength=CELLS).astype(np.float64)
            for column, weight in zip(columns, weights, strict=True)
        ]
    )
    return Statistic(
        name="a histogram of magnitudes and categories",
        sums=torch.from_numpy(counts_DK),
        sensitivity=math.sqrt(sum(weight**2 for weight in weights)),
        reason=f"a row is counted once in each of {len(columns)} columns, with weights"
        f" whose squares sum to {sum(weight**2 for weight in weights)}",
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """What noisy counts say of one column.

    Attributes:
        centre: The mean of its numbers, roughly.
        scale: Their standard deviation, roughly.
        is_mostly_zero: Whether all but a few numbers lie in the cell of zero, so that
            only their sign says something.
        is_coarse: Whether its numbers share a sign and a power of two, so that their
            spread may be far smaller than the cell.
        has_numbers: Whether there seem to be numbers at all.
        has_gaps: Whether values are missing often enough to be noticed.
        buckets: The buckets of frequent texts.
        was_found: Whether anything in it stands out from the noise.
    """

    centre: float
    scale: float
    is_mostly_zero: bool
    is_coarse: bool
    has_numbers: bool
    has_gaps: bool
    buckets: tuple[int, ...]
    was_found: bool


def summarize(noisy_K: Floats, stddev: float) -> ColumnSummary:
    """Return what the noisy counts of one column say."""
    numbers = noisy_K[:NUMBERS]
    first, last, excess = _window(numbers, stddev)
    # Noise makes counts negative, which are no weights.
    inside = np.maximum(numbers[first : last + 1], 0)
    total = inside.sum()
    weights = inside / total if total > 0 else np.full(len(inside), 1 / len(inside))
    middle, width = _MIDDLE[first : last + 1], _WIDTH[first : last + 1]
    centre = float(weights @ middle)
    # Within a cell values are taken to be uniform: its width squared over 12.
    variance = float(weights @ ((middle - centre) ** 2 + width**2 / 12))
    frequent = noisy_K[FIRST_BUCKET:] > _FREQUENT * stddev
    # Without a frequent text, what is there is taken for numbers: a small table's
    # counts stand out from the noise only together.
    stands_out = excess > _HAS_NUMBERS * stddev
    has_numbers = stands_out or not frequent.any()
    return ColumnSummary(
        centre=centre,
        scale=math.sqrt(variance),
        is_mostly_zero=first == last == ZERO,
        is_coarse=first == last != ZERO and bool(stands_out),
        has_numbers=bool(has_numbers),
        has_gaps=bool(noisy_K[NO_VALUE] > _HAS_GAPS * stddev),
        buckets=tuple(int(b) for b in np.flatnonzero(frequent)),
        was_found=bool(frequent.any() or stands_out),
    )


def _window(noisy: NDArray[np.float64], stddev: float) -> tuple[int, int, float]:
    """Return the run of cells with the largest sum of (count - deduction), and that sum.

    Kadane's algorithm. The deduction is the noise's standard deviation, and more of it
    for unusual numbers. It ends a run among cells that are empty but for their noise,
    and keeps a stray value from stretching it.
    """
    best, first, last = -math.inf, 0, 0
    total, start = 0.0, 0
    for cell, value in enumerate(noisy - stddev * _DEDUCTION):
        # Example: 1, -3, 4, 5, -2 has the best run 4, 5: what came before is below
        # zero, and what comes after takes away.
        total, start = (value, cell) if total <= 0 else (total + value, start)
        if total > best:
            best, first, last = total, start, cell
    return first, last, float(best)
