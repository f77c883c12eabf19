"""The search for the smallest number whose releases keep a target."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

from dp._typing import NeighboringRelation
from dp.accounting import (
    Release,
    _resolution,
    epsilon,
    merge_equal_releases,
    risk,
)
from dp.accounting._accountant import bound_by_pld
from dp.accounting._release import is_allocated
from dp.accounting._renyi import best_order, epsilon_of_order, renyi_cost
from dp.calibration._risk import RiskTarget


__all__ = ("WASTE", "RenyiOrder", "Search")

WASTE: Final = 5e-4  # What may be left of a target, relative to it.
_AIM: Final = 1e-4  # Below the target, so that an answer there is accepted.
_VAGUE: Final = 2e-2  # Of the bound that a search begins with, relative.
_FIRST_STEP: Final = 0.05  # Of a search without a slope, in the logarithm.
_LARGEST_STEP: Final = 3.0
_FLATTEST: Final = (
    -0.05
)  # Slope: epsilon falls, whatever two bounds that are close say.
_MOST_BOUNDS: Final = 200
_LEAST_EPSILON: Final = 1e-12  # Logarithms of epsilon begin here.

RenyiOrder = float | Literal["best"] | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Find nearly the smallest number whose releases keep a target.

    Attributes:
        target_epsilon: What they may cost.
        target_delta: The delta it is for.
        relation: What neighbouring datasets are.
        group_size: How many examples may differ at once.
        renyi_order: The order of a Renyi filter, or ``"best"``; None for no filter.
        releases: What is released, by the number. Their epsilon falls as it grows.
        allowed: Returns the next number that may be an answer, on the private side.
        most: The largest number there is.
        smaller: Returns the next smaller number, where there are not many.
        target_risk: What they may risk, in place of what they may cost.
    """

    target_epsilon: float
    target_delta: float
    relation: NeighboringRelation
    group_size: int
    renyi_order: RenyiOrder
    releases: Callable[[float], Sequence[Release]]
    allowed: Callable[[float], float]
    most: float = math.inf
    smaller: Callable[[float], float] | None = None
    target_risk: RiskTarget | None = None

    def excess(self, number: float) -> float:
        """Return by how much the logarithm of what will be claimed is too large."""
        if self.target_risk is not None:
            return self._excess_of_risk(number, _resolution.TIGHT)
        if self.renyi_order is not None:
            return self._logarithm(self._filtered(number, self.renyi_order))
        spent = epsilon(
            self.releases(number),
            delta=self.target_delta,
            **self._neighbours,
        ).epsilon
        return self._logarithm(spent)

    @property
    def _neighbours(self) -> dict[str, Any]:
        """What two datasets differ in, as the accountant is told."""
        return {"neighboring_relation": self.relation, "group_size": self.group_size}

    def _excess_of_risk(self, number: float, tolerance: float) -> float:
        assert self.target_risk is not None, "asked by its callers"  # noqa: S101 -- of type checkers
        found = risk(
            self.releases(number),
            delta=self.target_delta,
            tolerance=tolerance,
            **self._neighbours,
        )
        return self.target_risk.excess(found)

    def _filtered(self, number: float, order: float | Literal["best"]) -> float:
        """Return the epsilon of the releases at the order of a Renyi filter."""
        releases = self.releases(number)
        if order == "best":
            order = best_order(
                releases, delta=self.target_delta, relation=self.relation
            )
        cost = renyi_cost(releases, order, self.relation)
        return epsilon_of_order(cost, order, self.target_delta)

    def _vague_excess(self, number: float) -> float:
        """Return the same of a bound in wide buckets, in a hundredth of the time.

        Random allocation costs about as much as Poisson samples.
        """
        if self.target_risk is not None:
            return self._excess_of_risk(number, _VAGUE)
        if self.renyi_order is not None:
            return self.excess(number)
        releases = merge_equal_releases(
            replace(release, steps_per_pass=None)
            if is_allocated([release])
            else release
            for release in self.releases(number)
        )
        spent, _ = bound_by_pld(
            releases, self.target_delta, self.relation, _VAGUE, self.group_size
        )
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
        # Example: a number of 1.0 costs twice the target, so an excess of log 2 = 0.69.
        # With a slope of -1 the next is exp(0.69), about 2.0.
        line = _Line(slope)
        while number not in line.asked and len(line.asked) < _MOST_BOUNDS:
            excess = self.excess(number)
            line.add(number, excess)
            if -WASTE <= excess <= 0 or (excess > 0 and number >= self.most):
                return number
            number = min(self.allowed(math.exp(line.crossing())), self.most)
            if number in line.asked and self.smaller is not None:
                number = self.smaller(line.smallest_kept())
        return line.smallest_kept()

    def roughly_smallest(self) -> float:
        """Return about the smallest number, by bounds in wide buckets alone."""
        return self._start()[0]

    def _start(self) -> tuple[float, float]:
        """Return where a bound in wide buckets is the target, and its slope there."""
        number, line = min(1.0, self.most), _Line(-1.0)
        while number not in line.asked and len(line.asked) < _MOST_BOUNDS:
            excess = self._vague_excess(number)
            line.add(number, excess)
            if abs(excess) <= _VAGUE:
                break
            number = min(self.allowed(math.exp(line.crossing())), self.most)
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
        # Between the largest number that cost too much and the smallest that did not.
        if self._too_small < following < self._kept:
            return following
        if math.isinf(self._too_small) or math.isinf(self._kept):
            return at + math.copysign(_FIRST_STEP, excess)
        return (self._too_small + self._kept) / 2

    def smallest_kept(self) -> float:
        """Return the smallest number asked that has no excess."""
        return min(number for number, excess in self.asked.items() if excess <= 0)
