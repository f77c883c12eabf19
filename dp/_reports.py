"""The common form of reports: audits, checks and verifications."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from dp.exceptions import PrivacyError


__all__ = ("Finding", "Report", "lines_of")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a report: what was looked at, and whether it holds.

    Attributes:
        claim: What was looked at.
        holds: Whether it is as it should be.
        detail: What was seen, with the numbers.
    """

    claim: str
    holds: bool
    detail: str


class Report(ABC):
    """A report that holds or does not, and can be read."""

    __slots__ = ()

    @property
    @abstractmethod
    def ok(self) -> bool:
        """Whether everything holds."""

    @abstractmethod
    def to_text(self) -> str:
        """Return the report for people to read."""

    def raise_if_failed(self) -> None:
        """Raise if something does not hold.

        Raises:
            PrivacyError: With the text of the report.
        """
        if not self.ok:
            raise PrivacyError(self.to_text())

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
