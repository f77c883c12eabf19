"""Choose how wide the buckets of privacy losses may be for a tight epsilon.

Rounding losses up to the ends of buckets adds to every step's variance what depends on
the bucket alone, whatever the step's own variance is. So the right width depends on
epsilon and on the number of steps; one fixed width is wasteful for large epsilons and
far off for small ones. Every width gives a valid bound, so nothing here can make an
epsilon too low: it decides how far above the truth epsilon is, and what it costs.

Shapes: ``X`` outcomes, ``S`` numbers of a group that a batch can hold.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

from dp.accounting._release import Release


__all__ = (
    "LARGEST",
    "TIGHT",
    "VAGUE",
    "DigitsLostError",
    "checked",
    "choose_interval",
    "first_width",
    "reference",
    "rough_epsilon",
    "starting_width",
    "summarized",
    "unsampled_width",
)

TIGHT: Final = 1e-5
"""Roughly the share that buckets may add to a claimed epsilon."""
VAGUE: Final = 1e-2
"""The same for an epsilon that is only plotted."""
LARGEST: Final = 600.0
"""Epsilons beyond this say nothing, and are not worth the time of being tight."""

_START: Final = 500  # Buckets in an epsilon, at first.
_SURE: Final = 5e-4  # What buckets may add even if refining helps only in proportion.
_MOST_BUCKETS: Final = 1 << 20  # Of composed losses, of all kinds of release together.
_MOST_OF_A_RELEASE: Final = 1 << 19
_BUCKETS_OF_A_GAUSSIAN: Final = 3e4  # Epsilon to 7 digits.
_LEAST_WIDTH: Final = 3e-7  # Below, second differences of deltas run out of digits.
# Where dp_accounting, which is to confirm epsilon, still has six digits, too.
_MOST_IN_EPSILON: Final = 12_000
_FINE: Final = 5e-6
_SMALLEST_RATIO: Final = 1.4
_LARGEST_RATIO: Final = 16.0
_MOST_KINDS: Final = 8  # Of releases, in a rough epsilon.
_NOISE: Final = 1e-4  # By which rounding may raise a bound.
_DIGITS: Final = 1e-4  # A width of buckets that have all their digits.


class DigitsLostError(ArithmeticError):
    """Buckets are so narrow that nothing is left of the differences between them."""


def choose_interval(
    bound_at: Callable[[float], tuple[float, int]],
    start: float,
    tolerance: float,
    noise: float = 0.0,
) -> float:
    """Return a width of buckets that adds at most about *tolerance* to epsilon.

    What buckets add falls with the square of their width, once they are fine enough.
    From two widths follows how much is left, and the next width to try.

    Args:
        bound_at: Returns a bound on epsilon and its number of buckets, by width.
        start: The width to begin with.
        tolerance: What buckets may add, relative to epsilon.
        noise: What composing may round, relative to epsilon.

    Raises:
        ArithmeticError: If finer buckets raise the bound, which they cannot.
    """
    # Example: one release on 90 % of the data with sigma 1000 costs 0.0039640 at delta
    # 1e-9. Buckets of 1e-5 add a part in 60 000. At 1e-6 they have lost digits, and add
    # one in 34.
    width, ratio = first_width(bound_at, start), 2.0
    bound, num_buckets = bound_at(width)
    while True:
        finest = max(_LEAST_WIDTH, min(_FINE, bound / _MOST_IN_EPSILON))
        ratio = min(ratio, _MOST_BUCKETS / num_buckets, width / finest)
        if ratio < _SMALLEST_RATIO:  # Buckets are as fine as is allowed.
            return width
        narrower = max(width / ratio, _LEAST_WIDTH)  # Which rounding may fall below.
        try:
            finer, num_buckets = bound_at(narrower)
        except DigitsLostError:  # Buckets that are less fine may still have them.
            ratio = math.sqrt(ratio)
            continue
        if finer == math.inf > bound:  # What digits are lost count as infinite losses.
            ratio = math.sqrt(ratio)
            continue
        if finer > bound * (1 + _NOISE + noise):
            if narrower < _DIGITS:  # Lost ones raise a bound, and never lower it.
                ratio = math.sqrt(ratio)
                continue
            raise ArithmeticError(
                f"finer buckets raised epsilon from {bound!r} to {finer!r}, so one of"
                " the two is wrong; this is an error of dp, please report the releases"
                " it happened with"
            )
        if finer > bound:
            return width
        width = narrower
        change, bound = bound - finer, finer
        ratio = _next_ratio(change / bound, ratio, tolerance) if bound else 1.0


def first_width(bound_at: Callable[[float], object], start: float) -> float:
    """Return *start*, or the first of its doubles at which digits are left."""
    while start < LARGEST:
        try:
            bound_at(start)
        except DigitsLostError:
            start *= 2
        else:
            break
    return start


def _next_ratio(change: float, ratio: float, tolerance: float) -> float:
    """Return how much finer buckets have to be; 1 if they are fine enough.

    Args:
        change: By how much the last refinement lowered epsilon, relative to it.
        ratio: How much finer that one was.
        tolerance: What may be left.
    """
    if change == math.inf:
        return _LARGEST_RATIO
    # Example: buckets add 4e-5 to epsilon, and 1e-5 at half the width. The change is
    # 3e-5, of which a third is left: 1e-5.
    left = change / (ratio**2 - 1)
    if left <= tolerance and change / (ratio - 1) <= max(_SURE, tolerance):
        return 1.0
    return min(_LARGEST_RATIO, max(2.0, math.sqrt(1.1 * left / tolerance)))


def checked(interval: float) -> float:
    """Return *interval* if buckets of that width have masses and fit in memory.

    Raises:
        ValueError: If they do not.
    """
    if not _LEAST_WIDTH <= interval <= LARGEST**2:
        raise ValueError(
            f"interval must be between {_LEAST_WIDTH:g} and {LARGEST**2:g}, got"
            f" {interval!r}"
        )
    return interval


def reference(releases: tuple[Release, ...]) -> tuple[Release, ...]:
    """Return a few releases that cost no less, with powers of two for counts.

    A width is chosen for these, so that counts that are close share one: epsilon then
    grows with every step, and a run that is accounted step by step chooses rarely.
    """
    return tuple(
        replace(r, count=1 << (r.count - 1).bit_length()) for r in summarized(releases)
    )


def starting_width(
    releases: tuple[Release, ...], delta: float, group_size: int
) -> float:
    """Return the width of buckets to begin with; in memory they have room."""
    reach = max(group_size / release.noise_multiplier for release in releases)
    room = min(LARGEST, _largest_loss(reach)) / _MOST_OF_A_RELEASE
    rough = rough_epsilon(summarized(releases), delta, group_size)
    return max(rough / _START, room, _LEAST_WIDTH)


def unsampled_width(releases: Sequence[Release], group_size: int) -> float:
    """Return the width of buckets for releases on all data, which are one Gaussian."""
    distance = group_size * math.sqrt(_sum_of_squares(releases))
    return max(_largest_loss(distance) / _BUCKETS_OF_A_GAUSSIAN, _LEAST_WIDTH)


def _largest_loss(reach: float) -> float:
    """Return the largest loss that matters of a distance over a standard deviation."""
    return reach**2 / 2 + 10 * reach


def _sum_of_squares(releases: Sequence[Release]) -> float:
    return sum(r.num_participations / r.noise_multiplier**2 for r in releases)


@lru_cache(maxsize=1024)
def rough_epsilon(
    releases: tuple[Release, ...], delta: float, group_size: int
) -> float:
    """Return about what Renyi divergence says of a group: no claim, but fast.

    The integral of each order is a sum over a grid of outcomes, rounded in no
    particular direction; truncated batches are taken for whole ones, and passes by
    random allocation for Poisson samples.
    """
    of_one = group_size**2 * _sum_of_squares(releases)
    # Of zero-concentrated privacy: rho + 2 sqrt(rho log(1 / delta)) with rho = of_one /
    # 2.
    unsampled = of_one / 2 + math.sqrt(2 * of_one * math.log(1 / delta))
    least = min(release.noise_multiplier for release in releases) / group_size
    highest = min(1e5, max(64.0, 100 * least**2))
    best = unsampled
    if all(release.is_on_all_data for release in releases):
        return unsampled
    for order in (*(1 + 0.1 * 1.5**i for i in range(8)), *_powers(3.0, highest)):
        total = sum(
            r.count
            * _divergence(r.sampling_probability, r.noise_multiplier, group_size, order)
            for r in releases
        )
        shift = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, max(total + shift, 0.0))
    return best


def summarized(releases: tuple[Release, ...]) -> tuple[Release, ...]:
    """Return a few releases that cost no less: neighbours in a fixed order as one.

    All are truncated alike, or none is. Passes by random allocation that are merged
    are taken for Poisson samples, which were not seen to cost less.
    """
    if len(releases) <= _MOST_KINDS:
        return releases
    # Example: 100 noise multipliers of a schedule are 8 kinds of up to 13, each counted
    # with the least noise and the largest sample of its kind.
    size = math.ceil(len(releases) / _MOST_KINDS)
    parts = [releases[i : i + size] for i in range(0, len(releases), size)]
    return tuple(
        Release(
            sampling_probability=max(r.sampling_probability for r in part),
            noise_multiplier=min(r.noise_multiplier for r in part),
            count=sum(r.count for r in part),
            truncation=part[0].truncation,
        )
        for part in parts
    )


def _powers(first: float, last: float) -> list[float]:
    num_orders = 24
    growth = (last / first) ** (1 / (num_orders - 1))
    return [first * growth**i for i in range(num_orders)]


@lru_cache(maxsize=4096)  # Of one release: at every step of a run only counts change.
def _divergence(
    probability: float, sigma: float, group_size: int, order: float
) -> float:
    """Return the Renyi divergence of one release about a group, about."""
    import numpy as np  # noqa: PLC0415 -- a tenth of a second
    from scipy.special import logsumexp

    from dp.accounting._pmf import numbers_in_batch  # noqa: PLC0415 -- scipy

    if probability == 1:
        return order / 2 * (group_size / sigma) ** 2
    sizes, weights = numbers_in_batch(group_size, probability)
    # The integrand is a sum of Gaussians; the last is about order * size away.
    ends = (-10 * sigma, order * sizes[-1] + 10 * sigma)
    num_points = int(min(20_000, max(200, 4 * (ends[1] - ends[0]) / sigma)))
    x_X = np.linspace(*ends, num_points)
    exponent_XS = (np.outer(x_X, sizes) - np.square(sizes) / 2) / sigma**2
    log_ratio_X = np.asarray(logsumexp(exponent_XS + np.log(weights), axis=1))
    density_X = -(x_X**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    log_sum = float(np.asarray(logsumexp(order * log_ratio_X + density_X)))
    return (log_sum + math.log(x_X[1] - x_X[0])) / (order - 1)
