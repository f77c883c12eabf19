r"""The exact sum of a number and a Gaussian, rounded to a lattice.

:func:`add_and_round_` replaces ``x`` by ``g * round((x + s * Z) / g)``, where ``Z`` is
standard normal, ``g`` is a power of two near ``s / 2**LATTICE_BITS`` and all of it
happens in the real numbers. Such a result says about ``x`` what the ideal Gaussian
mechanism says, rounded: the holes and uneven spacing of floating-point noise, by which
Mironov told two inputs apart, cannot show.

How real numbers are rounded correctly in floating point: ``Z`` is given by uniform
bits without end (Box-Muller takes a pair ``U, V`` to ``r cos(pi V), r sin(pi V)`` with
``r = sqrt(-2 log U)``), of which float32 sees the first 31 or 32. The value it computes
is within ``_TOLERANCE`` of the real one; unless it is that close to the midpoint of two
lattice points, both round alike. The few pairs that are too close, or for which the
error bound does not hold, are decided with more bits and digits (Ziv's strategy) by
:mod:`dp.noise._refinement`, which draws the next bits of the same ``U, V``.

The error bound, in units of the last place ``e = 2**-24`` of float32, if log, sin and
cos err by at most 4 of their ulps (torch documents 1 to 2):

==================================  =============================================
``U``, first 31 bits, at least      relative ``2**-17 + 2 e``; at the other end
``2**-15`` (else refined)           ``2 e``, where ``r >= 2**-5`` (else refined)
``r``, at most 4.6                  ``2**-17.8``
``cos(pi V)``                       ``3 pi e + 2**-28 + 2**-21 <= 2**-19.8``
``Z``                               ``2**-17.8 + 4.6 * 2**-19.8 + 2**-21 <= 2**-16.6``
times ``s / g < 2**5``, plus x      ``2**-11.6 + 2**-15 + 2**-17 <= 2**-11``
==================================  =============================================
"""

import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp._keystream import Keystream
from dp.noise._refinement import Undecided, decide


__all__ = ("TOTAL_VARIATION", "add_and_round_", "granularity")

TOTAL_VARIATION: Final = 2.0**-128
_INT32: Final = np.dtype(np.int32)
_LATTICE_BITS: Final = 4
_TOLERANCE: Final = 2.0**-11
_MIN_BITS: Final = 1 << 16
_MIN_RADIUS: Final = 2.0**-5


def granularity(stddev: float) -> float:
    """Return the spacing of the lattice: a power of two, so that dividing is exact."""
    _mantissa, exponent = math.frexp(stddev)  # stddev in [1/2, 1) * 2**exponent
    return math.ldexp(1.0, exponent - 1 - _LATTICE_BITS)


def add_and_round_(x: Tensor, *, stddev: float, keystream: Keystream) -> None:
    """Add N(0, stddev**2) to a contiguous vector of even length, and round it.

    Args:
        x: Numbers in float32 or float64, on any device.
        stddev: Standard deviation, in the unit of *x*.
        keystream: Where the uniform bits come from.
    """
    spacing = granularity(stddev)
    half = len(x) // 2
    bits = torch.from_numpy(keystream.integers(len(x), _INT32)).to(x.device)
    radius_bits, angle_bits = bits[:half] & 0x7FFFFFFF, bits[half:]

    radius = radius_bits.float().add_(0.5).mul_(2.0**-31).log_().mul_(-2).sqrt_()
    angle = angle_bits.float().mul_(math.pi * 2.0**-31)
    noise = torch.empty(len(x), device=x.device)
    torch.cos(angle, out=noise[:half]).mul_(radius)
    torch.sin(angle, out=noise[half:]).mul_(radius)

    whole = x.mul(1 / spacing)
    fraction = whole.clone()
    fraction.sub_(whole.round_())  # Exact: of the same magnitude, or whole is 0.
    noise.mul_(stddev / spacing).add_(fraction)
    steps = noise.round()
    unsure = noise.sub_(steps).abs_() > 0.5 - _TOLERANCE
    unsure = unsure[:half] | unsure[half:]
    unsure |= (radius < _MIN_RADIUS) | (radius_bits < _MIN_BITS)
    (cosines,) = unsure.nonzero(as_tuple=True)
    if len(cosines):
        sines = cosines + half
        pairs = Undecided(
            radius_bits=_on_host(radius_bits[cosines].long()),
            angle_bits=_on_host(angle_bits[cosines].long()),
            cos_fractions=_on_host(fraction[cosines].double()),
            sin_fractions=_on_host(fraction[sines].double()),
            scale=stddev / spacing,
        )
        cos_steps, sin_steps = decide(pairs, keystream)
        steps[cosines] = torch.from_numpy(cos_steps).to(steps)
        steps[sines] = torch.from_numpy(sin_steps).to(steps)
    torch.mul(whole.add_(steps), spacing, out=x)


def _on_host(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array
