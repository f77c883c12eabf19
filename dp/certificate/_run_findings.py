"""Check the charges of one run of a certificate against its plan, from the certificate."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dp._reports import Finding
from dp.accounting import ReferenceAccountant, Release, epsilon
from dp.accounting._agreement import TOLERANCE
from dp.accounting._release import first_releases
from dp.accounting._renyi import epsilon_of_order, renyi_cost
from dp.certificate import _json
from dp.certificate._comparison import same_number, same_words
from dp.certificate._document import Certificate
from dp.certificate._evidence import evidence_finding
from dp.certificate._run import CertifiedRun
from dp.certificate._soundness import charges_finding, newer_finding
from dp.ledger import rest_of_plan
from dp.ledger._advisories import advisories_since


__all__ = ("findings_of_run",)


def findings_of_run(
    prefix: str, run: CertifiedRun, c: Certificate, library: ReferenceAccountant | None
) -> Iterator[Finding]:
    """Yield what is wrong or right with one run of a certificate.

    Args:
        prefix: What the claims of the findings begin with.
        run: The run.
        c: Its certificate.
        library: Who computes epsilons, if not this package.
    """
    plan = run.plan
    sha256 = _json.sha256(plan.to_dict())
    yield same_words(f"{prefix}plan", run.plan_sha256, sha256)
    yield same_words(
        f"{prefix}relation", c.neighboring_relation, plan.neighboring_relation
    )
    yield same_words(f"{prefix}unit", c.unit_of_privacy, plan.unit_of_privacy)
    yield same_number(f"{prefix}group size", c.group_size, plan.group_size)
    if len(c.runs) == 1:  # A composition may be stated at a delta of its own.
        yield same_number(f"{prefix}delta", c.delta, plan.target_delta)
    yield charges_finding(f"{prefix}charges", run)
    yield _advised(f"{prefix}advisories", run)
    yield newer_finding(f"{prefix}release", run)
    yield _sampled_as_planned(f"{prefix}sampling", run)
    if run.has_passes:
        yield _whole_passes(f"{prefix}passes", run)
    yield Finding(
        claim=f"{prefix}planned steps",
        holds=run.claimed_steps <= plan.steps,
        detail=f"took {run.steps} of {plan.steps}",
    )
    yield _remaining(f"{prefix}remaining steps", run, c, library)
    yield evidence_finding(f"{prefix}evidence", run)
    if plan.target_epsilon is not None:
        yield _target(f"{prefix}target epsilon", run, c, library)


def _advised(claim: str, run: CertifiedRun) -> Finding:
    """Return whether the software that charged had no fault that is known by now."""
    faults = advisories_since(run.num_advisories)
    told = " ".join(f"{a.name}: {a.fault} It affects {a.affects}." for a in faults)
    return Finding(
        claim=claim,
        holds=not faults,
        detail=f"it was charged by a release with faults by which epsilon may be too"
        f" low. {told}"
        if faults
        else "no fault is known of the release that charged it",
    )


def _sampled_as_planned(claim: str, run: CertifiedRun) -> Finding:
    """Return whether every release is accounted as sampled by the plan.

    Those declared public need not be; the certificate says so of each.
    """
    plan = run.plan
    # As accounted, not as used: a batch of fewer examples is accounted at the plan's.
    bound = [charge for charge in run.charges if charge.public is None]
    probabilities = {charge.to_release().sampling_probability for charge in bound}
    alike = {charge.truncation for charge in bound} <= {plan.truncation}
    passes = {(c.steps_per_pass, c.disjoint, c.bands) for c in bound}
    allocated = passes <= {(plan.steps_per_pass, plan.disjoint, plan.bands)}
    return Finding(
        claim=claim,
        holds=probabilities <= {plan.sampling_probability} and alike and allocated,
        detail=f"charged at {sorted(probabilities)}, planned"
        f" {plan.sampling_probability:.6g}"
        + ("" if alike else ", and batches truncated otherwise than planned")
        + ("" if allocated else ", and batches allocated otherwise than planned"),
    )


def _whole_passes(claim: str, run: CertifiedRun) -> Finding:
    """Return whether every pass, or round of bands, was charged whole."""
    # A count of 25 with passes of 10 is no number of whole passes.
    partial = [
        c.count for c in run.charges if c.count % c.to_release().steps_per_charge
    ]
    return Finding(
        claim=claim,
        holds=not partial,
        detail=f"charged for parts of them: {partial}"
        if partial
        else "every one was charged whole",
    )


def _remaining(
    claim: str, run: CertifiedRun, c: Certificate, library: ReferenceAccountant | None
) -> Finding:
    """Return whether the rest of the plan is claimed, unless the end was public.

    Of the rest, only steps that the target does not allow may be missing. In a
    composition another run of the same plan may go on from this one, and claim it.
    """
    alike = [other for other in c.runs if other.plan == run.plan]
    run = _as_one(alike)
    rest = () if run.public_end is not None else rest_of_plan(run.plan, run.charges)
    # Example: 400 of 1000 steps were taken, of which the target allows 900. 500 have to
    # be claimed: with 300 the next one would be within the target, and is missing.
    stated = run.claimed_steps - run.steps
    holds = run.remaining == first_releases(stated, rest)
    if len(alike) > 1:  # Each may have been at another place of the plan.
        holds = _kinds(run.remaining) <= _kinds([*rest, *run.releases, *_planned(run)])
    if holds and stated < sum(release.count for release in rest):
        beyond = epsilon(
            (*run.releases, *first_releases(stated + 1, rest)),
            delta=run.plan.target_delta,
            neighboring_relation=run.plan.neighboring_relation,
            group_size=run.plan.group_size,
            interval=c.intervals.get("epsilon"),
            library=library,
        ).epsilon
        target = run.plan.target_epsilon
        holds = target is not None and beyond > target * (1 - TOLERANCE)
    return Finding(
        claim=claim,
        holds=holds,
        detail=f"claims {stated} that were not taken, of"
        f" {sum(release.count for release in rest)} that were left"
        + ("" if run.public_end is None else f"; the end is public: {run.public_end}"),
    )


def _as_one(runs: Sequence[CertifiedRun]) -> CertifiedRun:
    """Return runs of one plan as a run that charged and claims what all of them do."""
    ends = [run.public_end for run in runs if run.public_end is not None]
    return replace(
        runs[0],
        segments={
            key: charges for run in runs for key, charges in run.segments.items()
        },
        remaining=tuple(release for run in runs for release in run.remaining),
        public_end=ends[0] if ends else None,
    )


def _planned(run: CertifiedRun) -> tuple[Release, ...]:
    return run.plan.releases(run.plan.steps)


def _kinds(releases: Sequence[Release]) -> set[Release]:
    """Return releases without their counts."""
    return {replace(release, count=release.steps_per_charge) for release in releases}


def _target(
    claim: str, run: CertifiedRun, c: Certificate, library: ReferenceAccountant | None
) -> Finding:
    """Return whether what is claimed of a run is within its plan's target."""
    plan = run.plan
    target = plan.target_epsilon or math.inf
    if plan.renyi_order is not None:
        cost = renyi_cost(run.releases, plan.renyi_order, plan.neighboring_relation)
        spent = epsilon_of_order(cost, plan.renyi_order, plan.target_delta)
    else:
        spent = epsilon(
            run.claimed,
            delta=plan.target_delta,
            neighboring_relation=plan.neighboring_relation,
            group_size=plan.group_size,
            interval=c.intervals.get("epsilon"),
            library=library,
        ).epsilon
    return Finding(
        claim=claim,
        # Nothing was released, so no target can be missed.
        holds=not run.steps or spent <= target * (1 + TOLERANCE),
        detail=f"claims {spent:.6g} of {target:.6g}",
    )
