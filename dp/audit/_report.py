"""What an audit found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from dp.certificate import Finding
from dp.exceptions import PrivacyError


__all__ = ("AuditReport", "lines_of")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What one audit looked at, and whether it held.

    Guarantees:
        * :attr:`ok` is true only if every finding holds.

    Attributes:
        name: Which audit.
        findings: One for each thing that was tested.
    """

    name: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every finding holds."""
        return all(finding.holds for finding in self.findings)

    def raise_if_failed(self) -> None:
        """Raise if a finding does not hold.

        Raises:
            PrivacyError: With the text of the report.
        """
        if not self.ok:
            raise PrivacyError(self.to_text())

    def to_text(self) -> str:
        """Return the report for people to read."""
        return "\n".join(lines_of(self.name, self.findings))

    def __str__(self) -> str:
        return self.to_text()


def lines_of(name: str, findings: Sequence[Finding]) -> list[str]:
    """Return a headline, and a line for each finding."""
    num_refuted = sum(not finding.holds for finding in findings)
    verdict = f"{num_refuted} of {len(findings)} REFUTED" if num_refuted else "holds"
    width = max(len(finding.claim) for finding in findings)
    return [f"{name}: {verdict}"] + [
        f"  {'yes' if f.holds else 'NO '}  {f.claim:{width}}  {f.detail}"
        for f in findings
    ]
