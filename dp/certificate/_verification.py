"""Recompute a certificate's numbers from the certificate alone.

Epsilons come from ``dp_accounting``'s own accountants, so that a published statement
rests on a library that others review, and not on the code that made it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from dp import _checks
from dp._reports import Finding, Report, lines_of
from dp.accounting import ReferenceAccountant, Risk, epsilon
from dp.accounting._agreement import TOLERANCE
from dp.accounting._composition import rounding
from dp.accounting._counted import check_counted
from dp.accounting._reference import compose
from dp.accounting._release import first_releases, is_allocated
from dp.accounting._renyi import epsilon_of_order, renyi_cost
from dp.certificate import _json
from dp.certificate._document import Certificate
from dp.certificate._evidence import evidence_finding
from dp.certificate._numbers import Numbers, together
from dp.certificate._run import CertifiedRun
from dp.certificate._sentences import NOT_COVERED, assumed, released
from dp.certificate._software import version_of_accountants
from dp.certificate._soundness import charges_finding, fields_finding, newer_finding
from dp.ledger import rest_of_plan
from dp.ledger._advisories import advisories_since


if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

__all__ = ("Verification", "verify")

_EPSILONS: Final = (
    "epsilon",
    "epsilon_pld",
    "epsilon_rdp",
    "epsilon_unamplified",
    "epsilon_of_steps_taken",
)
_COUNTS: Final = ("delta_error", "steps", "key_epochs")
_QUICK: Final = "by the closed form of this package"
_ALLOCATED: Final = (
    "by this package, as dp_accounting has no losses of random allocation"
)

Progress = Callable[[int, int], None]  # Of composed kinds of releases, and of all.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification(Report):
    """The claims of a certificate, checked line by line.

    Attributes:
        findings: The lines.
        computed: By what epsilons were computed again, in words.

    Guarantees:
        * ``ok`` is true only if every finding holds.
    """

    findings: tuple[Finding, ...]
    computed: str

    @property
    def ok(self) -> bool:
        """Whether every line holds."""
        return all(finding.holds for finding in self.findings)

    def to_text(self) -> str:
        """Return the verification for people to read."""
        name = f"certificate, recomputed {self.computed}"
        return "\n".join(lines_of(name, self.findings))


def verify(
    certificate: Certificate | Path | str,
    *,
    quick: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Recompute a certificate's numbers from the certificate alone.

    Guarantees:
        * Unless *quick*, every epsilon is that of ``PLDAccountant`` and
          ``RdpAccountant``; the losses by which budgets were kept are not used.
        * Of random allocation they know nothing. Then epsilons are computed as they were
          stated, and epsilon has to be above a lower bound that shares nothing with it.
        * The standard sentences on what is assumed (of the unit of privacy and of tensors
          that were declared public, too), what is not covered and what was released have
          to be there; a document that states a thing twice is refused.
        * A number that differs by more than one part in a million does not hold, and
          an epsilon that differs by more than composing rounds.

    Args:
        certificate: A certificate, or the path of its JSON.
        quick: Whether epsilons are computed by the closed form, as they were stated.
            That finds what was altered, but not what this package computes wrongly.
            It is for runs with many noise multipliers: ``dp_accounting`` takes one to
            five seconds for each.
        progress: Called with how many kinds of releases were composed, and of how
            many.

    Raises:
        LedgerError: If the file is not a certificate.
        OSError: If it cannot be read.
    """
    checked: list[Finding] = []
    if not isinstance(certificate, Certificate):
        text = Path(certificate).read_text("utf-8")
        certificate = Certificate.from_json(text)
        checksum = Finding(
            claim="document",
            holds=_json.checksum_holds(text),
            detail="matches its checksum (detects accidental changes, not tampering)",
        )
        checked.append(checksum)
        checked.append(fields_finding(text, certificate.to_json()))
    library, computed = None, _QUICK
    # The library has no event for these, so no epsilon of the certificate can be its
    # own.
    if any(run.is_allocated for run in certificate.runs):
        computed = _ALLOCATED
    elif not quick:
        library = _library(certificate, progress)
        computed = f"by dp_accounting {version_of_accountants()} alone"
    checked.extend(_findings(certificate, library, computed))
    return Verification(findings=tuple(checked), computed=computed)


def _library(c: Certificate, progress: Progress | None) -> ReferenceAccountant:
    """Return accountants that tell how far they have come."""
    if progress is None:
        return ReferenceAccountant()
    # A first round notes what is to be composed and composes nothing, so that progress
    # knows how much there is. Accountants of nothing answer in a moment.
    events: list[object] = []
    planned = ReferenceAccountant(lambda _, event: events.append(event))
    for _ in _findings(c, planned, ""):
        pass
    done = count(1)

    def composed(accountant: "PLDAccountant", event: "DpEvent") -> None:
        compose(accountant, event)
        progress(next(done), len(events))

    return ReferenceAccountant(composed)


def _findings(
    c: Certificate, library: ReferenceAccountant | None, computed: str
) -> Iterator[Finding]:
    try:
        _checks.open_unit(delta=c.delta)
        numbers = Numbers.of(
            c.runs,
            delta=c.delta,
            relation=c.neighboring_relation,
            group_size=c.group_size,
            library=library,
            intervals=c.intervals,
        )
    except ValueError as error:
        yield Finding(claim="charges", holds=False, detail=str(error))
        return
    allowed = TOLERANCE + _rounding(c)
    # Example: epsilon 2.99950 is stated and 2.99951 computed: 3 parts in a million
    # apart, and so not equal, unless delta is so small that composing rounds as much.
    for name in _EPSILONS:
        yield _same_number(
            name, getattr(c, name), getattr(numbers, name), computed, allowed
        )
    for field in fields(Risk):
        yield _same_number(
            f"risk: {field.name}",
            getattr(c.risk, field.name),
            getattr(numbers.risk, field.name),
            computed,
            allowed,
        )
    yield from _lower_bound(c)
    for name in _COUNTS:
        yield _same_number(name, getattr(c, name), getattr(numbers, name))
    for size in sorted({*c.epsilon_of_groups, *numbers.epsilon_of_groups}):
        yield _same_number(
            f"epsilon of {size} units",
            c.epsilon_of_groups.get(size),
            numbers.epsilon_of_groups.get(size),
            computed,
            allowed,
        )
    yield _same_words("accountant", c.accountant, numbers.accountant)
    yield _same_words("released", c.released, released(c.runs))
    yield _says("assumptions", c.assumptions, assumed(c.runs))
    yield _says("not covered", c.not_covered, NOT_COVERED)
    for index, run in enumerate(c.runs):
        yield from _findings_of_run(f"run {index + 1}: ", run, c, library)


def _lower_bound(c: Certificate) -> Iterator[Finding]:
    """Yield whether epsilon of random allocation is above a bound from below."""
    releases = together(c.runs, claimed=True)
    if not is_allocated(releases) or not c.is_private:
        return
    from dp.accounting._lower_bounds import lower_bound  # noqa: PLC0415 -- scipy

    least = lower_bound(releases, c.delta)
    yield Finding(
        claim="lower bound",
        holds=c.epsilon >= least,
        detail=f"states {c.epsilon:.6g}, and at least {least:.6g} is needed, computed"
        " in another way",
    )


def _findings_of_run(
    prefix: str, run: CertifiedRun, c: Certificate, library: ReferenceAccountant | None
) -> Iterator[Finding]:
    plan = run.plan
    sha256 = _json.sha256(plan.to_dict())
    yield _same_words(f"{prefix}plan", run.plan_sha256, sha256)
    yield _same_words(
        f"{prefix}relation", c.neighboring_relation, plan.neighboring_relation
    )
    yield _same_words(f"{prefix}unit", c.unit_of_privacy, plan.unit_of_privacy)
    yield _same_number(f"{prefix}group size", c.group_size, plan.group_size)
    if len(c.runs) == 1:  # A composition may be stated at a delta of its own.
        yield _same_number(f"{prefix}delta", c.delta, plan.target_delta)
    yield charges_finding(f"{prefix}charges", run)
    yield _advised(f"{prefix}advisories", run)
    yield newer_finding(f"{prefix}release", run)
    yield _sampled_as_planned(f"{prefix}sampling", run)
    if run.has_passes:
        yield _whole_passes(f"{prefix}passes", run)
    if any(charge.noise_beside_count is not None for charge in run.charges):
        yield _noise_of_counts(f"{prefix}noise beside counts", run)
    yield Finding(
        claim=f"{prefix}planned steps",
        holds=run.claimed_steps <= plan.steps,
        detail=f"took {run.steps} of {plan.steps}",
    )
    if len(c.runs) == 1:  # In a composition another run may go on from this one.
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


def _noise_of_counts(claim: str, run: CertifiedRun) -> Finding:
    """Return whether gradients and counts have together the noise they are charged as."""
    wrong = []
    for charge in run.charges:
        try:
            check_counted(charge.noise_multiplier, charge.noise_beside_count)
        except ValueError as error:
            wrong.append(str(error))
    return Finding(
        claim=claim,
        holds=not wrong,
        detail=wrong[0]
        if wrong
        else "gradients and counts have the noise they are charged as",
    )


def _remaining(
    claim: str, run: CertifiedRun, c: Certificate, library: ReferenceAccountant | None
) -> Finding:
    """Return whether the rest of the plan is claimed, unless the end was public.

    Of the rest, only steps that the target does not allow may be missing.
    """
    rest = () if run.public_end is not None else rest_of_plan(run.plan, run.charges)
    # Example: 400 of 1000 steps were taken, of which the target allows 900. 500 have to
    # be claimed: with 300 the next one would be within the target, and is missing.
    stated = run.claimed_steps - run.steps
    holds = run.remaining == first_releases(stated, rest)
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


def _rounding(c: Certificate) -> float:
    """Return how much of epsilon is lost to rounding where delta is very small."""
    return rounding(together(c.runs, claimed=True)) / c.delta


def _same_number(
    claim: str,
    stated: float | None,
    computed: float | None,
    by: str = "",
    tolerance: float = TOLERANCE,
) -> Finding:
    # Infinity equals itself, NaN nothing, and None only None.
    both = stated is not None and computed is not None
    holds = stated == computed or (
        both
        and math.isclose(float(stated or 0), float(computed or 0), rel_tol=tolerance)
    )
    return Finding(
        claim=claim,
        holds=holds,
        detail=f"states {_shown(stated)}, recomputed {_shown(computed)} {by}".rstrip(),
    )


def _shown(number: float | None) -> str:
    return "none" if number is None else f"{number:.6g}"


def _says(claim: str, stated: Sequence[str], standard: Sequence[str]) -> Finding:
    """Return whether every standard sentence is stated, whatever else is."""
    # Whoever publishes may say more, and may not leave one of these out.
    missing = [sentence for sentence in standard if sentence not in stated]
    return Finding(
        claim=claim,
        holds=not missing,
        detail=f"does not say: {' '.join(missing)}"
        if missing
        else f"says the {len(standard)} standard sentences",
    )


def _same_words(claim: str, stated: str, computed: str) -> Finding:
    detail = f"states {stated!r}" + (
        "" if stated == computed else f", recomputed {computed!r}"
    )
    return Finding(claim=claim, holds=stated == computed, detail=detail)
