"""The least noise, the most steps or the largest batches that keep a target epsilon.

Nothing here has to be believed: what is found is asked of :func:`dp.accounting.epsilon`
before it is returned, and a plan's own :meth:`~dp.plan.PrivacyPlan.guarantee` says what
it costs. A search that fails can waste some of the budget, never exceed it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from dp import _checks
from dp._reports import shown
from dp._typing import Assignment, NeighboringRelation
from dp.accounting import Release, Truncation
from dp.calibration._risk import RiskTarget
from dp.calibration._search import WASTE, RenyiOrder, Search
from dp.schedule import Schedule, rounded_up


__all__ = (
    "calibrate_noise_multiplier",
    "calibrate_sampling_probability",
    "calibrate_steps",
    "rough_noise_multiplier",
)

_DIGITS: Final = 6  # Significant digits of what is found.
_MOST_STEPS: Final = 10**9


def calibrate_noise_multiplier(
    *,
    target_epsilon: float | None = None,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
    shape: Schedule | None = None,
    truncation: Truncation | None = None,
    other_releases: Sequence[Release] = (),
    steps_per_pass: int | None = None,
    disjoint: Assignment | None = None,
    group_size: int = 1,
    renyi_order: RenyiOrder = None,
    target_risk: RiskTarget | None = None,
) -> float:
    """Return the smallest noise multiplier found that keeps the target.

    Guarantees:
        * The epsilon of *steps* releases with it and the *other_releases*, as
          :func:`dp.accounting.epsilon` computes it, is at most *target_epsilon*, and 0.05 % below it at most.

    Args:
        target_epsilon: What all steps may cost; None with *target_risk*.
        target_delta: The delta it is for.
        sampling_probability: Probability that an example is in a batch.
        steps: How many releases.
        neighboring_relation: What two neighbouring datasets are.
        shape: A schedule that what is returned is multiplied with, step by step.
        truncation: How batches are made smaller, if they are.
        other_releases: What is released about the same data beside the steps, such as
            private statistics.
        steps_per_pass: Steps of a pass by random allocation, or of disjoint batches;
            None for Poisson samples.
        disjoint: How disjoint batches are assigned; None for random allocation.
        group_size: How many examples may differ at once.
        renyi_order: The order of a Renyi filter at which epsilon is computed, or
            ``"best"``; None computes it as for noise that is fixed in advance.
        target_risk: What to keep in place of *target_epsilon*.

    Raises:
        ValueError: If a number is out of range, or if the other releases alone leave
            nothing of the target.
    """
    steps = _checks.count(steps=steps)
    shape = shape or Schedule(((steps, 1.0),))
    phases = list(shape.phases_until(steps))
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
                    steps_per_pass=steps_per_pass,
                    disjoint=disjoint,
                )
                for count, relative in phases
            ),
        ]

    search = Search(
        **_goal(target_epsilon, target_risk, renyi_order),
        target_delta=_checks.open_unit(target_delta=target_delta),
        relation=neighboring_relation,
        group_size=group_size,
        releases=releases,
        allowed=lambda sigma: rounded_up(sigma, digits=_DIGITS),
    )
    _check_left(search, other_releases)
    return search.smallest()


def rough_noise_multiplier(
    *,
    target_epsilon: float | None = None,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
    group_size: int = 1,
    target_risk: RiskTarget | None = None,
) -> float:
    """Return about the least noise multiplier, within a few percent, in less time.

    To compare plans, not to make one: what it costs may be above the target.

    Raises:
        ValueError: If a number is out of range.
    """
    return Search(
        **_goal(target_epsilon, target_risk, None),
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
        group_size=group_size,
    ).roughly_smallest()


def _goal(
    target_epsilon: float | None,
    target_risk: RiskTarget | None,
    renyi_order: RenyiOrder,
) -> dict[str, Any]:
    """Return what a search has to keep, as its arguments say it.

    Raises:
        ValueError: If not exactly one target is given, or a risk with a Renyi order.
    """
    if (target_epsilon is None) == (target_risk is None):
        raise ValueError(
            "give exactly one of target_epsilon and target_risk, got"
            f" target_epsilon={shown(target_epsilon)} and"
            f" target_risk={shown(target_risk)}"
        )
    if target_epsilon is not None:
        kept = _checks.positive(target_epsilon=target_epsilon)
        return {"target_epsilon": kept, "renyi_order": renyi_order}
    if renyi_order is not None:
        raise ValueError(
            "a Renyi filter keeps an epsilon: give target_epsilon instead of"
            f" target_risk, or leave out renyi_order={shown(renyi_order)}"
        )
    return {"target_epsilon": math.inf, "renyi_order": None, "target_risk": target_risk}


def _check_left(search: Search, other_releases: Sequence[Release]) -> None:
    """Refuse releases beside the steps that leave nothing of the target."""
    if not other_releases:
        return
    others = replace(search, releases=lambda _: other_releases)
    if others.excess(1.0) >= math.log1p(-WASTE):
        target = others.target_risk or f"target_epsilon={others.target_epsilon!r}"
        raise ValueError(
            f"other_releases cost all of {target}, or nearly, which leaves nothing for"
            " the steps; add noise to them"
        )


def calibrate_sampling_probability(
    *,
    target_epsilon: float | None = None,
    target_delta: float,
    noise_multiplier: float,
    steps: int,
    neighboring_relation: NeighboringRelation,
    truncation: Truncation | None = None,
    other_releases: Sequence[Release] = (),
    steps_per_pass: int | None = None,
    disjoint: Assignment | None = None,
    group_size: int = 1,
    renyi_order: RenyiOrder = None,
    target_risk: RiskTarget | None = None,
) -> float:
    """Return the largest sampling probability found that keeps the target.

    Guarantees:
        * As of :func:`calibrate_noise_multiplier`; it is 1 where that keeps the target.

    Args:
        target_epsilon: What all steps may cost; None with *target_risk*.
        target_delta: The delta it is for.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        steps: How many releases.
        neighboring_relation: What two neighbouring datasets are.
        truncation: How batches are made smaller, if they are.
        other_releases: What is released about the same data beside the steps.
        steps_per_pass: None; passes leave no probability to find.
        disjoint: None; the same.
        group_size: How many examples may differ at once.
        renyi_order: The order of a Renyi filter at which epsilon is computed, or
            ``"best"``; None computes it as for noise that is fixed in advance.
        target_risk: What to keep in place of *target_epsilon*.

    Raises:
        ValueError: If a number is out of range, or if the other releases alone leave
            nothing of the target.
    """
    _checks.positive(noise_multiplier=noise_multiplier)
    if steps_per_pass is not None or disjoint is not None:
        raise ValueError(
            f"steps_per_pass={steps_per_pass!r} fixes the sampling probability, so none"
            " is left to find; leave out the noise multiplier or the steps"
        )
    search = Search(
        **_goal(target_epsilon, target_risk, renyi_order),
        target_delta=_checks.open_unit(target_delta=target_delta),
        relation=neighboring_relation,
        group_size=group_size,
        releases=lambda one_over_q: [
            *other_releases,
            Release(
                sampling_probability=1 / one_over_q,
                noise_multiplier=noise_multiplier,
                count=steps,
                truncation=truncation,
            ),
        ],
        allowed=lambda one_over_q: max(1.0, rounded_up(one_over_q, digits=_DIGITS)),
    )
    _check_left(search, other_releases)
    return 1 / search.smallest()


def calibrate_steps(
    *,
    target_epsilon: float | None = None,
    target_delta: float,
    noise_multiplier: float,
    sampling_probability: float,
    neighboring_relation: NeighboringRelation,
    truncation: Truncation | None = None,
    other_releases: Sequence[Release] = (),
    steps_per_pass: int | None = None,
    disjoint: Assignment | None = None,
    group_size: int = 1,
    renyi_order: RenyiOrder = None,
    target_risk: RiskTarget | None = None,
) -> int:
    """Return the largest number of steps found that keeps the target, up to 10**9.

    Guarantees:
        * As of :func:`calibrate_noise_multiplier`, unless one step more would exceed
          the target.

    Args:
        target_epsilon: What all steps may cost; None with *target_risk*.
        target_delta: The delta it is for.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sampling_probability: Probability that an example is in a batch.
        neighboring_relation: What two neighbouring datasets are.
        truncation: How batches are made smaller, if they are.
        other_releases: What is released about the same data beside the steps.
        steps_per_pass: Steps of a pass by random allocation, or of disjoint batches;
            None for Poisson samples.
        disjoint: How disjoint batches are assigned; None for random allocation.
        group_size: How many examples may differ at once.
        renyi_order: The order of a Renyi filter at which epsilon is computed, or
            ``"best"``; None computes it as for noise that is fixed in advance.
        target_risk: What to keep in place of *target_epsilon*.

    Raises:
        ValueError: If a number is out of range, if the other releases alone leave
            nothing of the target, or if one step more costs too much already.
    """
    _checks.positive(noise_multiplier=noise_multiplier)

    unit = 1 if steps_per_pass is None else steps_per_pass  # Passes are whole.
    most = max(1, _MOST_STEPS // unit)

    def releases(one_over_units: float) -> list[Release]:
        return [
            *other_releases,
            Release(
                sampling_probability=sampling_probability,
                noise_multiplier=noise_multiplier,
                count=round(1 / one_over_units) * unit,
                truncation=truncation,
                steps_per_pass=steps_per_pass,
                disjoint=disjoint,
            ),
        ]

    search = Search(
        **_goal(target_epsilon, target_risk, renyi_order),
        target_delta=_checks.open_unit(target_delta=target_delta),
        relation=neighboring_relation,
        group_size=group_size,
        releases=releases,
        # Slightly more, so that a whole number is not rounded down to the next.
        allowed=lambda x: 1 / min(max(1, math.floor(1 / x * (1 + 1e-12))), most),
        most=1.0,
        smaller=lambda x: 1 / min(round(1 / x) + 1, most),
    )
    _check_left(search, other_releases)
    one_over_steps = search.smallest()
    if search.excess(one_over_steps) > 0:
        raise ValueError(
            f"{target_risk or f'target_epsilon={target_epsilon!r}'} does not allow"
            f" {'one step' if unit == 1 else f'a pass of {unit} steps'} at"
            f" noise_multiplier={noise_multiplier!r}; add noise"
        )
    return round(1 / one_over_steps) * unit
