"""Compute a certificate's numbers again, from the certificate alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from dp import _checks
from dp.accounting import epsilon
from dp.certificate import _json
from dp.certificate._document import Certificate, CertifiedRun, Numbers


__all__ = ("Finding", "Verification", "verify")

_TOLERANCE: Final = 1e-6  # Of a recomputed number, relative.
_RECOMPUTED: Final = (
    "epsilon",
    "epsilon_pld",
    "epsilon_rdp",
    "epsilon_unamplified",
    "delta_error",
    "steps",
    "key_epochs",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a verification: what was compared, and whether it held."""

    claim: str
    holds: bool
    detail: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a certificate claims, checked line by line.

    Guarantees:
        * ``ok`` is true only if every finding holds.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every line holds."""
        return all(finding.holds for finding in self.findings)


def verify(certificate: Certificate | Path | str) -> Verification:
    """Compute a certificate's numbers again, from the certificate alone.

    Args:
        certificate: A certificate, or the path of its JSON.

    Raises:
        LedgerError: If the file is not a certificate.
        OSError: If it cannot be read.
    """
    if isinstance(certificate, Certificate):
        return Verification(findings=tuple(_findings(certificate)))
    text = Path(certificate).read_text("utf-8")
    parsed = Certificate.from_json(text)
    checksum = Finding(
        claim="document",
        holds=_json.checksum_holds(text),
        detail="is compared with its checksum, which an accident does not know",
    )
    return Verification(findings=(checksum, *_findings(parsed)))


def _findings(c: Certificate) -> Iterator[Finding]:
    try:
        _checks.open_unit(delta=c.delta)
        numbers = Numbers.of(c.runs, delta=c.delta, relation=c.neighboring_relation)
    except ValueError as error:
        yield Finding(claim="charges", holds=False, detail=str(error))
        return
    for name in _RECOMPUTED:
        yield _same_number(name, getattr(c, name), getattr(numbers, name))
    for size in sorted({*c.epsilon_of_groups, *numbers.epsilon_of_groups}):
        yield _same_number(
            f"epsilon of {size} units",
            c.epsilon_of_groups.get(size),
            numbers.epsilon_of_groups.get(size),
        )
    yield _same_words("accountant", c.accountant, numbers.accountant)
    for index, run in enumerate(c.runs):
        yield from _findings_of_run(f"run {index + 1}: ", run, c)


def _findings_of_run(
    prefix: str, run: CertifiedRun, c: Certificate
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
        spent = epsilon(
            run.releases,
            delta=plan.target_delta,
            neighboring_relation=plan.neighboring_relation,
        ).epsilon
        yield Finding(
            claim=f"{prefix}target epsilon",
            holds=spent <= plan.target_epsilon,
            detail=f"spent {spent:.6g} of {plan.target_epsilon:.6g}",
        )


def _same_number(claim: str, stated: float | None, computed: float | None) -> Finding:
    both = stated is not None and computed is not None
    holds = stated == computed or (
        both
        and math.isclose(float(stated or 0), float(computed or 0), rel_tol=_TOLERANCE)
    )
    return Finding(
        claim=claim,
        holds=holds,
        detail=f"states {_shown(stated)}, recomputed {_shown(computed)}",
    )


def _shown(number: float | None) -> str:
    return "none" if number is None else f"{number:.6g}"


def _same_words(claim: str, stated: str, computed: str) -> Finding:
    detail = f"states {stated!r}" + (
        "" if stated == computed else f", recomputed {computed!r}"
    )
    return Finding(claim=claim, holds=stated == computed, detail=detail)
