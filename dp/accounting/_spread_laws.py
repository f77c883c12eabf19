"""Upper bounds on the law of a ratio of densities, on a geometric grid.

A law is replaced by a *spread* of it: by one with the same mean, and a larger
expectation of every convex function. The hockey-stick divergences of a pair of laws are
such expectations, in both directions and for every epsilon of either sign, so those of
a spread are upper bounds. Spreading survives independent sums.

Masses are multiplied by their ratio later, so they need relative accuracy. Nothing is
subtracted from a sum, therefore, and sums are no Fourier transforms.

Shapes: ``K`` points of a grid.
"""

import math
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr


__all__ = ("Floats", "SpreadLaw", "lognormal", "summed")

Floats = NDArray[np.float64]

_TAIL: Final = 1e-18  # Of mass below, and of the mean above, that may leave a grid.
_REACH: Final = 9.5  # Standard deviations that a grid covers.
_LARGEST_EXPONENT: Final = 500.0  # Beyond, the mean is sent to infinity.


@final
@dataclass(frozen=True, slots=True)
class SpreadLaw:
    """The law of a positive ratio, spread onto the points ``exp(spacing * i)``.

    Attributes:
        spacing: The width of the grid, in logarithms.
        first: Which multiple of it the first point is.
        masses: The masses of the points, [K].
        zero: The mass of the ratio 0.
        beyond: The part of the mean that was sent to infinity, where no mass is.
    """

    spacing: float
    first: int
    masses: Floats
    zero: float = 0.0
    beyond: float = 0.0

    @property
    def end(self) -> int:
        """One more than the last point's multiple of the spacing."""
        return self.first + len(self.masses)

    def ratios(self) -> Floats:
        """Return the points, [K]."""
        return np.asarray(np.exp(self._exponents()), dtype=np.float64)

    def _exponents(self) -> Floats:
        indices_K = np.arange(len(self.masses), dtype=np.float64)
        return np.asarray(self.spacing * (self.first + indices_K), dtype=np.float64)

    def pruned(self) -> "SpreadLaw":
        """Send the tails to 0 and the first point, and to the last one and infinity."""
        masses_K, ratios_K = self.masses, self.ratios()
        means_K = masses_K * ratios_K
        below_K = np.cumsum(masses_K)
        above_K = np.cumsum(means_K[::-1])  # From the last point on.
        # Small masses below matter as masses, small ones above as parts of the mean.
        largest = _TAIL * max(1.0, float(above_K[-1]) + self.beyond)
        first = int(np.searchsorted(below_K, _TAIL))
        last = len(masses_K) - 1 - int(np.searchsorted(above_K, largest))
        if first > last:  # Almost all of the mean is beyond.
            return self
        kept_K = masses_K[first : last + 1].copy()
        # Example: masses 1e-19 at ratio 0.5 and 1 at ratio 1. Half of the 1e-19 goes to
        # ratio 1, which has the mean of all of it there, and half goes to 0.
        to_first = float(means_K[:first].sum()) / ratios_K[first]
        to_last = float(masses_K[last + 1 :].sum())
        kept_K[0] += to_first
        kept_K[-1] += to_last
        return SpreadLaw(
            self.spacing,
            self.first + first,
            kept_K,
            self.zero + float(masses_K[:first].sum()) - to_first,
            self.beyond + float(means_K[last + 1 :].sum()) - to_last * ratios_K[last],
        )

    def on_grid(self, spacing: float) -> "SpreadLaw":
        """Return a spread of this law onto another grid.

        Each mass goes to the two points around it, and keeps its mean.
        """
        exponents_K = self._exponents()
        below_K = np.floor(exponents_K / spacing).astype(np.int64)
        rest_K = np.clip(exponents_K - below_K * spacing, 0, spacing)
        # Example: a mass at ratio 1.5 between the points 1 and 2: half goes to each,
        # and the mean stays 1.5.
        up_K = self.masses * np.expm1(rest_K) / math.expm1(spacing)
        first = int(below_K[0])
        size = int(below_K[-1]) - first + 2
        masses_K = np.zeros(size)
        masses_K += np.bincount(below_K - first, self.masses - up_K, size)
        masses_K += np.bincount(below_K - first + 1, up_K, size)
        return SpreadLaw(spacing, first, masses_K, self.zero, self.beyond)

    def nested(self, spacing: float) -> "SpreadLaw":
        """Return the same law on a grid that contains this one, or a spread onto less.

        Args:
            spacing: This law's spacing, multiplied or divided by a power of two.
        """
        times = round(self.spacing / spacing)
        if times < 1:
            return self.on_grid(spacing)
        masses_K = np.zeros((len(self.masses) - 1) * times + 1)
        # A grid of half the spacing has every old point, and a new one between two.
        masses_K[::times] = self.masses
        return SpreadLaw(spacing, self.first * times, masses_K, self.zero, self.beyond)


def lognormal(sigma: float, spacing: float) -> SpreadLaw:
    """Return a spread of the ratio of ``N(1, sigma^2)`` to ``N(0, sigma^2)``.

    Its mean is 1. What falls between two points is split among them so that both its
    mass and its mean, which are masses of the two normal laws, stay.
    """
    reach, centre = _REACH / sigma, 0.5 / sigma**2
    first = math.floor(max(-centre - reach, -_LARGEST_EXPONENT) / spacing)
    last = math.ceil(min(centre + reach, _LARGEST_EXPONENT) / spacing)
    exponents_K: Floats = spacing * np.arange(first, last + 1, dtype=np.float64)
    at_K = sigma * exponents_K  # The outcome at which the ratio is reached, but 1 / 2.
    shift = 0.5 / sigma
    under_q_K, under_p_K = _cells(at_K + shift), _cells(at_K - shift)
    ratios_K = np.exp(exponents_K)
    up_K = (under_p_K - ratios_K[:-1] * under_q_K) / np.diff(ratios_K)
    # Rounding apart, the mean ratio in a cell lies between those of its ends.
    up_K = np.clip(up_K, 0, under_q_K)
    masses_K = np.zeros_like(at_K)
    masses_K[:-1] += under_q_K - up_K
    masses_K[1:] += up_K
    to_first = float(ndtr(at_K[0] - shift) / ratios_K[0])
    to_last = float(ndtr(-at_K[-1] - shift))
    masses_K[0] += to_first
    masses_K[-1] += to_last
    return SpreadLaw(
        spacing,
        first,
        masses_K,
        zero=float(ndtr(at_K[0] + shift)) - to_first,
        beyond=float(ndtr(-at_K[-1] + shift)) - to_last * float(ratios_K[-1]),
    ).pruned()


def _cells(z_K: Floats) -> Floats:
    """Return the normal masses between neighbours, from the smaller tail."""
    upper_K, lower_K = ndtr(-z_K), ndtr(z_K)
    masses_K: Floats = np.where(
        z_K[:-1] > 0, upper_K[:-1] - upper_K[1:], lower_K[1:] - lower_K[:-1]
    )
    return masses_K


def summed(left: SpreadLaw, right: SpreadLaw, *, points: int) -> SpreadLaw:
    """Return a spread of the sum of two independent ratios.

    A sum is narrower than what is summed. So its grid is chosen anew, as fine as
    *points* allow: spread onto a fixed grid it would grow wider than it is.

    The sum of ``exp(h i)`` and ``exp(h (i - d))`` is ``exp(h i)`` times a factor that
    depends on ``d`` alone, so all pairs that are *d* apart are spread at once.
    """
    ends = [(law.spacing * law.first, law.spacing * law.end) for law in (left, right)]
    length = max(end for _, end in ends) - min(start for start, _ in ends)
    spacing = left.spacing * power_of_two(length / points / left.spacing)
    left, right = left.nested(spacing), right.nested(spacing)
    first = min(left.first, right.first)
    size = max(left.end, right.end) - first
    left_K, right_K = np.zeros(size), np.zeros(size)
    left_K[left.first - first :][: len(left.masses)] = left.masses
    right_K[right.first - first :][: len(right.masses)] = right.masses

    log_factors = np.log1p(np.exp(-spacing * np.arange(size)))
    offsets = np.floor(log_factors / spacing).astype(np.int64)
    shares = np.expm1(log_factors - spacing * offsets) / math.expm1(spacing)
    sums_K = np.zeros(size + math.ceil(math.log(2) / spacing) + 2)
    # Both orders of a pair, but a point with itself only once.
    for apart in range(size):
        pairs_K = left_K[apart:] * right_K[: size - apart]
        if apart:
            pairs_K += right_K[apart:] * left_K[: size - apart]
        start = apart + int(offsets[apart])
        up_K = pairs_K * shares[apart]
        sums_K[start : start + len(pairs_K)] += pairs_K - up_K
        sums_K[start + 1 : start + 1 + len(pairs_K)] += up_K
    sums_K[:size] += left.zero * right_K + right.zero * left_K
    return SpreadLaw(
        spacing,
        first,
        sums_K,
        left.zero * right.zero,
        left.beyond + right.beyond,
    ).pruned()


def power_of_two(number: float) -> float:
    """Return the least power of two that is not below *number*."""
    return float(2.0 ** math.ceil(math.log2(number)))
