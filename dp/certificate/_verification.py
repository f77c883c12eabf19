"""Recompute a certificate's numbers from the certificate alone.

Epsilons come from ``dp_accounting``'s own accountants, so that a published statement
rests on a library that others review, and not on the code that made it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from dp import _checks
from dp._reports import Finding, Report, lines_of
from dp.accounting import ReferenceAccountant, Risk
from dp.accounting._agreement import TOLERANCE
from dp.accounting._composition import rounding
from dp.accounting._reference import compose
from dp.accounting._release import is_allocated
from dp.certificate import _json
from dp.certificate._comparison import same_number, same_words, says
from dp.certificate._document import Certificate
from dp.certificate._numbers import Numbers, together
from dp.certificate._run_findings import findings_of_run
from dp.certificate._sentences import NOT_COVERED, assumed, released
from dp.certificate._software import version_of_accountants
from dp.certificate._soundness import fields_finding
from dp.certificate._tuning import TUNING_FORMAT, TuningCertificate
from dp.certificate._tuning_findings import findings_of_tuning


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
_TUNED: Final = (
    "by dp_accounting for one run, and by this package for the best of several"
)
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
    certificate: Certificate | TuningCertificate | Path | str,
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
        * Of a certificate of :func:`dp.tune` the losses of one run and the divergences
          are those of ``dp_accounting``; what the best of several runs costs follows
          from them by the formulas of this package.
        * A number that differs by more than one part in a million does not hold, and
          an epsilon that differs by more than composing rounds.

    Args:
        certificate: A certificate, of a run, of several or of a choice among runs, or
            the path of its JSON.
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
    if not isinstance(certificate, Certificate | TuningCertificate):
        text = Path(certificate).read_text("utf-8")
        certificate = _read(text)
        checksum = Finding(
            claim="document",
            holds=_json.checksum_holds(text),
            detail="matches its checksum (detects accidental changes, not tampering)",
        )
        checked.append(checksum)
        checked.append(fields_finding(text, certificate.to_json()))
    if isinstance(certificate, TuningCertificate):
        accountant = None if quick else ReferenceAccountant()
        checked.extend(findings_of_tuning(certificate, accountant))
        return Verification(
            findings=tuple(checked), computed=_QUICK if quick else _TUNED
        )
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


def _read(text: str) -> Certificate | TuningCertificate:
    try:
        body = _json.parse(text)
    except ValueError:
        body = None  # Told by the reader of certificates.
    is_of_tuning = isinstance(body, dict) and body.get("format") == TUNING_FORMAT
    return (TuningCertificate if is_of_tuning else Certificate).from_json(text)


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
        yield same_number(
            name, getattr(c, name), getattr(numbers, name), computed, allowed
        )
    for field in fields(Risk):
        yield same_number(
            f"risk: {field.name}",
            getattr(c.risk, field.name),
            getattr(numbers.risk, field.name),
            computed,
            allowed,
        )
    yield from _lower_bound(c)
    for name in _COUNTS:
        yield same_number(name, getattr(c, name), getattr(numbers, name))
    for size in sorted({*c.epsilon_of_groups, *numbers.epsilon_of_groups}):
        yield same_number(
            f"epsilon of {size} units",
            c.epsilon_of_groups.get(size),
            numbers.epsilon_of_groups.get(size),
            computed,
            allowed,
        )
    yield same_words("accountant", c.accountant, numbers.accountant)
    yield same_words("released", c.released, released(c.runs))
    yield says("assumptions", c.assumptions, assumed(c.runs))
    yield says("not covered", c.not_covered, NOT_COVERED)
    for index, run in enumerate(c.runs):
        yield from findings_of_run(f"run {index + 1}: ", run, c, library)


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


def _rounding(c: Certificate) -> float:
    """Return how much of epsilon is lost to rounding where delta is very small."""
    return rounding(together(c.runs, claimed=True)) / c.delta
