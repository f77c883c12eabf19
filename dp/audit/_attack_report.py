"""What an attack on one run found, beside what the run claims."""

from abc import abstractmethod
from dataclasses import dataclass

from dp._reports import Finding, Report, lines_of


__all__ = ("AttackReport",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackReport(Report):
    """The success of an attack beside the proven bound of the run.

    Guarantees:
        * The true epsilon of a run at ``delta`` is at least ``epsilon_empirical``, but
          with probability ``1 - confidence``.
        * :attr:`ok` is false of a run that keeps its claim with probability 1e-9 at
          most.

    Attributes:
        epsilon_empirical: A lower bound on the run's epsilon, from the attack.
        epsilon_proven: The upper bound that the run's ledger states.
        delta: The delta of both.
        confidence: Of the lower bound.
        num_canaries: How many records the attacker had to guess.
        findings: Whether the attack exceeded the claim, and by what.
    """

    epsilon_empirical: float
    epsilon_proven: float
    delta: float
    confidence: float
    num_canaries: int
    findings: tuple[Finding, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """What the attack is called."""

    @property
    def ok(self) -> bool:
        """Whether the attack stayed within the claim."""
        return all(finding.holds for finding in self.findings)

    @property
    def summary(self) -> str:
        """The two epsilons, in a line."""
        return (
            f"empirical >= {self.epsilon_empirical:.2f} (at {self.confidence:.0%}"
            f" confidence), proven <= {self.epsilon_proven:.2f}"
            f" (delta = {self.delta:g}, {self.num_canaries} canaries)"
        )

    def to_text(self) -> str:
        """Return the report for people to read."""
        headline, *lines = lines_of(self.name, self.findings)
        return "\n".join([headline, f"  {self.summary}", *lines])
