"""The least noise, the most steps or the largest batches that keep a target epsilon.

Nothing here has to be believed: what is found is asked of :func:`dp.accounting.epsilon`
before it is returned, and a plan's own :meth:`~dp.plan.PrivacyPlan.guarantee` says what
it costs. A search that fails can waste some of the budget, never exceed it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

from dp import _checks
from dp._typing import NeighboringRelation
from dp.accounting import Release, Truncation, epsilon, merge_equal_releases
from dp.accounting._accountant import bound_by_pld
from dp.schedule import Schedule, rounded_up


__all__ = (
    "calibrate_noise_multiplier",
    "calibrate_sampling_probability",
    "calibrate_steps",
    "rough_noise_multiplier",
)

_DIGITS: Final = 6  # Significant digits of what is found.
_MOST_STEPS: Final = 10**9
_WASTE: Final = 5e-4  # What may be left of a target, relative to it.
_AIM: Final = 1e-4  # Below the target, so that an answer there is accepted.
_VAGUE: Final = 2e-2  # Of the bound that a search begins with, relative.
_FIRST_STEP: Final = 0.05  # Of a search without a slope, in the logarithm.
_LARGEST_STEP: Final = 3.0
_FLATTEST: Final = (
    -0.05
)  # Slope: epsilon falls, whatever two bounds that are close say.
_MOST_BOUNDS: Final = 200
_LEAST_EPSILON: Final = 1e-12  # Logarithms of epsilon begin here.


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
    shape: Schedule | None = None,
    truncation: Truncation | None = None,
    other_releases: Sequence[Release] = (),
) -> float:
    """Return the smallest noise multiplier found that keeps the target.

    Guarantees:
        * The epsilon of *steps* releases with it and the *other_releases*, as :func:`dp.accounting.epsilon`
          computes it, is at most *target_epsilon*, and 0.05 % below it at most.

    Args:
        target_epsilon: What all steps may cost.
        target_delta: The delta it is for.
        sampling_probability: Probability that an example is in a batch.
        steps: How many releases.
        neighboring_relation: What two neighbouring datasets are.
        shape: A schedule that what is returned is multiplied with, step by step.
        truncation: How batches are made smaller, if they are.
        other_releases: What is released about the same data beside the steps, such as
            private statistics.

    Raises:
        ValueError: If a number is out of range, or if the other releases alone leave
            nothing of the target.
    """
    shape = shape or Schedule(((1, 1.0),))
    phases = list(shape.phases_until(_checks.count(steps=steps)))
    if not all(relative for _count, relative in phases):
        raise ValueError(f"shape must be above 0 at every step, got {shape!r}")
    _checks.probability(sampling_probability=sampling_probability)

    def releases(sigma: float) -> list[Release]:
        return [
            *other_releases,
            *(
                Release(
                    sampling_probability=sampling_probability,
                    noise_multiplier=sigma * relative,
                    count=count,
                    truncation=truncation,
                )
                for count, relative in phases
            ),
        ]

    _check_left(other_releases, target_epsilon, target_delta, neighboring_relation)
    search = _Search(
        target_epsilon=_checks.positive(target_epsilon=target_epsilon),
        target_delta=_checks.open_unit(target_delta=target_delta),
        relation=neighboring_relation,
        releases=releases,
        allowed=lambda sigma: rounded_up(sigma, digits=_DIGITS),
    )
    return search.smallest()


def rough_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
) -> float:
    """Return about the least noise multiplier, within a few percent, in less time.

    To compare plans, not to make one: what it costs may be above the target.

    Raises:
        ValueError: If a number is out of range.
    """
    return _Search(
        target_epsilon=_checks.positive(target_epsilon=target_epsilon),
        target_delta=_checks.open_unit(target_delta=target_delta),
        relation=neighboring_relation,
        releases=lambda sigma: [
            Release(
                sampling_probability=sampling_probability,
                noise_multiplier=sigma,
                count=steps,
            )
        ],
        allowed=lambda sigma: sigma,
    ).roughly_smallest()


def _check_left(
    others: Sequence[Release],
    target_epsilon: float,
    target_delta: float,
    relation: NeighboringRelation,
) -> None:
    if not others:
        return
    spent = epsilon(others, delta=target_delta, neighboring_relation=relation).epsilon
    if spent >= target_epsilon * (1 - _WASTE):
        raise ValueError(
            f"other_releases cost epsilon {spent:.4g} of target_epsilon="
            f"{target_epsilon!r}, which leaves nothing for the steps; add noise to them"
        )


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
        * As of :func:`calibrate_noise_multiplier`; it is 1 where that keeps the target.

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
    _checks.positive(noise_multiplier=noise_multiplier)
    search = _Search(
        target_epsilon=_checks.positive(target_epsilon=target_epsilon),
        target_delta=_checks.open_unit(target_delta=target_delta),
        relation=neighboring_relation,
        releases=lambda one_over_q: [
            Release(
                sampling_probability=1 / one_over_q,
                noise_multiplier=noise_multiplier,
                count=steps,
                truncation=truncation,
            )
        ],
        allowed=lambda one_over_q: max(1.0, rounded_up(one_over_q, digits=_DIGITS)),
    )
    return 1 / search.smallest()


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
        * As of :func:`calibrate_noise_multiplier`, unless one step more would exceed
          the target.

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
    _checks.positive(noise_multiplier=noise_multiplier)

    def releases(one_over_steps: float) -> list[Release]:
        return [
            Release(
                sampling_probability=sampling_probability,
                noise_multiplier=noise_multiplier,
                count=round(1 / one_over_steps),
                truncation=truncation,
            )
        ]

    search = _Search(
        target_epsilon=_checks.positive(target_epsilon=target_epsilon),
        target_delta=_checks.open_unit(target_delta=target_delta),
        relation=neighboring_relation,
        releases=releases,
        # Slightly more, so that a whole number is not rounded down to the next.
        allowed=lambda x: 1 / min(max(1, math.floor(1 / x * (1 + 1e-12))), _MOST_STEPS),
        most=1.0,
        smaller=lambda x: 1 / min(round(1 / x) + 1, _MOST_STEPS),
    )
    found = search.smallest()
    if search.excess(found) > 0:
        raise ValueError(
            f"target_epsilon={target_epsilon!r} does not allow one step at"
            f" noise_multiplier={noise_multiplier!r}; add noise"
        )
    return round(1 / found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """Find nearly the smallest number whose releases keep a target.

    Attributes:
        target_epsilon: What they may cost.
        target_delta: The delta it is for.
        relation: What neighbouring datasets are.
        releases: What is released, by the number. Their epsilon falls as it grows.
        allowed: Returns the next number that may be an answer, on the private side.
        most: The largest number there is.
        smaller: Returns the next smaller number, where there are not many.
    """

    target_epsilon: float
    target_delta: float
    relation: NeighboringRelation
    releases: Callable[[float], Sequence[Release]]
    allowed: Callable[[float], float]
    most: float = math.inf
    smaller: Callable[[float], float] | None = None

    def excess(self, number: float) -> float:
        """Return by how much the logarithm of what will be claimed is too large."""
        spent = epsilon(
            self.releases(number),
            delta=self.target_delta,
            neighboring_relation=self.relation,
        ).epsilon
        return self._logarithm(spent)

    def _vague_excess(self, number: float) -> float:
        """Return the same of a bound in wide buckets, in a hundredth of the time."""
        releases = merge_equal_releases(self.releases(number))
        spent, _ = bound_by_pld(releases, self.target_delta, self.relation, _VAGUE)
        return self._logarithm(spent)

    def _logarithm(self, spent: float) -> float:
        return math.log(max(spent, _LEAST_EPSILON) / self.target_epsilon)

    def smallest(self) -> float:
        """Return the smallest number found that keeps the target, or the largest one.

        Bounds fall with the number, in the logarithms of both nearly in a line: the
        secant method needs three to six of them. Two numbers around the answer are
        kept, and where a secant leads out of them, it is their middle that is asked.
        """
        number, slope = self._start()
        number = min(self.allowed(number), self.most)
        line = _Line(slope)
        for _ in range(_MOST_BOUNDS):  # pragma: no branch
            excess = self.excess(number)
            line.add(number, excess)
            if -_WASTE <= excess <= 0 or (excess > 0 and number >= self.most):
                return number
            number = min(self.allowed(math.exp(line.crossing())), self.most)
            if number in line.asked and self.smaller is not None:
                number = self.smaller(line.smallest_kept())
            if number in line.asked:  # No number is left in between.
                break
        return line.smallest_kept()

    def roughly_smallest(self) -> float:
        """Return about the smallest number, by bounds in wide buckets alone."""
        return self._start()[0]

    def _start(self) -> tuple[float, float]:
        """Return where a bound in wide buckets is the target, and its slope there."""
        number, line = min(1.0, self.most), _Line(-1.0)
        for _ in range(_MOST_BOUNDS):  # pragma: no branch
            excess = self._vague_excess(number)
            line.add(number, excess)
            if abs(excess) <= _VAGUE:
                break
            number = min(self.allowed(math.exp(line.crossing())), self.most)
            if number in line.asked:
                break
        return number, line.slope


@final
class _Line:
    """Numbers that were asked and their excess, and where the excess may be none.

    >>> line = _Line(slope=-1.0)
    >>> line.add(2.0, math.log(2.0))
    >>> round(math.exp(line.crossing()), 2)
    4.0
    """

    def __init__(self, slope: float) -> None:
        self.asked: dict[float, float] = {}
        self.slope = slope
        self._last: tuple[float, float] | None = None
        self._too_small, self._kept = -math.inf, math.inf  # Logarithms.

    def add(self, number: float, excess: float) -> None:
        """Take down the excess of one number."""
        self.asked[number] = excess
        at = math.log(number)
        if self._last is not None and at != self._last[0]:
            slope = (excess - self._last[1]) / (at - self._last[0])
            self.slope = min(slope, _FLATTEST)
        self._last = at, excess
        if excess > 0:
            self._too_small = max(self._too_small, at)
        else:
            self._kept = min(self._kept, at)

    def crossing(self) -> float:
        """Return the logarithm of the next number to ask."""
        at, excess = self._last or (0.0, 0.0)
        step = -(excess + _AIM) / self.slope
        following = at + min(max(step, -_LARGEST_STEP), _LARGEST_STEP)
        if self._too_small < following < self._kept:
            return following
        if math.isinf(self._too_small) or math.isinf(self._kept):
            return at + math.copysign(_FIRST_STEP, excess)
        return (self._too_small + self._kept) / 2

    def smallest_kept(self) -> float:
        """Return the smallest number asked that has no excess."""
        return min(number for number, excess in self.asked.items() if excess <= 0)
