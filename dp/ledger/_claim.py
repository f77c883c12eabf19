"""What may be claimed of charges whose numbers, or whose end, releases may have decided.

Two theorems are used. Releases whose numbers are on the private side of the plan's (more
noise, less sampling, at most as many steps) are dominated by the plan's, however they
were chosen: more noise is post-processing, less sampling is a mixture with a release of
nothing, and a run that ended early is a part of the whole one. And a Renyi filter, whose
order was fixed in advance, bounds releases of any noise. Nothing else is claimed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from dp.accounting import Guarantee, Release, merge_equal_releases
from dp.accounting._release import first_releases
from dp.exceptions import PrivacyError
from dp.ledger._budget import cost
from dp.ledger._charge import Charge
from dp.ledger._segments import Segments
from dp.plan import PrivacyPlan
from dp.schedule import values_of


__all__ = (
    "accounted",
    "check_noise",
    "claim",
    "from_version_1",
    "remaining",
    "rest_of_plan",
)

_UNKNOWN_REASON: Final = "not stated: charged by an earlier release of dp"


def accounted(plan: PrivacyPlan, charge: Charge, step: int) -> Charge:
    """Return *charge* as it is accounted at *step*: as planned where it cost no more.

    Raises:
        PrivacyError: If it cost more than planned, and neither was declared public nor
            is covered by a Renyi filter.
    """
    # Public numbers depend on no release, and a Renyi filter bounds those that do.
    if charge.public is not None or plan.renyi_order is not None:
        return charge
    check_noise(plan, charge.noise_multiplier, step)
    planned_q = plan.sampling_probability
    # That less sampling costs less is proved of whole batches alone.
    is_covered = charge.sampling_probability == planned_q or (
        charge.sampling_probability < planned_q and plan.truncation is None
    )
    if not is_covered or charge.truncation != plan.truncation:
        raise PrivacyError(
            f"the release has sampling_probability={charge.sampling_probability!r} and"
            f" truncation={charge.truncation!r}, and the plan {planned_q!r} and"
            f" {plan.truncation!r}; sample as planned, or make a plan of what is sampled"
        )
    planned_noise = plan.noise_multiplier_at(step)
    if (
        charge.noise_multiplier == planned_noise
        and charge.sampling_probability == planned_q
    ):
        return charge
    return replace(
        charge,
        planned_noise_multiplier=None
        if charge.noise_multiplier == planned_noise
        else planned_noise,
        planned_sampling_probability=None
        if charge.sampling_probability == planned_q
        else planned_q,
    )


def check_noise(plan: PrivacyPlan, noise_multiplier: float, step: int) -> None:
    """Raise if there is less noise than planned, and no Renyi filter.

    Raises:
        PrivacyError: With the remedies.
    """
    planned = plan.noise_multiplier_at(step)
    if plan.renyi_order is None and noise_multiplier < planned:
        raise PrivacyError(
            f"noise_multiplier={noise_multiplier!r} is below the plan's {planned!r} at"
            f" step {step}, and no epsilon covers noise that may depend on what was"
            " released; keep the plan's or more, plan with renyi_order='best', or, if"
            " it was fixed beforehand or follows from public facts alone, call"
            f" assign_public(noise_multiplier={noise_multiplier!r}, reason='...')"
        )


def from_version_1(plan: PrivacyPlan, segments: Segments) -> Segments:
    """Return charges of the first version, which did not ask for reasons.

    Numbers that are not the plan's are stated as what they are: declared by nobody.
    """
    return {
        key: tuple(_with_reason(plan, charge) for charge in segment)
        for key, segment in segments.items()
    }


def _with_reason(plan: PrivacyPlan, charge: Charge) -> Charge:
    planned = (
        charge.noise_multiplier in values_of(plan.noise_multiplier)
        and charge.sampling_probability == plan.sampling_probability
        and charge.truncation == plan.truncation
    )
    if planned or plan.renyi_order is not None:
        return charge
    return replace(charge, public=_UNKNOWN_REASON)


def remaining(plan: PrivacyPlan, charges: Sequence[Charge]) -> tuple[Release, ...]:
    """Return what the plan still allows after *charges*.

    It counts in what is claimed of a run that ended early: whether to go on may have
    been decided by what was released. None is left before the first release, on which
    nothing can depend, and none under a Renyi filter, which bounds any end.
    """
    # Example: 400 of 1000 steps were taken, and then the run was stopped since its
    # weights did well. That depends on releases, so all 1000 are claimed; only what the
    # target would not have allowed is left out.
    rest = rest_of_plan(plan, charges)
    releases = [charge.to_release() for charge in charges]
    target = plan.target_epsilon
    if not rest or target is None or cost(plan, (*releases, *rest)).epsilon <= target:
        return rest
    low, high = (
        0,
        sum(r.count for r in rest),
    )  # `low` keeps the target; `high` does not.
    while high - low > 1:
        middle = (low + high) // 2
        within = (
            cost(plan, (*releases, *first_releases(middle, rest))).epsilon <= target
        )
        low, high = (middle, high) if within else (low, middle)
    return first_releases(low, rest)


def rest_of_plan(plan: PrivacyPlan, charges: Sequence[Charge]) -> tuple[Release, ...]:
    """Return the steps of *plan* after *charges*, whether its target allows them or not.

    A noise multiplier that was declared public last holds until the end.
    """
    taken = sum(charge.count for charge in charges)
    # Answers to queries may decide the end, too, also before the first step.
    is_untouched = not charges and not plan.queries
    if is_untouched or taken >= plan.steps or plan.renyi_order is not None:
        return ()
    if charges and charges[-1].public is not None:
        return (replace(charges[-1].to_release(), count=plan.steps - taken),)
    # Example: a plan of 3 steps at sigma 1 and 5 at sigma 2, of which 4 are taken: the
    # first 3 are skipped, then 1 of the 5, and 4 are left.
    rest, skip = [], taken
    for release in plan.releases(plan.steps):
        if release.count > skip:
            rest.append(replace(release, count=release.count - skip))
        skip = max(0, skip - release.count)
    return tuple(rest)


def claim(plan: PrivacyPlan, charges: Sequence[Charge]) -> Guarantee:
    """Return what holds of a run with *charges*, whatever decided when it ended."""
    releases = [charge.to_release() for charge in charges]
    whole = merge_equal_releases([*releases, *remaining(plan, charges)])
    spent = cost(plan, whole)
    if plan.renyi_order is None or not charges:
        return spent
    # The filter stops before it is exceeded, whatever the noise is: its target is the
    # claim.
    kept = plan.guarantee()
    # Forks that were loaded into one ledger may have spent more than one run is allowed.
    return kept if spent.epsilon <= kept.epsilon else spent
