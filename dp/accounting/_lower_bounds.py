"""Lower bounds on epsilon, found in another way than the upper ones.

A bound that is claimed has to lie above. The laws of ratios of densities are *collapsed*
here: what falls into one cell becomes its mean, which is a function of what is released
and so can only hide something. Nothing is shared with the upper bounds but the normal
distribution.

They hold for adding or removing one example, and for zeroing it out.

Shapes: ``K`` points of a law.
"""

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from dp.accounting._disjoint import one_a_pass
from dp.accounting._release import Release
from dp.accounting._rounds import without_rounds


__all__ = ("lower_bound",)

_Floats = NDArray[np.float64]
_Law = tuple[_Floats, _Floats]  # Ratios, and their masses without the example.

_POINTS: Final = 600
_REACH: Final = 8.5  # Standard deviations.
_TAIL: Final = 1e-17
_LARGEST: Final = 300.0  # Of exponents: above it, nothing is said.


@lru_cache(maxsize=64)
def lower_bound(
    releases: tuple[Release, ...], delta: float, points: int = _POINTS
) -> float:
    """Return an epsilon that the releases do not keep at *delta*, or 0.

    Guarantees:
        * A pair of datasets that differ in one example, and a way in which losses depend
          on them, need at least this epsilon. So every valid bound is at least as large.

    Args:
        releases: What was released, with noise. Truncated batches are left out.
        delta: The delta of the epsilon.
        points: How finely laws are kept; more points give a larger bound.
    """
    law: _Law | None = None
    for release in one_a_pass(without_rounds(releases)):
        if release.truncation is not None:
            continue
        one, count = _one(release, points)
        repeated = _power(one, count, points, np.multiply)
        law = repeated if law is None else _both(np.multiply, law, repeated, points)
    if law is None:
        return 0.0

    def excess(epsilon: float) -> float:
        return max(deltas(law, epsilon)) - delta

    # Delta is kept at epsilon 0 already, or is not at any that is tried: nothing is
    # said.
    if excess(0.0) <= 0 or excess(_LARGEST) > 0:
        return 0.0
    found: Any = brentq(excess, 0.0, _LARGEST, xtol=1e-10)
    return float(found)


def deltas(law: _Law, epsilon: float) -> tuple[float, float]:
    """Return the deltas of a law at one epsilon, for removing and for adding."""
    ratios_K, masses_K = law
    return (
        float(masses_K @ np.maximum(ratios_K - math.exp(epsilon), 0)),
        float(masses_K @ np.maximum(1 - math.exp(epsilon) * ratios_K, 0)),
    )


def _one(release: Release, points: int) -> tuple[_Law, int]:
    """Return the law of a release or of a pass, and how many there are of it."""
    ratios_K, masses_K = _lognormal(release.noise_multiplier, points)
    steps = release.steps_per_pass
    if steps is None:
        q = release.sampling_probability
        # The example is in the sample with probability q: a mixture of the ratio 1 and
        # r.
        return (1 - q + q * ratios_K, masses_K), release.count
    # Example: 10 steps as 2 + 8, in four sums of two laws.
    sums_K, masses_K = _power((ratios_K, masses_K), steps, points, np.add)
    return (sums_K / steps, masses_K), release.num_participations


def _lognormal(sigma: float, points: int) -> _Law:
    """Return a collapse of the ratio of ``N(1, sigma^2)`` to ``N(0, sigma^2)``."""
    centre, reach = 0.5 / sigma**2, _REACH / sigma
    low, high = max(-centre - reach, -_LARGEST), min(centre + reach, _LARGEST)
    ends_K = sigma * np.concatenate(
        [[-np.inf], np.linspace(low, high, points), [np.inf]]
    )
    # Cells of outcomes: their probabilities without the example and with it, whose
    # quotient is the mean ratio in the cell.
    without_K, with_K = (_cells(ends_K + s) for s in (0.5 / sigma, -0.5 / sigma))
    kept_K = without_K > 0
    return with_K[kept_K] / without_K[kept_K], without_K[kept_K]


def _cells(z_K: _Floats) -> _Floats:
    upper_K, lower_K = ndtr(-z_K), ndtr(z_K)
    masses_K: _Floats = np.where(
        z_K[:-1] > 0, upper_K[:-1] - upper_K[1:], lower_K[1:] - lower_K[:-1]
    )
    return masses_K


def _power(law: _Law, count: int, points: int, operation: np.ufunc) -> _Law:
    """Return the law of *count* independent ratios, added up or multiplied."""
    total: _Law | None = None
    while True:
        if count & 1:
            total = law if total is None else _both(operation, total, law, points)
        count >>= 1
        if not count:
            break
        law = _both(operation, law, law, points)
    assert total is not None, "count is at least 1"  # noqa: S101 -- of type checkers
    return total


def _both(operation: np.ufunc, left: _Law, right: _Law, points: int) -> _Law:
    # 600 points by 600, which are then merged to 600 again.
    ratios = operation.outer(left[0], right[0]).ravel()
    masses = np.multiply.outer(left[1], right[1]).ravel()
    return _collapsed(ratios, masses, points)


def _collapsed(ratios: _Floats, masses: _Floats, points: int) -> _Law:
    """Merge what falls into one cell, and both tails, to its mean."""
    logs = np.log(np.maximum(ratios, 1e-300))
    weighty = logs[masses > 1e-30 * masses.max()]
    low, high = float(weighty.min()), float(weighty.max())
    width = max((high - low) / points, 1e-300)
    cells = np.clip((logs - low) / width, 0, points).astype(np.int64)
    masses_K = _totals(cells, masses)
    # Example: ratios 1.0 and 1.2 with masses 0.3 and 0.1 in one cell become 1.05 with
    # 0.4. A convex function of the ratio has a smaller expectation then, and so has
    # delta.
    means_K = _totals(cells, masses * ratios)
    masses_K, means_K = masses_K[masses_K > 0], means_K[masses_K > 0]
    inner_K = (np.cumsum(masses_K) > _TAIL) & (
        np.cumsum(means_K[::-1])[::-1] > _TAIL * means_K.sum()
    )
    first, last = np.flatnonzero(inner_K)[[0, -1]]
    groups_K = np.clip(np.arange(len(masses_K)), first, last) - first
    masses_K = _totals(groups_K, masses_K)
    return _totals(groups_K, means_K) / masses_K, masses_K


def _totals(cells: NDArray[np.int64], values: _Floats) -> _Floats:
    return np.asarray(np.bincount(cells, values), dtype=np.float64)
