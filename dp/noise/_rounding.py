r"""The exact sum of a number and a Gaussian, rounded to a lattice.

:class:`RoundedGaussian` replaces ``x`` by ``g * round((x + s * Z) / g)``, where ``Z`` is
standard normal, ``g`` is a power of two near ``s / 2**LATTICE_BITS`` and all of it
happens in the real numbers. Such a result says about ``x`` what the ideal Gaussian
mechanism says, rounded: the holes and uneven spacing of floating-point noise, by which
Mironov told two inputs apart, cannot show.

How real numbers are rounded correctly in floating point: ``Z`` is given by uniform
bits without end (Box-Muller takes a pair ``U, V`` to ``r cos(pi V), r sin(pi V)`` with
``r = sqrt(-2 log U)``), of which float32 sees the first 31 or 32. The value it computes
is within ``2**-11`` of the real one; unless it is that close to the midpoint of two
lattice points, both round alike. The few pairs that are too close, or for which the
error bound does not hold, are decided with more bits and digits (Ziv's strategy) by
:mod:`dp.noise._refinement`, which draws the next bits of the same ``U, V``.

The error bound, in units of the last place ``e = 2**-24`` of float32, if log, sin and
cos err by at most 4 of their ulps (numpy documents at most 4):

=======================  ====================================================
``U``                    relative ``2**-17 + 2 e`` at ``r = 4.5``, where the bits
                         end; ``2 e`` at ``r = 2**-5``; refined beyond either
``r``                    ``2**-17.8``
``cos(pi V)``            ``3 pi e + 2**-29 + 2**-21 <= 2**-19.8``
``Z``                    ``2**-17.8 + 4.5 * 2**-19.8 + 2**-21 <= 2**-16.6``
times ``s / g < 2**5``   ``2**-11.6``
plus the fraction of x   ``2**-11.6 + 2**-15.8 + 2**-17 <= 2**-11``
=======================  ====================================================

Shapes: ``P`` pairs of elements; in a vector, pair ``i`` is ``i`` and ``i + P``.

Done by numpy, on the host and on one thread: its float32 functions are the fastest
here, and torch would start its threads for dozens of operations too small for them.
"""

import math
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from dp._keystream import Keystream
from dp.noise._refinement import RADIUS_MASK, decide


__all__ = ("TOTAL_VARIATION", "RoundedGaussian", "granularity")

TOTAL_VARIATION: Final = 2.0**-128
_INT32: Final = np.dtype(np.int32)
_FLOAT32: Final = np.dtype(np.float32)
_LATTICE_BITS: Final = 4
# Float32 is trusted if it is this far from an integer, or further; see above.
_SAFE_DISTANCE: Final = 0.5 - 2.0**-11
# Radii for which the error bound holds, with a margin: from 2**-5 to 4.5.
_MIDDLE: Final = (4.5 + 2.0**-5) / 2
_REACH: Final = (4.5 - 2.0**-5) / 2

_Array = NDArray[Any]


def granularity(stddev: float) -> float:
    """Return the spacing of the lattice: a power of two, so that dividing is exact."""
    _mantissa, exponent = math.frexp(stddev)  # stddev in [1/2, 1) * 2**exponent
    return math.ldexp(1.0, exponent - 1 - _LATTICE_BITS)


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
        self._keystream = keystream
        self._buffers: dict[tuple[str, np.dtype[Any]], _Array] = {}

    @np.errstate(all="ignore")  # An infinite sum may become NaN, as with any noise.
    def add_(self, x: _Array) -> None:
        """Add noise to a contiguous vector of even length, in float32 or float64."""
        x_2P = x.reshape(2, -1)
        bits_2P = self._keystream.integers(len(x), _INT32).reshape(2, -1)
        noise_2P, radius_P = self._normals(bits_2P)
        whole_2P = self._buffer("whole", x_2P.shape, x.dtype)
        fraction_2P = self._buffer("fraction", x_2P.shape, x.dtype)
        np.multiply(x_2P, 1 / self._spacing, out=fraction_2P)
        np.rint(fraction_2P, out=whole_2P)
        fraction_2P -= whole_2P  # Exact: magnitudes are alike, or whole is 0.

        noise_2P *= self._scale
        noise_2P += fraction_2P
        steps_2P = np.rint(noise_2P, out=self._buffer("steps", x_2P.shape, _FLOAT32))
        noise_2P -= steps_2P
        pairs = _unsure(noise_2P, radius_P)
        steps_2P[:, pairs] = decide(
            bits_2P[:, pairs],
            fraction_2P[:, pairs].astype(np.float64),
            scale=self._scale,
            keystream=self._keystream,
        )
        whole_2P += steps_2P
        np.multiply(whole_2P, self._spacing, out=x_2P)

    def _normals(self, bits_2P: _Array) -> tuple[_Array, _Array]:
        """Box-Muller in float32; also returns the radii."""
        integers_P = self._buffer("integers", bits_2P[0].shape, _INT32)
        np.bitwise_and(bits_2P[0], RADIUS_MASK, out=integers_P)
        radius_P = self._buffer("radius", integers_P.shape, _FLOAT32)
        radius_P[:] = integers_P
        radius_P += 0.5
        radius_P *= 2.0**-31
        np.log(radius_P, out=radius_P)
        radius_P *= -2
        np.sqrt(radius_P, out=radius_P)
        angle_P = self._buffer("angle", integers_P.shape, _FLOAT32)
        angle_P[:] = bits_2P[1]
        angle_P *= math.pi * 2.0**-31
        noise_2P = self._buffer("noise", bits_2P.shape, _FLOAT32)
        np.cos(angle_P, out=noise_2P[0])
        np.sin(angle_P, out=noise_2P[1])
        noise_2P *= radius_P
        return noise_2P, radius_P

    def _buffer(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> _Array:
        """An uninitialised array, the same one again while chunks are alike.

        Fresh memory for every chunk would cost as much as the arithmetic.
        """
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[name, dtype] = np.empty(shape, dtype)
        return buffer


def _unsure(distance_2P: _Array, radius_P: _Array) -> _Array:
    """The pairs that float32 cannot be trusted to have rounded; uses up its inputs."""
    np.abs(distance_2P, out=distance_2P)
    risk_P = np.fmax(distance_2P[0], distance_2P[1], out=distance_2P[0])
    # One comparison for three: a radius at an end of its range counts as a midpoint.
    radius_P -= _MIDDLE
    np.abs(radius_P, out=radius_P)
    radius_P *= _SAFE_DISTANCE / _REACH
    np.fmax(risk_P, radius_P, out=risk_P)
    return np.flatnonzero(risk_P > _SAFE_DISTANCE)
