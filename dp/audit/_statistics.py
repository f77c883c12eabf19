r"""The tests, each as a p-value: how likely a right run looks at least this wrong.

Every one is two-sided. Those marked exact have the stated rate at any size; the others
use the normal limit of a sum of at least ten thousand independent terms, and multiply
their p-value by :data:`_MARGIN` for it.

Shapes: ``N`` independent terms.

References:
    Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the
    Case of the Binomial", 1934.
    Sheppard, "On the Calculation of the Most Probable Values of Frequency-Constants",
    1898: rounding to a lattice of spacing g adds g**2 / 12 to the variance.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


__all__ = (
    "FALSE_ALARM",
    "Floats",
    "binomial_p",
    "correlation_p",
    "kurtosis_p",
    "lower_limit",
    "mean_p",
    "normal_p",
    "upper_limit",
    "variance_p",
)

FALSE_ALARM: Final = 1e-9
"""The probability with which a right run is accused, for each finding."""

_MARGIN: Final = 10.0
# Noise is rounded to a lattice of at most 1/16 of its standard deviation.
_ROUNDING: Final = (1 / 16) ** 2 / 12

Floats = NDArray[np.float64]


def variance_p(z_N: Floats, *, num_rounded: int = 1) -> float:
    """Test that terms have variance 1, or a hair more where they were rounded.

    The sum of ``N`` squares of standard normals is chi-squared with ``N`` degrees of
    freedom. Exact for normal terms; power 0.999 against a standard deviation that is
    off by ``(6.1 + 3.1) / sqrt(2 N)``, which is 0.65 % at ``N = 10**6``.

    Args:
        z_N: The terms.
        num_rounded: 1 if they were rounded to the noise's lattice, 0 if not.
    """
    from scipy import special  # noqa: PLC0415 -- a third of a second

    total, count = float(np.square(z_N).sum()), z_N.size
    too_small = float(special.chdtr(count, total))
    too_large = float(special.chdtrc(count, total / (1 + num_rounded * _ROUNDING)))
    return min(1.0, 2 * min(too_small, too_large))


def normal_p(value: float) -> float:
    """Test that a value is standard normal."""
    return min(1.0, math.erfc(abs(value) / math.sqrt(2)))


def mean_p(z_N: Floats) -> float:
    """Test that the mean of standard normal terms is 0.

    Exact. Power 0.999 against a mean of ``9.2 / sqrt(N)``.
    """
    return normal_p(float(z_N.sum()) / math.sqrt(z_N.size * (1 + _ROUNDING)))


def kurtosis_p(z_N: Floats) -> float:
    """Test that the fourth moment of terms is a normal's, which is 3.

    The variance of ``z**4`` is 96. At ``N = 10**6`` it sees a sum of twelve uniforms
    (fourth moment 2.9), and of course uniform or Laplace noise.
    """
    expected = 3 + 6 * _ROUNDING / 2  # The middle of what rounding allows.
    excess = abs(float(np.square(np.square(z_N)).mean()) - expected)
    beyond = max(0.0, excess - 6 * _ROUNDING / 2 - 1e-4)
    return min(1.0, _MARGIN * normal_p(beyond * math.sqrt(z_N.size / 96)))


def correlation_p(left_N: Floats, right_N: Floats) -> float:
    """Test that pairs of standard normals are uncorrelated.

    Power 0.999 against a correlation of ``9.6 / sqrt(N)``: 1 % at ``N = 10**6``.
    """
    total = float(np.dot(left_N.ravel(), right_N.ravel()))
    scale = math.sqrt(left_N.size) * (1 + _ROUNDING)
    return min(1.0, _MARGIN * normal_p(total / scale))


def binomial_p(successes: int, trials: int, probability: float) -> float:
    """Test that a count is binomial. Exact.

    Power 0.999 against a rate that is off by ``9.2 * sqrt((1 - q) / (q * trials))``
    of itself: 2.8 % at ``q = 0.1`` and a million trials.
    """
    from scipy import special  # noqa: PLC0415 -- a third of a second

    at_most = float(special.bdtr(successes, trials, probability))
    at_least = (
        1.0
        if successes == 0
        else float(special.bdtrc(successes - 1, trials, probability))
    )
    return min(1.0, 2 * min(at_most, at_least))


def lower_limit(successes: int, trials: int, *, alpha: float) -> float:
    """Return what the rate is above, but with probability *alpha* (Clopper-Pearson)."""
    if successes == 0:
        return 0.0
    return _beta_quantile(alpha, successes, trials - successes + 1)


def upper_limit(successes: int, trials: int, *, alpha: float) -> float:
    """Return what the rate is below, but with probability *alpha* (Clopper-Pearson)."""
    if successes == trials:
        return 1.0
    # By the other tail: 1 - alpha has few digits left.
    return 1 - _beta_quantile(alpha, trials - successes, successes + 1)


def _beta_quantile(probability: float, a: int, b: int) -> float:
    from scipy import special  # noqa: PLC0415 -- a third of a second

    found: Any = special.betaincinv(a, b, probability)
    return float(found)
