"""Recompute a certificate's numbers from the certificate alone.

Epsilons come from ``dp_accounting``'s own accountants, so that a published statement
rests on a library that others review, and not on the code that made it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from dp import _checks
from dp._reports import Finding, Report, lines_of
from dp.accounting import ReferenceAccountant, epsilon, merge_equal_releases
from dp.accounting._agreement import TOLERANCE
from dp.accounting._composition import rounding
from dp.accounting._reference import compose
from dp.certificate import _json
from dp.certificate._document import Certificate
from dp.certificate._numbers import Numbers
from dp.certificate._run import CertifiedRun
from dp.certificate._sentences import NOT_COVERED, assumed, released
from dp.certificate._software import version_of_accountants


if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

__all__ = ("Verification", "verify")

_EPSILONS: Final = ("epsilon", "epsilon_pld", "epsilon_rdp", "epsilon_unamplified")
_COUNTS: Final = ("delta_error", "steps", "key_epochs")
_QUICK: Final = "by the closed form of this package"

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
        * The standard sentences on what is assumed, what is not covered and what was
          released have to be there; a document that states a thing twice is refused.
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
    library = None if quick else _library(certificate, progress)
    computed = _QUICK if quick else f"by dp_accounting {version_of_accountants()} alone"
    found = tuple(_findings(certificate, library, computed))
    return Verification(findings=(*checked, *found), computed=computed)


def _library(c: Certificate, progress: Progress | None) -> ReferenceAccountant:
    """Return accountants that tell how far they have come."""
    if progress is None:
        return ReferenceAccountant()
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
            library=library,
            intervals=c.intervals,
        )
    except ValueError as error:
        yield Finding(claim="charges", holds=False, detail=str(error))
        return
    allowed = TOLERANCE + _rounding(c)
    for name in _EPSILONS:
        yield _same_number(
            name, getattr(c, name), getattr(numbers, name), computed, allowed
        )
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
    if len(c.runs) == 1:  # A composition may be stated at a delta of its own.
        yield _same_number(f"{prefix}delta", c.delta, plan.target_delta)
    probabilities = {charge.sampling_probability for charge in run.charges}
    alike = {charge.truncation for charge in run.charges} <= {plan.truncation}
    yield Finding(
        claim=f"{prefix}sampling",
        holds=probabilities <= {plan.sampling_probability} and alike,
        detail=f"charged at {sorted(probabilities)}, planned"
        f" {plan.sampling_probability:.6g}"
        + ("" if alike else ", and batches truncated otherwise than planned"),
    )
    yield Finding(
        claim=f"{prefix}planned steps",
        holds=run.steps <= plan.steps,
        detail=f"took {run.steps} of {plan.steps}",
    )
    if plan.target_epsilon is not None:
        yield _target(f"{prefix}target epsilon", run, c, library)


def _target(
    claim: str, run: CertifiedRun, c: Certificate, library: ReferenceAccountant | None
) -> Finding:
    """Return whether a run kept its plan's target.

    A bound of the whole plan also bounds its first steps, whose own buckets may be
    slightly wider.
    """
    plan = run.plan
    planned = merge_equal_releases(plan.releases(run.steps))
    candidates = [run.releases]
    if run.steps <= plan.steps and run.releases == planned:
        candidates.append(merge_equal_releases(plan.releases(plan.steps)))
    target = plan.target_epsilon or math.inf
    spent = math.inf
    for releases in candidates:
        if spent > target * (1 + TOLERANCE):
            bound = epsilon(
                releases,
                delta=plan.target_delta,
                neighboring_relation=plan.neighboring_relation,
                interval=c.intervals.get("epsilon"),
                library=library,
            )
            spent = min(spent, bound.epsilon)
    return Finding(
        claim=claim,
        holds=spent <= target * (1 + TOLERANCE),
        detail=f"spent {spent:.6g} of {target:.6g}",
    )


def _rounding(c: Certificate) -> float:
    """Return how much of epsilon is lost to rounding where delta is very small."""
    releases = merge_equal_releases(r for run in c.runs for r in run.releases)
    return rounding(releases) / c.delta


def _same_number(
    claim: str,
    stated: float | None,
    computed: float | None,
    by: str = "",
    tolerance: float = TOLERANCE,
) -> Finding:
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
