"""Decide, with more bits and more digits, what float32 could not round.

A pair of normals is given by two infinite sequences of uniform bits. Here the
sequences of a few pairs are continued, first by 64 bits each in float64, and where
that is not enough by another 192 with 320-bit arithmetic. See
:mod:`dp.noise._rounding` for the argument that this makes rounding exact.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, final

import mpmath
import numpy as np
from numpy.typing import NDArray

from dp._keystream import Keystream


__all__ = ("Undecided", "decide")

# Within the float64 error, in lattice units: see _decide_in_float64.
_TOLERANCE: Final = 2.0**-36
_MIN_RADIUS: Final = 2.0**-10
_MIN_UNIFORM: Final = 2.0**-12  # In units of the last of the first 31 bits.
_DIGITS: Final = 320  # Bits of precision of the last resort.

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """Pairs whose rounding needs more digits.

    Attributes:
        radius_bits: First 31 bits of each ``U``, as integers.
        angle_bits: First 32 bits of each ``V``, as signed integers.
        cos_fractions: What is added to the cosine's normal, in lattice units.
        sin_fractions: What is added to the sine's.
        scale: Standard deviation in lattice units.
    """

    radius_bits: _Integers
    angle_bits: _Integers
    cos_fractions: _Floats
    sin_fractions: _Floats
    scale: float


def decide(pairs: Undecided, keystream: Keystream) -> tuple[_Floats, _Floats]:
    """Return each ``round(fraction + scale * Z)`` for the cosines and the sines."""
    radius_more = keystream.integers(len(pairs.radius_bits), np.dtype(np.uint64))
    angle_more = keystream.integers(len(pairs.angle_bits), np.dtype(np.uint64))
    cos_steps, sin_steps, unsure = _decide_in_float64(pairs, radius_more, angle_more)
    for i in np.flatnonzero(unsure):
        more = keystream.integers(6, np.dtype(np.uint64)).tolist()
        u = _continued(pairs.radius_bits[i], radius_more[i], *more[:3])
        v = _continued(pairs.angle_bits[i], angle_more[i], *more[3:])
        cos_steps[i], sin_steps[i] = _decide_exactly(
            u, v, pairs.cos_fractions[i], pairs.sin_fractions[i], pairs.scale
        )
    return cos_steps, sin_steps


def _decide_in_float64(
    pairs: Undecided, radius_more: NDArray[np.uint64], angle_more: NDArray[np.uint64]
) -> tuple[_Floats, _Floats, NDArray[np.bool_]]:
    """Round in float64, and say for which pairs it may be wrong.

    Errors, with ``e = 2**-53`` and functions within 4 ulps: ``U`` is off by ``2 e``
    relative, so ``r >= 2**-10`` by ``2**-42``; the angle by ``3 pi e``, so the cosine
    by ``2**-48.8``; ``Z`` by ``2**-41.8``; in lattice units by less than ``2**-36``.
    """
    uniform = pairs.radius_bits + radius_more * 2.0**-64
    radius = np.sqrt(-2 * np.log(uniform * 2.0**-31))
    angle = (pairs.angle_bits + angle_more * 2.0**-64) * (math.pi * 2.0**-31)
    cos_sum = pairs.cos_fractions + pairs.scale * (radius * np.cos(angle))
    sin_sum = pairs.sin_fractions + pairs.scale * (radius * np.sin(angle))
    cos_steps, sin_steps = np.rint(cos_sum), np.rint(sin_sum)
    unsure = (uniform < _MIN_UNIFORM) | (radius < _MIN_RADIUS)
    for sums, steps in ((cos_sum, cos_steps), (sin_sum, sin_steps)):
        unsure |= np.abs(sums - steps) > 0.5 - _TOLERANCE
    return cos_steps, sin_steps, unsure


def _continued(first: Any, *more: Any) -> int:
    """Join the first bits and words of 64 more into one integer."""
    joined = int(first)
    for word in more:
        joined = (joined << 64) | int(word)
    return joined


def _decide_exactly(
    u: int, v: int, cos_fraction: float, sin_fraction: float, scale: float
) -> tuple[int, int]:
    """Round with 320-bit arithmetic; wrong with probability below ``2**-130``."""
    exact: Any = mpmath.MPContext()  # Its own, because mpmath.mp is global state.
    exact.prec = _DIGITS
    uniform = exact.ldexp(2 * u + 1, -(31 + 256 + 1))
    angle = exact.pi * exact.ldexp(2 * v + 1, -(31 + 256 + 1))
    radius = exact.sqrt(-2 * exact.log(uniform))
    return (
        int(exact.nint(cos_fraction + scale * radius * exact.cos(angle))),
        int(exact.nint(sin_fraction + scale * radius * exact.sin(angle))),
    )
