"""The least noise, the most steps or the largest batches that keep a target epsilon.

Searches use a coarse bound, which is as valid and ten times as fast; what they find is
checked by the bound that will be claimed, and moved to the safe side until it holds.
"""

import math
from collections.abc import Callable
from typing import Final

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting import VALUE_DISCRETIZATION_INTERVAL, Release, Truncation, epsilon
from dp.schedule import Schedule


__all__ = (
    "calibrate_noise_multiplier",
    "calibrate_sampling_probability",
    "calibrate_steps",
)

_COARSE_INTERVAL: Final = 1e-3
_FINE_BELOW: Final = 0.3  # Searches for a smaller epsilon use the claim's interval.
_DIGITS: Final = 5  # Significant digits of what is found.
_RELATIVE: Final = 10.0**-_DIGITS
_MOST_STEPS: Final = 10**9
_FIRST_STEP: Final = 0.05  # Of a bracket, in the logarithm.
_PRECISION: Final = 1e-4  # Of a search, in the logarithm.
_LARGEST_EXPONENT: Final = 700.0

_Bound = Callable[[float, float], float]
"""Epsilon, by a number that is searched for and an interval of discretisation."""


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
    shape: Schedule | None = None,
    truncation: Truncation | None = None,
) -> float:
    """Return the smallest noise multiplier found that keeps the target.

    Guarantees:
        * The epsilon of *steps* releases with it, as :func:`dp.accounting.epsilon`
          computes it, is at most *target_epsilon*.

    Args:
        target_epsilon: What all steps may cost.
        target_delta: The delta it is for.
        sampling_probability: Probability that an example is in a batch.
        steps: How many releases.
        neighboring_relation: What two neighbouring datasets are.
        shape: A schedule that what is returned is multiplied with, step by step.
        truncation: How batches are made smaller, if they are.

    Raises:
        ValueError: If a number is out of range.
    """
    _check_target(target_epsilon, target_delta)
    phases = list(
        (shape or Schedule(((1, 1.0),))).phases_until(_checks.count(steps=steps))
    )

    def bound(sigma: float, interval: float) -> float:
        releases = [
            Release(
                sampling_probability=sampling_probability,
                noise_multiplier=sigma * relative,
                count=count,
                truncation=truncation,
            )
            for count, relative in phases
        ]
        return epsilon(
            releases,
            delta=target_delta,
            neighboring_relation=neighboring_relation,
            interval=interval,
        ).epsilon

    if not all(relative for _count, relative in phases):
        raise ValueError(f"shape must be above 0 at every step, got {shape!r}")
    _checks.probability(sampling_probability=sampling_probability)

    def loss(sigma: float) -> float:
        return sampling_probability**2 * sum(
            count * _expm1(1 / (sigma * relative) ** 2) for count, relative in phases
        )

    start = _bisect_decreasing(loss, _central_limit(target_epsilon, target_delta) ** 2)
    return _smallest_satisfying(bound, target_epsilon, start=start)


def calibrate_sampling_probability(
    *,
    target_epsilon: float,
    target_delta: float,
    noise_multiplier: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
    truncation: Truncation | None = None,
) -> float:
    """Return the largest sampling probability found that keeps the target.

    Guarantees:
        * As of :func:`calibrate_noise_multiplier`.

    Args:
        target_epsilon: What all steps may cost.
        target_delta: The delta it is for.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        steps: How many releases.
        neighboring_relation: What two neighbouring datasets are.
        truncation: How batches are made smaller, if they are.

    Raises:
        ValueError: If a number is out of range.
    """
    _check_target(target_epsilon, target_delta)
    _checks.positive(noise_multiplier=noise_multiplier)

    def bound(one_over_q: float, interval: float) -> float:
        return epsilon(
            [
                Release(
                    sampling_probability=1 / one_over_q,
                    noise_multiplier=noise_multiplier,
                    count=steps,
                    truncation=truncation,
                )
            ],
            delta=target_delta,
            neighboring_relation=neighboring_relation,
            interval=interval,
        ).epsilon

    if bound(1.0, VALUE_DISCRETIZATION_INTERVAL) <= target_epsilon:
        return 1.0
    mu = _central_limit(target_epsilon, target_delta)
    start = math.sqrt(steps * _expm1(1 / noise_multiplier**2)) / mu
    return 1 / _smallest_satisfying(bound, target_epsilon, start=max(1.0, start))


def calibrate_steps(
    *,
    target_epsilon: float,
    target_delta: float,
    noise_multiplier: float,
    sampling_probability: float,
    neighboring_relation: NeighboringRelation,
    truncation: Truncation | None = None,
) -> int:
    """Return the largest number of steps found that keeps the target, up to 10**9.

    Guarantees:
        * As of :func:`calibrate_noise_multiplier`.

    Args:
        target_epsilon: What all steps may cost.
        target_delta: The delta it is for.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sampling_probability: Probability that an example is in a batch.
        neighboring_relation: What two neighbouring datasets are.
        truncation: How batches are made smaller, if they are.

    Raises:
        ValueError: If a number is out of range, or if one step costs more already.
    """
    _check_target(target_epsilon, target_delta)
    _checks.positive(noise_multiplier=noise_multiplier)

    def keeps(count: int, interval: float) -> bool:
        spent = epsilon(
            [
                Release(
                    sampling_probability=sampling_probability,
                    noise_multiplier=noise_multiplier,
                    count=count,
                    truncation=truncation,
                )
            ],
            delta=target_delta,
            neighboring_relation=neighboring_relation,
            interval=interval,
        )
        return spent.epsilon <= target_epsilon

    if not keeps(1, VALUE_DISCRETIZATION_INTERVAL):
        raise ValueError(
            f"target_epsilon={target_epsilon!r} does not allow one step at"
            f" noise_multiplier={noise_multiplier!r}; add noise"
        )
    interval = _interval(target_epsilon)
    low, high = 1, 2
    while high < _MOST_STEPS and keeps(high, interval):
        low, high = high, 2 * high
    high = min(high, _MOST_STEPS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle, interval) else (low, middle)
    while not keeps(low, VALUE_DISCRETIZATION_INTERVAL):
        low -= math.ceil(low * _RELATIVE)
    return low


def _check_target(target_epsilon: float, target_delta: float) -> None:
    _checks.positive(target_epsilon=target_epsilon)
    _checks.open_unit(target_delta=target_delta)


def _interval(target_epsilon: float) -> float:
    return (
        VALUE_DISCRETIZATION_INTERVAL
        if target_epsilon < _FINE_BELOW
        else _COARSE_INTERVAL
    )


def _central_limit(target_epsilon: float, target_delta: float) -> float:
    """Return the mu of the Gaussian mechanism that just keeps the target.

    Many small releases are nearly one such mechanism (Bu et al. 2019). How nearly is
    not known in general, so it serves to begin a search and never as a claim.
    """
    from scipy.stats import norm

    def excess(mu: float) -> float:
        at = target_epsilon / mu
        log_tail = target_epsilon + float(norm.logcdf(-at - mu / 2))
        return float(norm.cdf(mu / 2 - at)) - math.exp(log_tail)

    return _bisect_decreasing(
        lambda inverse: excess(1 / inverse), target_delta, inverse=True
    )


def _bisect_decreasing(
    falling: Callable[[float], float], value: float, *, inverse: bool = False
) -> float:
    """Return a number at which a falling function has nearly the *value*."""
    low, high = -20.0, 20.0  # Of the logarithm.
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if falling(math.exp(middle)) > value else (low, middle)
        )
    return math.exp(-high if inverse else high)


def _expm1(number: float) -> float:
    return math.expm1(min(number, _LARGEST_EXPONENT))


def _smallest_satisfying(bound: _Bound, target: float, *, start: float) -> float:
    """Return nearly the smallest number whose bound is at most *target*, never less.

    Bounds fall with the number, in the logarithms of both nearly in a line.
    """
    from scipy.optimize import root_scalar

    interval = _interval(target)
    known: dict[float, float] = {}

    def excess(log_number: float) -> float:
        if log_number not in known:
            spent = bound(math.exp(log_number), interval)
            known[log_number] = math.log(max(spent, 1e-12) / target)
        return known[log_number]

    ends = _bracket(lambda log_number: excess(log_number) <= 0, math.log(start))
    found = root_scalar(excess, bracket=ends, method="brentq", xtol=_PRECISION)
    number = _rounded_up(math.exp(found.root))
    while (spent := bound(number, VALUE_DISCRETIZATION_INTERVAL)) > target:
        number = _rounded_up(number * max(1 + _RELATIVE, math.sqrt(spent / target)))
    return number


def _bracket(
    keeps_target: Callable[[float], bool], start: float
) -> tuple[float, float]:
    """Return two numbers near *start*, of which only the larger keeps the target.

    Steps double. They go down from a number that keeps it: less noise has wider
    losses, and takes longer to compute with.
    """
    step = _FIRST_STEP
    high = start
    while not keeps_target(high):
        start, high, step = high, high + step, 2 * step
    if high > start:
        return start, high
    low = high - step
    while keeps_target(low):
        high, step = low, 2 * step
        low = high - step
    return low, high


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return float(f"{math.ceil(value / unit) * unit:.{_DIGITS}g}")
