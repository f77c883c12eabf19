"""Means and variances of columns whose rough place the histogram gave.

What a histogram of powers of two cannot see is the spread of numbers far from zero: all
years since 1024 lie in one cell.

The statistic adds, for every column, ``(u, u^2 - 1/2)`` with ``u = clip((x - centre) /
(3 scale), -1, 1)``, both rounded to a multiple of 2^-20. **Sensitivity**: a row's square
norm is at most 5/4 a column, so its L2 norm is at most ``sqrt(5/4 D)``. Without
rounding, ``u^2 + (u^2 - 1/2)^2 = u^4 + 1/4``. Rounded, ``u`` is 1 or at most 1 - 2^-20:
at 1 the second entry is exactly 1/2; below, ``u^4 <= 1 - 2^-18 + 2^-37``, and rounding
the second entry, which is at most 1/2, adds at most 2^-21 + 2^-42 to its square, which
is less than 2^-18 - 2^-37. The shift by 1/2 is what lowers the bound from 2 to 5/4. A
missing value adds ``(0, -1/2)``, of square norm 1/4. A row that is taken away, or
replaced by nothing, takes its vector away. Multiples of 2^-20 are added exactly in
float64 up to 2^33 rows.

Shapes: ``D`` columns, ``N`` rows.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from dp.query import Statistic
from dp.tables._values import Floats


__all__ = ("moments", "refined")

_GRID: Final = 2.0**20
_REACH: Final = 3.0
_MOST: Final = 1.25  # Of a row's square norm in one column.
_LEAST_VARIANCE: Final = 1e-8


def moments(
    columns: Sequence[Floats], centres: Sequence[float], scales: Sequence[float]
) -> Statistic:
    """Return the sums of both moments of every column, and their sensitivity.

    Args:
        columns: The numbers of each column; NaN where there is none.
        centres: The public centre of each.
        scales: The public scale of each, above 0.
    """
    sums_D2 = np.stack(
        [
            _rows(x_N, centre, scale).sum(axis=1)
            for x_N, centre, scale in zip(columns, centres, scales, strict=True)
        ]
    )
    return Statistic(
        name="sums and sums of squares of columns",
        sums=torch.from_numpy(sums_D2),
        sensitivity=math.sqrt(_MOST * len(columns)),
        reason=f"a row adds a vector of square norm at most 5/4 in each of"
        f" {len(columns)} columns",
    )


def _rows(x_N: Floats, centre: float, scale: float) -> Floats:
    """Return what each row adds in one column, of shape (2, N)."""
    with np.errstate(over="ignore"):  # Infinite is clipped, too.
        u_N = np.clip((x_N - centre) / (_REACH * scale), -1, 1)
    # Example: x at its centre adds (0, -1/2), of square norm 1/4; at three scales (1,
    # 1/2), of square norm 5/4, as does everything beyond.
    u_N = np.round(np.where(np.isnan(u_N), 0.0, u_N) * _GRID) / _GRID
    return np.stack([u_N, np.round((u_N**2 - 0.5) * _GRID) / _GRID])


def refined(
    noisy_2: Floats, *, stddev: float, num_rows: int, centre: float, scale: float
) -> tuple[float, float, bool]:
    """Return the mean and standard deviation that noisy sums say, and if they say both.

    They do not say a spread that their noise hides: the least that it may hide is taken.
    """
    first, second = noisy_2 / num_rows
    mean = float(np.clip(first, -1, 1))
    # Noise can make a variance negative; what it may hide is no less than this.
    least = max(2 * stddev / num_rows, _LEAST_VARIANCE)
    variance = float(second) + 0.5 - mean**2
    width = _REACH * scale
    spread = width * math.sqrt(max(variance, least))
    # The noise of the square of the mean comes to that of the second sum.
    is_measured = variance > least * math.hypot(1, 2 * mean)
    return centre + width * mean, spread, is_measured
