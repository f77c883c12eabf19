r"""The tests, each as a p-value: how likely a right run looks at least this wrong.

Every one is two-sided, and holds at any size: no limit is taken. Where a tail has no
closed form it is bounded by Chernoff's inequality, which costs power as if deviations
were 7 % smaller.

Noise is rounded to a lattice. A rounded normal term of variance 1 has the characteristic
function of a normal one times a factor in [-1, 1], and its moments grow no faster than
those of a normal term of variance ``1 + g**2 / 12``, for a spacing ``g``; the same is
true of the sums and products of them that are used here.

Shapes: ``N`` independent terms, ``L`` terms in a row.

References:
    Chernoff, "A Measure of Asymptotic Efficiency for Tests of a Hypothesis Based on the
    Sum of Observations", 1952.
    Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the
    Case of the Binomial", 1934.
    Sheppard, "On the Calculation of the Most Probable Values of Frequency-Constants",
    1898: rounding to a lattice of spacing g adds g**2 / 12 to the variance.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dp._reports import Finding


__all__ = (
    "FALSE_ALARM",
    "Floats",
    "binomial_p",
    "correlation_p",
    "finding",
    "joint_p",
    "lower_limit",
    "mean_p",
    "neighbours_p",
    "normal_p",
    "shape_p",
    "sizes_p",
    "spread_p",
    "upper_limit",
    "variance_p",
)

FALSE_ALARM: Final = 1e-9
"""The probability with which a right run is accused, for each finding."""

# Noise is rounded to a lattice of at most 1/16 of its standard deviation.
_ROUNDING: Final = (1 / 16) ** 2 / 12

Floats = NDArray[np.float64]


_FREQUENCY: Final = 2.0  # Where the cosine sees best what is not quite normal.
_HARMONICS: Final = range(1, 7)  # What is beyond is below exp(-98).


def variance_p(z_N: Floats) -> float:
    """Test that normal terms have variance 1, or slightly more where they were rounded.

    Power 0.999 against a standard deviation that is off by ``9.7 / sqrt(2 N)``, which is
    0.69 % at ``N = 10**6``.
    """
    mean = float(np.square(z_N).sum()) / z_N.size
    # What rounding explains is no evidence: 1.0003 counts as 1, and 0.9997 as what it
    # is.
    too_large = max(1.0, mean / (1 + _ROUNDING))
    rates = [x - 1 - math.log(x) for x in (too_large, min(1.0, max(mean, 1e-300)))]
    return min(1.0, 2 * math.exp(-z_N.size / 2 * max(rates)))


def normal_p(value: float) -> float:
    """Test that a value is standard normal, or made of rounded normal terms."""
    return min(1.0, 2 * math.exp(-(value**2) / 2 / (1 + _ROUNDING)))


def mean_p(z_N: Floats) -> float:
    """Test that the mean of standard normal terms is 0.

    Power 0.999 against a mean of ``9.7 / sqrt(N)``.
    """
    return normal_p(float(z_N.sum()) / math.sqrt(z_N.size))


def shape_p(z_N: Floats) -> float:
    """Test that terms are normal, by the mean of their cosines at one frequency.

    At ``N = 10**6`` it sees a sum of twelve uniforms, and of course uniform or Laplace
    noise.
    """
    from scipy import special

    def cumulant(x: float) -> float:  # By the expansion of Jacobi and Anger.
        total = float(special.iv(0, x))
        for n in _HARMONICS:
            moment = math.exp(-((n * _FREQUENCY) ** 2) / 2)
            if x < 0 and n % 2:  # The only terms below 0, and smaller if rounded.
                moment *= max(0.0, 1 - (n * _FREQUENCY) ** 2 * _ROUNDING / 2)
            total += 2 * float(special.iv(n, x)) * moment
        return float(z_N.size) * math.log(total)

    total = float(np.cos(_FREQUENCY * z_N).sum())
    return _chernoff_p(total, cumulant, reach=1.0)


def correlation_p(left_N: Floats, right_N: Floats) -> float:
    """Test that standard normals are uncorrelated, in pairs that share none of them.

    Power 0.999 against a correlation of ``9.7 / sqrt(N)``: 1 % at ``N = 10**6``.
    """
    size, scale = left_N.size, (1 + _ROUNDING) ** 2
    return _chernoff_p(
        float(np.dot(left_N.ravel(), right_N.ravel())),
        lambda x: -size / 2 * math.log1p(-scale * x**2),
        reach=0.9,
    )


def neighbours_p(z_LN: Floats) -> float:
    """Test that standard normals are uncorrelated with the next one of their row.

    Power as of :func:`correlation_p`.
    """
    length, count = z_LN.shape

    def cumulant(x: float) -> float:  # By the determinant of a tridiagonal matrix.
        root = math.sqrt(1 - 4 * ((1 + _ROUNDING) * x) ** 2)
        big, small = (1 + root) / 2, (1 - root) / 2
        determinant = (length + 1) * math.log(big) - math.log(root)
        determinant += math.log1p(-math.pow(small / big, length + 1))
        return float(-count / 2 * determinant)

    return _chernoff_p(float((z_LN[:-1] * z_LN[1:]).sum()), cumulant, reach=0.45)


def joint_p(together: int, *, probability: float, length: int, count: int) -> float:
    """Test how often coins win together with the next one of their row.

    Args:
        together: How many did.
        probability: That of a coin to win.
        length: How many coins a row has; 2 for pairs that share none.
        count: How many rows there are.
    """
    q = probability

    def cumulant(x: float) -> float:
        # Of a row so far, by whether its last coin lost or won; scaled to stay small.
        # A Markov chain of two states, whose last step weighs a common win by exp(x).
        lost, won, scale = 1 - q, q, 0.0
        for _ in range(length - 1):
            lost, won = (1 - q) * (lost + won), q * (lost + won * math.exp(x))
            scale += math.log(lost + won)
            lost, won = lost / (lost + won), won / (lost + won)
        return count * scale

    return _chernoff_p(float(together), cumulant, reach=3.0)


def spread_p(counts_L: NDArray[np.int_], trials: int, probability: float) -> float:
    """Test that counts are binomial, by the one that is furthest from their mean.

    Exact, but for rounding up. Detects both over- and under-dispersed counts.
    """
    from scipy import special

    mean = trials * probability
    furthest = float(np.abs(counts_L - mean).max())
    high, low = math.ceil(mean + furthest), math.floor(mean - furthest)
    beyond = float(special.bdtrc(high - 1, trials, probability)) if high > 0 else 1.0
    beyond += float(special.bdtr(low, trials, probability)) if low >= 0 else 0.0
    within = float(special.bdtr(min(high, trials), trials, probability))
    within -= float(special.bdtr(low - 1, trials, probability)) if low > 0 else 0.0
    all_within = min(1.0, within) ** len(counts_L)
    return min(1.0, 2 * min(len(counts_L) * beyond, all_within))


def sizes_p(sizes_PL: NDArray[np.int_]) -> float:
    """Test that the sizes of rows are multinomial, of equally likely cells each.

    Given the sizes before it, a size is binomial. Two exact p-values of each, of being
    far from its mean and of being close to it, are combined by Fisher's method, which
    is valid since each holds given those before. Detects too even sizes as well.

    References:
        Fisher, "Statistical Methods for Research Workers", 1932, section 21.1.
    """
    from scipy import special

    logs_far, logs_close = 0.0, 0.0
    for sizes in sizes_PL:
        # Example: sizes 4, 3, 5 of 12: 4 of 12 at 1/3, then 3 of 8 at 1/2; the last has
        # no choice.
        left = int(sizes.sum())
        for index, size in enumerate(sizes[:-1]):
            far, close = _how_far(int(size), left, 1 / (len(sizes) - index))
            logs_far += math.log(far)
            logs_close += math.log(close)
            left -= int(size)
    count = sizes_PL.shape[0] * (sizes_PL.shape[1] - 1)
    if not count:
        return 1.0
    tails = [float(special.gammaincc(count, -x)) for x in (logs_far, logs_close)]
    return min(1.0, 2 * min(tails))


def _how_far(count: int, trials: int, probability: float) -> tuple[float, float]:
    """Return how likely a binomial is as far from its mean, and how likely as close."""
    from scipy import special

    mean = trials * probability
    away = abs(count - mean)
    high, low = math.ceil(mean + away - 1e-9), math.floor(mean - away + 1e-9)
    above = float(special.bdtrc(high - 1, trials, probability)) if high > 0 else 1.0
    below = float(special.bdtr(low, trials, probability)) if low >= 0 else 0.0
    upper = float(special.bdtr(min(high, trials), trials, probability))
    lower = float(special.bdtr(low - 1, trials, probability)) if low > 0 else 0.0
    return max(min(1.0, above + below), 1e-300), max(min(1.0, upper - lower), 1e-300)


def finding(claim: str, *evidence: float | str) -> Finding:
    """Build a finding from p-values (the smallest decides) and the figures to display."""
    values = [e for e in evidence if not isinstance(e, str)]
    figures = [e for e in evidence if isinstance(e, str)]
    # Bonferroni: the smallest of three p-values counts three times.
    p = min(1.0, len(values) * min(values))
    return Finding(
        claim=claim,
        holds=p >= FALSE_ALARM,
        detail=", ".join([*figures, f"p = {p:.2g}"]),
    )


def _chernoff_p(
    total: float, cumulant: Callable[[float], float], *, reach: float
) -> float:
    """Bound how likely a sum is as far from its mean, by its cumulants up to *reach*.

    Whatever the search finds, the bound holds.
    """
    from scipy import optimize

    exponents = [0.0]
    for sign in (1, -1):
        # P(S >= t) <= E[exp(x S)] exp(-x t) for every x >= 0, and the same below the
        # mean.
        found: Any = optimize.minimize_scalar(
            lambda x, sign=sign: cumulant(sign * x) - sign * x * total,
            bounds=(0.0, reach),
            method="bounded",
            options={"xatol": 1e-7},
        )
        exponents.append(float(found.fun))
    return min(1.0, 2 * math.exp(min(exponents)))


def binomial_p(successes: int, trials: int, probability: float) -> float:
    """Test that a count is binomial, by its exact distribution.

    Power 0.999 against a rate that is off by ``9.2 * sqrt((1 - q) / (q * trials))``
    of itself: 2.8 % at ``q = 0.1`` and a million trials.
    """
    from scipy import special

    at_most = float(special.bdtr(successes, trials, probability))
    at_least = (
        1.0
        if successes == 0
        else float(special.bdtrc(successes - 1, trials, probability))
    )
    return min(1.0, 2 * min(at_most, at_least))


def lower_limit(successes: int, trials: int, *, alpha: float) -> float:
    """Return a lower confidence limit of a rate, at error *alpha* (Clopper-Pearson)."""
    if successes == 0:
        return 0.0
    return _beta_quantile(alpha, successes, trials - successes + 1)


def upper_limit(successes: int, trials: int, *, alpha: float) -> float:
    """Return an upper confidence limit of a rate, at error *alpha* (Clopper-Pearson)."""
    if successes == trials:
        return 1.0
    # By the other tail: 1 - alpha has few digits left.
    return 1 - _beta_quantile(alpha, trials - successes, successes + 1)


def _beta_quantile(probability: float, a: int, b: int) -> float:
    from scipy import special

    found: Any = special.betaincinv(a, b, probability)
    return float(found)
