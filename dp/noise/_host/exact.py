"""Second rounding stage: the remaining elements, with as many bits as they need.

A normal ``Z`` is the quantile of a uniform number ``U``, whose bits have no end. Here the
bits of a few elements are continued: first by 64 each in float64, and if that is not
enough, by another 192 with 320-bit arithmetic. See :mod:`dp.noise._host.lattice` for the
argument that this makes rounding exact.

Shapes: ``E`` elements.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray

from dp._keystream import Keystream


__all__ = (
    "FIRST_BITS",
    "MIN_PROBABILITY",
    "MORE_BITS",
    "REST_BITS",
    "SAFE_DISTANCE",
    "TOTAL_VARIATION",
    "decide",
    "granularity",
    "quantiles",
    "round_exact",
    "round_refined",
)

TOTAL_VARIATION: Final = 2.0**-128
_LATTICE_BITS: Final = 4

FIRST_BITS: Final = 24  # Drawn by the float32 stage of the host.

MORE_BITS: Final = 64
REST_BITS: Final = 192
_UINT64: Final = np.dtype(np.uint64)
# Float64 is trusted if it is this far from an integer, or further.
SAFE_DISTANCE: Final = 0.5 - 2.0**-31
MIN_PROBABILITY: Final = 2.0**-40
_PRECISION: Final = 320  # Bits of the last resort.

_Integers = NDArray[np.integer[Any]]
_Floats = NDArray[np.float64]


def granularity(stddev: float) -> float:
    """Return the spacing of the lattice: a power of two, so that dividing is exact."""
    _mantissa, exponent = math.frexp(stddev)  # stddev in [1/2, 1) * 2**exponent
    return math.ldexp(1.0, exponent - 1 - _LATTICE_BITS)


def decide(
    x_E: _Floats, bits_E: _Integers, *, stddev: float, keystream: Keystream
) -> _Floats:
    """Return the rounded sums of elements and noise, with as many bits as they need.

    Args:
        x_E: The sums without noise.
        bits_E: The first 24 bits of each ``U``.
        stddev: Standard deviation, in the unit of the sums.
        keystream: The source of further bits.
    """
    if not len(x_E):
        return x_E
    spacing = granularity(stddev)
    # Example: a sum of 0.3 on a lattice of 1/16 is 4.8 steps: 5 whole ones, and -0.2
    # to which noise is added.
    fraction_E = x_E * (1 / spacing)
    whole_E = np.rint(fraction_E)
    fraction_E -= whole_E  # Exact: magnitudes are alike, or whole is 0.
    steps_E = round_refined(
        bits_E, fraction_E, scale=stddev / spacing, keystream=keystream
    )
    steps_E += whole_E
    steps_E *= spacing
    return steps_E + 0.0  # -0 + 0 is 0.


def round_refined(
    bits_E: _Integers, fraction_E: _Floats, *, scale: float, keystream: Keystream
) -> _Floats:
    """Return ``round(fraction + scale * Z)`` for normals ``Z``.

    Args:
        bits_E: The first 24 bits of each ``U``.
        fraction_E: The numbers that noise is added to.
        scale: Standard deviation of the noise, in lattice units: below 32.
        keystream: The source of further bits.
    """
    # 64 bits for all of the few at once; 192 more for single ones, about 1 in 2**30.
    more_E = np.empty(len(bits_E), _UINT64)
    keystream.fill(more_E)
    steps_E, unsure_E = _in_float64(bits_E, more_E, fraction_E, scale)
    if not unsure_E.any():  # The usual call.
        return steps_E
    # A sum without a value stays so; more digits would search for it without an end.
    unsure_E &= np.isfinite(steps_E)
    for i in np.flatnonzero(unsure_E):
        rest_3 = np.empty(REST_BITS // 64, _UINT64)
        keystream.fill(rest_3)
        words = [bits_E[i], more_E[i], *rest_3]
        steps_E[i] = round_exact(
            words,
            float(fraction_E[i]),
            scale,
            int(steps_E[i]),
            num_bits=FIRST_BITS + MORE_BITS + REST_BITS,
        )
    return steps_E


def quantiles(probability_E: _Floats) -> _Floats:
    """Return the normal quantiles of probabilities in float64 (Cephes' ndtri)."""
    quantile_E: _Floats = torch.special.ndtri(torch.from_numpy(probability_E)).numpy()
    return quantile_E


def _in_float64(
    bits_E: _Integers, more_E: NDArray[np.uint64], fraction_E: _Floats, scale: float
) -> tuple[_Floats, NDArray[np.bool_]]:
    """Round in float64; also return a mask of the elements where that may be wrong.

    The smaller of ``U`` and ``1 - U`` is computed, so that both tails are alike. Its
    relative error is at most ``2**-51``, and further bits could add ``2**-88``; for
    ``U > 2**-40`` that moves ``Z`` by ``2**-46`` at most, since ``U / density(Z) <= 1.26``.
    The quantile function errs by less than ``2**-40``. In lattice units, with the rounding
    of the sum: less than ``2**-33``.
    """
    # In as few calls as will do: there are a dozen elements of a small model, and each
    # call takes as long as a thousand would.
    half = 1 << (FIRST_BITS - 1)
    # Example: U = 0.9 is computed as 1 - 0.9 with the sign turned, since 0.1 has more
    # digits left of the tail than 0.9 has.
    upper_E = bits_E >= half
    bits_E = np.where(upper_E, 2 * half - 1 - bits_E.astype(np.int64), bits_E)
    more_E = np.where(upper_E, ~more_E, more_E)
    tail_E = more_E.astype(np.float64)
    tail_E *= 2.0**-MORE_BITS
    tail_E += bits_E
    tail_E *= 2.0**-FIRST_BITS
    unsure_E = tail_E < MIN_PROBABILITY
    np.maximum(tail_E, 2.0 ** -(FIRST_BITS + MORE_BITS), out=tail_E)
    sum_E = quantiles(tail_E)
    np.negative(sum_E, out=sum_E, where=upper_E)
    sum_E *= scale
    sum_E += fraction_E
    steps_E = np.rint(sum_E)
    sum_E -= steps_E
    # A sum within 2**-31 of a midpoint, where errors of 2**-33 could decide.
    unsure_E |= np.abs(sum_E, out=sum_E) > SAFE_DISTANCE
    return steps_E, unsure_E


def round_exact(
    words: Sequence[Any], fraction: float, scale: float, guess: int, *, num_bits: int
) -> int:
    """Round with 320-bit arithmetic; wrong with probability below ``2**-130``.

    ``Z`` is beyond the midpoint of two lattice points if ``U`` is beyond the midpoint's
    normal probability, which is easier to compute than a quantile.

    Args:
        words: The bits of ``U``, signed or not: the first ones, then 64 in each word.
        fraction: The number that noise is added to.
        scale: Standard deviation of the noise.
        guess: An integer to start the search from.
        num_bits: How many bits there are in *words*.
    """
    exact: Any = mpmath.MPContext()  # Its own, because mpmath.mp is global state.
    exact.prec = _PRECISION
    # The middle of the interval that the bits leave.
    u = exact.ldexp(2 * _joined(*words) + 1, -num_bits - 1)

    def is_below(midpoint: float) -> bool:
        # round(fraction + scale * Z) is at most k if Z is below (k + 1/2 - fraction) /
        # scale, and so U below that number's normal probability.
        z = (exact.mpf(midpoint) - fraction) / scale
        return bool(u < exact.ncdf(z))

    steps = guess
    # The guess is seldom off by more than one, and float64 has no say in where this
    # ends.
    while is_below(steps - 0.5):
        steps -= 1
    while not is_below(steps + 0.5):
        steps += 1
    return steps


def _joined(*words: Any) -> int:
    """Append 64-bit words to the bits of the first word."""
    joined = 0
    for word in words:
        joined = (joined << 64) + int(word) % (1 << 64)
    return joined
