"""Which sums of steps noise is added to, so that the noise of steps cancels in part.

Independent noise adds up: after t steps of SGD its variance is t times that of one. What
is released here are sums ``x_t`` with noise ``n_t`` such that ``c_0 n_t + ... + c_(b-1)
n_(t-b+1)`` is independent noise: each ``n_t`` takes back a part of those before it.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, final

from dp import _checks
from dp.noise._prefix_sums import optimal, prefix_error, square_root


__all__ = ("BandedNoise",)

_MANTISSA: Final = 24  # Bits of a float32, which coefficients have at most.


@final
@dataclass(frozen=True, slots=True)
class BandedNoise:
    """Noise that is correlated over as many steps as there are coefficients.

    It is the noise of the mechanism that releases ``c_0 x_t + ... + c_(b-1) x_(t-b+1)``
    with independent noise, and from that computes each ``x_t``: C with these
    coefficients below its diagonal is a lower-triangular Toeplitz matrix, and what is
    released is ``C^-1 (C x + z) = x + C^-1 z``.

    >>> BandedNoise.square_root(3).coefficients
    (1.0, 0.5, 0.375)
    >>> round(BandedNoise.optimal(2, steps=128).prefix_error(128), 6)
    5.828211

    Args:
        coefficients: ``c_0, ..., c_(b-1)``, the first of them above 0. Only their
            ratios matter.

    Raises:
        ValueError: If there is none, if the first is not above 0, or if one is not a
            finite number.

    Guarantees:
        * The Euclidean norm of :attr:`unit_coefficients` is 1 at most, without rounding.

    References:
        Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", 2023:
        https://arxiv.org/abs/2306.08153. Square root: Fichtenberger, Henzinger,
        Upadhyay, "Constant matters", 2022: https://arxiv.org/abs/2202.11205.
    """

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        values = self.coefficients
        if not isinstance(values, tuple) or not values:
            raise ValueError(
                f"coefficients must be a tuple of at least one number, got"
                f" {_checks.shown(values)}"
            )
        if not all(math.isfinite(c) for c in values) or values[0] <= 0:
            raise ValueError(
                "coefficients must be finite numbers, the first of them above 0, got"
                f" {values!r}"
            )

    @classmethod
    def square_root(cls, bands: int) -> "BandedNoise":
        """Return the first coefficients of the square root of all prefix sums.

        Args:
            bands: How many coefficients.

        Raises:
            ValueError: If *bands* is not a whole number of at least 1.
        """
        return cls(square_root(_checks.count(bands=bands)))

    @classmethod
    def optimal(cls, bands: int, *, steps: int) -> "BandedNoise":
        """Return the coefficients with the least :meth:`prefix_error` that are found.

        Args:
            bands: How many coefficients.
            steps: Over how many steps.

        Raises:
            ValueError: If a number is not a whole number of at least 1.
        """
        return cls(optimal(_checks.count(bands=bands), _checks.count(steps=steps)))

    @property
    def bands(self) -> int:
        """How many coefficients there are; 1 is independent noise."""
        return len(self.coefficients)

    @property
    def unit_coefficients(self) -> tuple[float, ...]:
        """The coefficients over their norm, rounded towards 0 to numbers of float32.

        So sums of float32 are multiplied with just these, and one example adds a
        vector of at most the clipping norm to all sums that it is in.
        """
        norm = math.hypot(*self.coefficients)
        units = tuple(_towards_zero(c / norm) for c in self.coefficients)
        # Rounding the norm down by one part in 2**52 is less than towards zero takes,
        # unless every coefficient is such a number itself, as a single one is.
        if sum(Fraction(c) ** 2 for c in units) > 1:
            units = tuple(_towards_zero(c * (1 - 2.0**-40)) for c in units)
        return units

    def prefix_error(self, steps: int) -> float:
        """Return the error of prefix sums at noise multiplier 1, in clipping norms.

        It is the root of the mean over ``t`` of the variance of the noise in the sum of
        the first ``t`` releases, at each coordinate. Of independent noise it is
        ``sqrt((steps + 1) / 2)``.

        Args:
            steps: How many releases.

        Raises:
            ValueError: If *steps* is not a whole number of at least 1.
        """
        return prefix_error(self.coefficients, _checks.count(steps=steps))

    def check_distance(self, bands: int | None) -> None:
        """Raise unless two steps that an example is in are far enough apart.

        Args:
            bands: The groups of cyclic Poisson sampling; None with other sampling.

        Raises:
            ValueError: If there are fewer than coefficients.
        """
        if self.bands > (bands or 1):
            raise ValueError(
                f"correlation has {self.bands} bands, so an example may be in one"
                f" of {self.bands} steps in a row at most; got"
                + (
                    f" CyclicPoisson(bands={bands})"
                    if bands
                    else " sampling under which it may be in the next step"
                )
                + f": plan with CyclicPoisson(bands={self.bands}, ...), for no bound is"
                " proven otherwise"
            )


def _towards_zero(number: float) -> float:
    """Return the float32 nearest to *number* that is not farther from 0.

    >>> _towards_zero(-0.75) == -0.75
    True
    """
    mantissa, exponent = math.frexp(number)
    return math.ldexp(math.trunc(math.ldexp(mantissa, _MANTISSA)), exponent - _MANTISSA)
