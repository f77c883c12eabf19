"""The report of one audit."""

from dataclasses import dataclass
from typing import final

from dp._reports import Finding, Report, lines_of


__all__ = ("AuditReport",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport(Report):
    """The findings of one audit.

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

    def to_text(self) -> str:
        """Return the report for people to read."""
        return "\n".join(lines_of(self.name, self.findings))
