"""What of a certificate of ``dp.tune`` holds, recomputed from the certificate alone."""

import math
from collections.abc import Iterator, Sequence

from dp._reports import Finding
from dp.accounting import ReferenceAccountant, epsilon
from dp.accounting._agreement import TOLERANCE
from dp.certificate._tuning import (
    TuningCertificate,
    check_tunable,
    conditions,
    delta_error,
    epsilon_of,
)
from dp.plan import PrivacyPlan


__all__ = ("findings_of_tuning",)


def findings_of_tuning(
    c: TuningCertificate, library: ReferenceAccountant | None
) -> Iterator[Finding]:
    """Yield the findings, line by line.

    Divergences of one run come from ``dp_accounting``; the formulas for the best of
    several are those of this package.

    Args:
        c: The certificate.
        library: Who composes the losses of one run; None for this package.
    """
    spent = epsilon_of(c.plans, c.runs)
    alone = max(_of_one_run(plan, c, library) for plan in c.plans)
    yield _same("epsilon", c.epsilon, spent)
    yield _same("epsilon of one run", c.epsilon_of_one_run, alone)
    yield _same("added to delta", c.delta_error, delta_error(c.runs, spent))
    stated = (c.delta, c.neighboring_relation, c.unit_of_privacy)
    planned = {
        (p.target_delta, p.neighboring_relation, p.unit_of_privacy) for p in c.plans
    }
    yield Finding(
        claim="plans",
        holds=planned == {stated},
        detail=f"state delta {c.plans[0].target_delta:g}, {c.plans[0].neighboring_relation}",
    )
    yield _bounded(c.plans)
    yield Finding(
        claim="scores",
        holds=c.public_scores is not None or all(plan.queries for plan in c.plans),
        detail=c.public_scores or "answers of planned queries",
    )
    missing = [s for s in conditions(c.public_scores) if s not in c.conditions]
    yield Finding(
        claim="conditions",
        holds=not missing,
        detail=f"does not say: {' '.join(missing)}" if missing else "says all of them",
    )


def _bounded(plans: Sequence[PrivacyPlan]) -> Finding:
    """Return whether the best of several runs has a bound with every plan."""
    obstacle = "the best of several runs has one with each plan"
    holds = True
    for plan in plans:
        try:
            check_tunable(plan)
        except ValueError as error:
            holds, obstacle = False, str(error)
    return Finding(claim="bound", holds=holds, detail=obstacle)


def _of_one_run(
    plan: PrivacyPlan, c: TuningCertificate, library: ReferenceAccountant | None
) -> float:
    """Return the epsilon of one run with *plan*, at the delta of the certificate."""
    releases = (*plan.releases(plan.steps), *plan.query_releases)
    relation = plan.neighboring_relation
    spent = epsilon(releases, delta=c.delta, neighboring_relation=relation)
    if library is None:
        return spent.epsilon
    return epsilon(
        releases,
        delta=c.delta,
        neighboring_relation=relation,
        interval=spent.interval,
        library=library,
    ).epsilon


def _same(claim: str, stated: float, computed: float) -> Finding:
    return Finding(
        claim=claim,
        holds=stated == computed or math.isclose(stated, computed, rel_tol=TOLERANCE),
        detail=f"states {stated:.6g}, recomputed {computed:.6g}",
    )
