r"""The lattice that noisy sums are rounded to, and the argument that rounding is exact.

:class:`dp.noise._host.rounded.RoundedGaussian` replaces ``x`` by
``g * round((x + s * Z) / g)``, where ``Z`` is standard normal, ``g`` is a power of two
near ``s / 2**4``, and all of it happens in the real numbers. Such a result is
a function of the ideal Gaussian mechanism's output. Floating-point noise is not: it has
holes and uneven spacing that depend on ``x``, by which Mironov (2012) told two inputs
apart. Sampling the discrete Gaussian (Canonne, Kamath and Steinke 2020) is another way
out; rounding keeps the accountant's Gaussian mechanism as it is.

How real numbers are rounded correctly in floating point: ``Z`` is the normal quantile
``Q(U)`` of a uniform number ``U`` with infinitely many bits, and only as many bits are
drawn as the rounding needs (the idea of Knuth and Yao, by Ziv's strategy). The first bits
leave an interval that ``Z`` lies in. If no midpoint of two lattice points can lie in that
interval, every ``Z`` of it rounds to the same point, and no more bits are drawn. Which
elements are decided by that is found in two stages:

1. In float32, with 24 bits: :mod:`dp.noise._host.float32_stage`, and the same operations
   as one compiled loop in :mod:`dp.noise._host.kernels.rounding`. It leaves 4 to 5 elements
   in 10,000: 3 for the tails beyond 3.6 standard deviations, which it never decides, and 1
   to 2 near midpoints.
2. With 64 more bits in float64, and if these are not enough with all 280 bits in 320-bit
   arithmetic: :mod:`dp.noise._host.exact`.

The interval of the first stage. The first 16 bits of ``U`` select one of 65,536 cells,
over which ``Q`` is replaced by the chord between its values at the two ends. The next 8
bits select one of 256 points on the chord. So ``Z`` differs from its point by at most

* 1/512 of the cell's width: half of the distance to the next point, for the bits that
  were not drawn; and
* 1/80 of the width: for the curvature of ``Q``. The chord deviates from it by at most
  ``h**2 / 8 * max |Q''|`` with ``h = 2**-16`` and ``Q'' = Q * Q'**2``. Both are largest at
  a cell's outer end, and the ratio to the width is largest at 3.6 standard deviations.

Together that is less than 1/64 of the width, which the table calls the cell's *reach*.

The errors of float32, in lattice units. ``s / g`` is below ``2**5``, so every point is
below ``2**7`` and every reach below ``2**-6``; ``R`` is the rounded sum.

====================================  ==================================================
the chord's start, in the table       ``2**-18``
reach times 0 to 255/4, both rounded  ``2**-23``
the point, their sum                  ``2**-18``
the point plus ``x / g``              ``2**-24 * |R| + 2**-25``
the distance plus reach and margin    ``2**-25``
quantiles in float64                  ``2**-34``
together                              less than ``2**-16 + 2**-23 * |R|``
====================================  ==================================================

``x / g`` is exact, since ``g`` is a power of two, and so is the distance of a float to the
integer next to it. If ``|R|`` is above ``2**22``, infinite or NaN, this stage decides
nothing. In the second stage the fraction of ``x / g`` is exact in float64.

A result of zero has no sign: in floating point it would be the sign of a sum that was not
computed exactly, and so reveal more than the lattice point that is promised.

References:
    Mironov, "On Significance of the Least Significant Bits for Differential Privacy",
    2012.
    Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", 2020.
    Knuth and Yao, "The Complexity of Nonuniform Random Number Generation", 1976.
    Ziv, "Fast Evaluation of Elementary Mathematical Functions with Correctly Rounded Last
    Bit", 1991.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self, final

import numpy as np
from numpy.typing import NDArray

from dp.noise._host.exact import FIRST_BITS, granularity, quantiles


__all__ = (
    "CELL_BITS",
    "FLOAT32_ERROR",
    "FLOAT32_ERROR_OF_SUM",
    "POINT_BITS",
    "POINT_DISTANCE",
    "Lattice",
    "cells",
)

CELL_BITS: Final = 16
POINT_BITS: Final = FIRST_BITS - CELL_BITS
# Cells further out are left to float64: over them Q is too curved for 1/64 of the width.
_LARGEST_CENTRE: Final = 3.6
_REACH_PER_WIDTH: Final = 2.0**-6
POINT_DISTANCE: Final = (
    2.0**-POINT_BITS / _REACH_PER_WIDTH
)  # Of neighbours, in reaches.
FLOAT32_ERROR: Final = 2.0**-16
FLOAT32_ERROR_OF_SUM: Final = 2.0**-23


@lru_cache(maxsize=1)
def cells() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centre of every cell, and half of its width.

    The outermost two reach to infinity; their centres are their inner ends.
    """
    edges = quantiles(np.linspace(0, 1, (1 << CELL_BITS) + 1))
    centres, halves = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    centres[0], centres[-1] = edges[1], edges[-2]
    return centres, halves


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Lattice:
    """The lattice for one standard deviation, and the table of the float32 stage.

    Attributes:
        spacing: A power of two.
        scale: The standard deviation in lattice units: at least 16 and below 32.
        chords: A row per cell, in lattice units and float32: the first of its 256
            points, NaN where float32 must not decide, and its reach. They lie side by
            side, so that a look-up costs one cache miss.
        columns: The same as two rows, contiguous, as numpy takes from them.
    """

    spacing: float
    scale: float
    chords: NDArray[np.float32]
    columns: NDArray[np.float32]

    @classmethod
    def of(cls, stddev: float) -> Self:
        """Return the lattice for a standard deviation."""
        spacing = granularity(stddev)
        scale = stddev / spacing
        columns, chords = _chords(scale)
        return cls(spacing=spacing, scale=scale, chords=chords, columns=columns)


@lru_cache(maxsize=2)
def _chords(scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    centres, halves = cells()
    inner = np.abs(centres) < _LARGEST_CENTRE
    # Points are at the middles of 256 equal parts of the chord.
    first = centres - halves * (1 - 2.0**-POINT_BITS)
    columns = np.empty((2, 1 << CELL_BITS), np.float32)
    columns[0] = np.where(inner, first * scale, np.nan)
    columns[1] = np.where(inner, 2 * halves * scale * _REACH_PER_WIDTH, 0)
    return columns, np.ascontiguousarray(columns.T)
