"""Decide, with more bits and more digits, what float32 could not round.

A pair of normals is given by two infinite sequences of uniform bits. Here the
sequences of a few pairs are continued, first by 64 bits each in float64, and where
that is not enough by another 192 with 320-bit arithmetic. See
:mod:`dp.noise._rounding` for the argument that this makes rounding exact.
"""

import math
from typing import Any, Final

import mpmath
import numpy as np
from numpy.typing import NDArray

from dp._keystream import Keystream


__all__ = ("RADIUS_MASK", "decide")

RADIUS_MASK: Final = 0x7FFFFFFF  # U has no sign, so it keeps 31 bits.

_UINT64: Final = np.dtype(np.uint64)
# Float64 is trusted if it is this far from an integer, or further.
_SAFE_DISTANCE: Final = 0.5 - 2.0**-36
_MIN_RADIUS: Final = 2.0**-10
_MIN_UNIFORM: Final = 2.0**-12  # In units of the last of the first 31 bits.
_PRECISION: Final = 320  # Bits of the last resort.

_Integers = NDArray[np.integer[Any]]
_Floats = NDArray[np.float64]


def decide(
    bits_2P: _Integers, fraction_2P: _Floats, *, scale: float, keystream: Keystream
) -> _Floats:
    """Return ``round(fraction + scale * Z)`` for pairs of normals ``Z``.

    Args:
        bits_2P: The first bits of each ``U`` and of each ``V``.
        fraction_2P: What is added to the cosine's normal and to the sine's.
        scale: Standard deviation of the noise, in lattice units: below 32.
        keystream: Where the next bits come from.
    """
    bits_2P = np.stack((bits_2P[0] & RADIUS_MASK, bits_2P[1]))
    more_2P = keystream.integers(bits_2P.size, _UINT64).reshape(bits_2P.shape)
    steps_2P, unsure_P = _in_float64(bits_2P, more_2P, fraction_2P, scale)
    for i in np.flatnonzero(unsure_P):
        rest_2W = keystream.integers(6, _UINT64).reshape(2, 3)
        u, v = (
            _joined(first, more, *rest)
            for first, more, rest in zip(
                bits_2P[:, i], more_2P[:, i], rest_2W, strict=True
            )
        )
        steps_2P[:, i] = _exactly(u, v, fraction_2P[:, i], scale)
    return steps_2P


def _in_float64(
    bits_2P: _Integers, more_2P: _Integers, fraction_2P: _Floats, scale: float
) -> tuple[_Floats, NDArray[np.bool_]]:
    """Round in float64, and say for which pairs it may be wrong.

    Errors, with ``e = 2**-53`` and functions within 4 ulps: ``U`` is off by ``2 e``
    relative, so ``r >= 2**-10`` by ``2**-41.8``; the angle by ``3 pi e``, so the cosine
    by ``2**-48.7``; ``Z`` by ``2**-41.6``; in lattice units by less than ``2**-36``.
    """
    uniform_P, angle_P = bits_2P + more_2P * 2.0**-64
    radius_P = np.sqrt(-2 * np.log(np.maximum(uniform_P, _MIN_UNIFORM) * 2.0**-31))
    angle_P *= math.pi * 2.0**-31
    normal_2P = radius_P * np.stack((np.cos(angle_P), np.sin(angle_P)))
    sum_2P = fraction_2P + scale * normal_2P
    steps_2P = np.rint(sum_2P)
    unsure_P = (np.abs(sum_2P - steps_2P) > _SAFE_DISTANCE).any(axis=0)
    unsure_P |= (uniform_P < _MIN_UNIFORM) | (radius_P < _MIN_RADIUS)
    return steps_2P, unsure_P


def _joined(*words: Any) -> int:
    """Continue the bits of the first word by those of the others, 64 each."""
    joined = 0
    for word in words:
        joined = (joined << 64) + int(word)
    return joined


def _exactly(u: int, v: int, fraction_2: _Floats, scale: float) -> tuple[int, int]:
    """Round with 320-bit arithmetic; wrong with probability below ``2**-130``."""
    exact: Any = mpmath.MPContext()  # Its own, because mpmath.mp is global state.
    exact.prec = _PRECISION
    unit = -(31 + 64 * 4)
    uniform = exact.ldexp(2 * u + 1, unit - 1)  # The middle of what the bits leave.
    angle = exact.pi * exact.ldexp(2 * v + 1, unit - 1)
    radius = exact.sqrt(-2 * exact.log(uniform))
    return (
        int(exact.nint(fraction_2[0] + scale * radius * exact.cos(angle))),
        int(exact.nint(fraction_2[1] + scale * radius * exact.sin(angle))),
    )
