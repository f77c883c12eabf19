r"""The exact sum of a number and a Gaussian, rounded to a lattice.

:class:`RoundedGaussian` replaces ``x`` by ``g * round((x + s * Z) / g)``, where ``Z`` is
standard normal, ``g`` is a power of two near ``s / 2**LATTICE_BITS`` and all of it
happens in the real numbers. Such a result says about ``x`` what the ideal Gaussian
mechanism says, rounded: the holes and uneven spacing of floating-point noise, by which
Mironov told two inputs apart, cannot show.

How real numbers are rounded correctly in floating point: ``Z`` is the normal quantile
of a uniform number ``U`` with bits without end, and only as many bits are drawn as the
rounding needs (Knuth and Yao's idea, Ziv's strategy). The first 16 bits leave a cell of
65536 that ``Z`` lies in. Its centre comes from a table; if the midpoint of two lattice
points is further away than the cell reaches, every ``Z`` of the cell rounds alike, and
no more bits are drawn. Which elements are decided by that is found in three stages:

1. In float32, with the reach of the widest cell within 2.5 standard deviations for all,
   and none for what lies outside. It leaves 2 to 4 percent.
2. In float64, with each cell's own reach. It leaves 0.2 to 0.4 percent.
3. With more bits and digits: :mod:`dp.noise._host.exact`.

A short vector starts with the second stage, which takes it less time than to sort out
what the first one leaves.

The error bound of the first stage, in lattice units. ``s / g`` is below ``2**5``, so the
centre is below ``2**6.4``, and ``M`` is the largest ``|x / g|`` of the vector:

=========================  ==================================================
the centre in float32      ``2**-18``
the sum with ``x / g``     ``2**-24 * (M + 2**6.4)``
the bound itself           ``2**-25``
together                   ``2**-16 + 2**-24 * M``
=========================  ==================================================

``x / g`` is exact, and so are the distance of a float to the integer next to it and, in
the second stage, the fraction of ``x / g`` in float64. Where ``M`` is very large, infinite
or NaN, the first stage decides nothing.

A result of zero has no sign: in floating point it would be the sign of a sum that was not
computed exactly, and so more than the lattice point that is promised.

Shapes: ``N`` elements of a vector, ``C`` of them that float32 did not decide, ``E`` of
these that float64 left.

Done by numpy, on the host and on one thread: torch would start its threads for dozens
of operations too small for them.
"""

import math
from functools import lru_cache
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from dp import _tuning
from dp._keystream import Keystream
from dp.noise._host.exact import FIRST_BITS, quantiles, round_refined


__all__ = (
    "FLOAT32_ERROR",
    "FLOAT32_ERROR_OF_X",
    "TOTAL_VARIATION",
    "RoundedGaussian",
    "granularity",
    "lattice_table",
)

TOTAL_VARIATION: Final = 2.0**-128

_UINT16: Final = np.dtype(np.uint16)
_INT64: Final = np.dtype(np.int64)
_FLOAT32: Final = np.dtype(np.float32)
_BOOL: Final = np.dtype(np.bool_)
_LATTICE_BITS: Final = 4
_LARGEST_CENTRE: Final = 2.5  # Cells further out are left to float64.
FLOAT32_ERROR: Final = 2.0**-16
FLOAT32_ERROR_OF_X: Final = 2.0**-23
_FLOAT64_ERROR: Final = 2.0**-36

_Array = NDArray[Any]


def granularity(stddev: float) -> float:
    """Return the spacing of the lattice: a power of two, so that dividing is exact."""
    _mantissa, exponent = math.frexp(stddev)  # stddev in [1/2, 1) * 2**exponent
    return math.ldexp(1.0, exponent - 1 - _LATTICE_BITS)


@lru_cache(maxsize=1)
def _cells() -> _Array:
    """The centre of every cell and how far it reaches; the ends reach to infinity.

    They stand side by side, since looking one up costs a miss of the cache.
    """
    edges = quantiles(np.linspace(0, 1, (1 << FIRST_BITS) + 1))
    centres, reaches = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    centres[0], centres[-1] = edges[1], edges[-2]
    return np.stack((centres, reaches), axis=1)


@lru_cache(maxsize=2)
def lattice_table(scale: float) -> tuple[_Array, float]:
    """Centres in lattice units, NaN where float32 must not decide; the longest reach."""
    centres, reaches = _cells().T
    inner = np.abs(centres) < _LARGEST_CENTRE
    table = np.where(inner, centres * scale, np.nan).astype(np.float32)
    return table, float(reaches[inner].max()) * scale


@final
class RoundedGaussian:
    """The noise of one call: N(0, stddev**2), added to vectors and rounded.

    Args:
        stddev: Standard deviation, in the unit of the vectors.
        keystream: Where the uniform bits come from.
    """

    def __init__(self, *, stddev: float, keystream: Keystream) -> None:
        self._spacing = granularity(stddev)
        self._scale = stddev / self._spacing
        self._centres, self._reach = lattice_table(self._scale)
        self._keystream = keystream
        self._buffers: dict[tuple[str, np.dtype[Any]], _Array] = {}

    @np.errstate(all="ignore")  # An infinite sum may become NaN, as with any noise.
    def add_(self, x_N: _Array) -> None:
        """Add noise to a contiguous vector, in float32 or float64."""
        words_N = self._buffer("words", x_N, _UINT16)
        self._keystream.fill(words_N)
        if len(x_N) <= _tuning.SHORT_VECTOR:
            x_N[:] = self._decided(x_N, words_N)
        else:
            self._add_long(x_N, words_N)
        x_N += 0.0  # -0 + 0 is 0.

    def _add_long(self, x_N: _Array, words_N: _Array) -> None:
        steps_N = np.multiply(x_N, 1 / self._spacing, out=self._buffer("steps", x_N))
        candidates_C = self._round(steps_N, words_N)
        decided_C = self._decided(x_N.take(candidates_C), words_N.take(candidates_C))
        np.multiply(steps_N, self._spacing, out=x_N)
        x_N[candidates_C] = decided_C

    def _round(self, steps_N: _Array, words_N: _Array) -> _Array:
        """Add noise in float32 and round, in place; return where that may be wrong."""
        noise_N = self._noise(words_N)
        largest = max(float(steps_N.max(initial=0)), -float(steps_N.min(initial=0)))
        distance_N = noise_N  # Of the same memory, if of the same dtype.
        if distance_N.dtype != steps_N.dtype:
            distance_N = self._buffer("distance", steps_N)
        np.add(steps_N, noise_N, out=distance_N)
        np.rint(distance_N, out=steps_N)
        distance_N -= steps_N
        np.abs(distance_N, out=distance_N)
        safe = 0.5 - self._reach - FLOAT32_ERROR - FLOAT32_ERROR_OF_X * largest
        is_safe_N = self._buffer("is safe", steps_N, _BOOL)
        np.less_equal(distance_N, safe, out=is_safe_N)  # False if either is NaN.
        return np.flatnonzero(np.logical_not(is_safe_N, out=is_safe_N))

    def _noise(self, words_N: _Array) -> _Array:
        """The centre of every word's cell in lattice units, or NaN."""
        noise_N = self._buffer("noise", words_N, _FLOAT32)
        for start in range(0, len(words_N), _tuning.LOOK_UPS_AT_ONCE):
            part = slice(start, start + _tuning.LOOK_UPS_AT_ONCE)
            indices = self._buffer("indices", words_N[part], _INT64)
            indices[:] = words_N[part]
            np.take(self._centres, indices, out=noise_N[part], mode="clip")
        return noise_N

    def _decided(self, x_C: _Array, words_C: _Array) -> _Array:
        """Return the results of some elements, rounded in float64 or exactly."""
        centre_C, reach_C = _cells().take(words_C, axis=0).T
        fraction_C = x_C.astype(np.float64) * (1 / self._spacing)
        whole_C = np.rint(fraction_C)
        fraction_C -= whole_C  # Exact: magnitudes are alike, or whole is 0.
        sum_C = fraction_C + centre_C * self._scale
        steps_C = np.rint(sum_C)
        safe_C = 0.5 - _FLOAT64_ERROR - reach_C * self._scale
        unsure_E = np.flatnonzero(np.abs(sum_C - steps_C) > safe_C)
        if len(unsure_E):
            steps_C[unsure_E] = round_refined(
                words_C[unsure_E],
                fraction_C[unsure_E],
                scale=self._scale,
                keystream=self._keystream,
            )
        steps_C += whole_C
        steps_C *= self._spacing
        decided_C: _Array = steps_C
        return decided_C

    def _buffer(
        self, name: str, like: _Array, dtype: np.dtype[Any] | None = None
    ) -> _Array:
        """An uninitialised array, the same one again while vectors are alike.

        Fresh memory for every vector would cost as much as the arithmetic.
        """
        dtype = like.dtype if dtype is None else dtype
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < like.size:
            buffer = self._buffers[name, dtype] = np.empty(like.shape, dtype)
        return buffer[: like.size]
