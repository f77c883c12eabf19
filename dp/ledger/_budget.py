"""Decide whether one more release would exceed the plan: policy, not truth.

What was spent is computed by the ledger from its charges alone. Here is only decided
when to stop, so an error here could stop a run too soon or too late, and would show in
what the ledger says was spent.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from operator import le
from typing import final

from dp.accounting import Guarantee, Release, Risk, epsilon, merge_equal_releases
from dp.accounting._renyi import filter_guarantee
from dp.accounting._risk import risk_of_guarantee
from dp.exceptions import BudgetExhaustedError
from dp.plan import PrivacyPlan


__all__ = ("Budget", "cost", "void")


def cost(plan: PrivacyPlan, releases: Sequence[Release]) -> Guarantee:
    """Return what *releases* compose to at the plan's delta, with its queries.

    Queries are paid for from the beginning. Under a Renyi filter, at its order.
    """
    if plan.renyi_order is not None and releases:
        return filter_guarantee(
            releases,
            order=plan.renyi_order,
            target_epsilon=None,
            delta=plan.target_delta,
            relation=plan.neighboring_relation,
        )
    return epsilon(
        (*releases, *plan.query_releases),
        delta=plan.target_delta,
        neighboring_relation=plan.neighboring_relation,
        group_size=plan.group_size,
    )


def void(guarantee: Guarantee) -> Guarantee:
    """Return that nothing is guaranteed, at the same delta."""
    return replace(
        guarantee,
        epsilon=math.inf,
        epsilon_pld=math.inf,
        epsilon_rdp=None if guarantee.epsilon_rdp is None else math.inf,
        accountant="NOT PRIVATE",
    )


@final
class Budget:
    """The releases that a plan allows.

    The accountant takes up to seconds, and a run asks at every step. So answers are
    kept: how far the plan's own steps reach, and up to how many releases of the kind
    at hand were found to keep the target beside the others.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self._affordable: _Affordable = _Affordable()
        self._steps_within_target: int | None = None
        self._planned_risk: Risk | None = None

    def allows_as_planned(self, num_steps: int) -> bool:
        """Whether the plan's first *num_steps* steps keep its target."""
        if self._steps_within_target is None:
            self._steps_within_target = self._most_steps_within_target()
        return num_steps <= self._steps_within_target

    def allows(self, charged: Sequence[Release], release: Release) -> bool:
        """Whether the plan allows *release* after those that were *charged*."""
        after = merge_equal_releases((*charged, release))
        num_steps = sum(r.count for r in after)
        if num_steps > self._plan.steps:
            return False
        # The usual step: everything was as planned so far, and so is this.
        if after == merge_equal_releases(self._plan.releases(num_steps)):
            return self.allows_as_planned(num_steps)
        kind = replace(release, count=1)
        others = tuple(r for r in after if replace(r, count=1) != kind)
        # Example: of noise that was assigned once, 1 release is asked for and answered
        # for 1, then 2 for up to 4, then 5 for up to 11, then 12 for up to 26: 1000
        # such steps take about ten calls of the accountant.
        count = num_steps - sum(r.count for r in others)
        if self._affordable.covers(others, kind, count):
            return True
        most = self._plan.steps - num_steps + count
        # Twice as far as last time, so that a run of equal steps asks rarely.
        for goal in (min(most, count + self._affordable.stride(others, kind)), count):
            if self._within_target((*others, replace(release, count=goal))):
                self._affordable = _Affordable(others, kind, goal, goal - count + 1)
                return True
        return False

    def plans(self, release: Release, step: int) -> bool:
        """Whether *release* is what the plan releases at *step*."""
        plan = self._plan
        return (
            release.noise_multiplier == plan.noise_multiplier_at(step)
            and release.sampling_probability == plan.sampling_probability
            and release.truncation == plan.truncation
            and release.steps_per_pass == plan.steps_per_pass
            and release.disjoint == plan.disjoint
            and release.bands == plan.bands
        )

    def check_as_planned(self, taken: int, count: int) -> None:
        """Raise if *count* steps after those that were *taken* exceed the plan's target.

        Raises:
            BudgetExhaustedError: Then.
        """
        if not self.allows_as_planned(taken + count):
            raise self._exhausted(taken)

    def check(self, charged: Sequence[Release], release: Release) -> None:
        """Raise if the plan does not allow *release* after those that were *charged*.

        Raises:
            BudgetExhaustedError: Then.
        """
        if not self.allows(charged, release):
            raise self._exhausted(sum(r.count for r in charged))

    def check_query(self, charged: Sequence[Release], name: str) -> None:
        """Raise if what was *charged* exceeds the target, with the planned queries.

        Raises:
            BudgetExhaustedError: Then.
        """
        target = self._plan.target_epsilon
        if target is not None and cost(self._plan, charged).epsilon > target:
            raise BudgetExhaustedError(
                f"the plan's budget is spent, so query {name!r} was not asked:"
                f" target_epsilon={target!r}"
            )

    def _exhausted(self, taken: int) -> BudgetExhaustedError:
        return BudgetExhaustedError(
            f"the plan's budget is spent: {taken} of {self._plan.steps} steps were taken,"
            f" target_epsilon={self._plan.target_epsilon!r}; the step was not taken. The"
            " run is over: stop where ledger.is_exhausted. Weights and certificate are"
            " whole; a new plan goes on, and its cost adds to this one's"
        )

    def _most_steps_within_target(self) -> int:
        steps = self._plan.steps
        if self._plan.target_epsilon is None:
            return steps
        if self._within_target(self._plan.releases(steps)):
            return steps
        # A longer run never costs less, so halving finds the last step that is within.
        low, high = 0, steps  # `low` is within, or no step is; `high` is not.
        while high - low > 1:
            middle = (low + high) // 2
            within = self._within_target(self._plan.releases(middle))
            low, high = (middle, high) if within else (low, middle)
        return low

    def _within_target(self, releases: Sequence[Release]) -> bool:
        limit = self._plan.target_epsilon
        spent = cost(self._plan, releases)
        if limit is not None:
            return spent.epsilon <= limit
        # Without a target, what was planned in noise and steps is the target.
        planned = self._planned()
        return spent.epsilon <= planned.epsilon and (
            # The order of a filter decides the risk as it does epsilon.
            self._plan.renyi_order is not None or self._is_no_riskier(releases, planned)
        )

    def _planned(self) -> Guarantee:
        return cost(self._plan, self._plan.releases(self._plan.steps))

    def _is_no_riskier(self, releases: Sequence[Release], planned: Guarantee) -> bool:
        """Whether no number of the risk is above that of all planned steps."""
        # Example: examples are drawn with probability 0.001, and delta is 0.002. Two steps
        # at sigma 0.2 have epsilon 0 there, and multiply odds by 1700, where 100 planned
        # ones at sigma 1 multiply them by 1.07.
        plan = self._plan
        if self._planned_risk is None:
            self._planned_risk = self._risk(plan.releases(plan.steps), planned)
        found = astuple(self._risk(releases, planned))
        return all(map(le, found, astuple(self._planned_risk)))

    def _risk(self, releases: Sequence[Release], planned: Guarantee) -> Risk:
        # In buckets of one width, so that both are rounded alike.
        together = (*releases, *self._plan.query_releases)
        return risk_of_guarantee(planned, together, order=None)


@final
@dataclass(frozen=True, slots=True)
class _Affordable:
    """Beside the releases *others*, up to *count* of the kind *kind* keep the target.

    True of the plan, whatever is charged.
    """

    others: tuple[Release, ...] = ()
    kind: Release | None = None
    count: int = 0
    reach: int = 0

    def covers(self, others: tuple[Release, ...], kind: Release, count: int) -> bool:
        return (others, kind) == (self.others, self.kind) and count <= self.count

    def stride(self, others: tuple[Release, ...], kind: Release) -> int:
        # Zero for another kind of release: what is known of one says nothing of the
        # other.
        return 2 * self.reach if (others, kind) == (self.others, self.kind) else 0
