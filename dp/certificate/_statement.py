"""The facts of a certificate, without what can be done with them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dp._reports import Described
from dp._typing import NeighboringRelation
from dp.accounting import Risk
from dp.certificate._run import CertifiedRun
from dp.ledger import Charge


__all__ = ("Statement",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement(Described):
    """The facts of a certificate: what was released and what it cost.

    Attributes:
        epsilon: The privacy loss of the run, infinite if a release had no noise. It is
            the whole plan's also where the run ended before, since what was released
            may have decided that, unless the end was declared public.
        delta: The delta it is for.
        delta_error: What to add to delta because noise is drawn on a computer;
            infinite if no bound is known, as for the ``"fast"`` generator.
        neighboring_relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one example holds.
        group_size: How many units may differ at once in every epsilon but those of
            groups; more than one only if the plan says so.
        accountant: Which accountant's bound ``epsilon`` is.
        epsilon_pld: The bound by privacy loss distributions.
        epsilon_rdp: The bound by Renyi differential privacy, where there is one.
        epsilon_unamplified: What the same releases cost if sampling is not trusted.
        epsilon_of_steps_taken: What the releases that were charged compose to: a
            guarantee only if their number was fixed beforehand.
        epsilon_of_groups: What they cost a group of 2, 5 and 10 units at once; empty if
            batches were drawn by random allocation or cyclic Poisson sampling, for which
            no bound is proven.
        risk: What an attacker can find out about one unit at most, or about the group
            of ``group_size``, in plain units.
        steps: How many releases were charged.
        key_epochs: How many processes charged, each with keys of its own for its
            noise: 1 plus the number of resumes and forks.
        intervals: The widths of the buckets of privacy losses, by the name of the
            epsilon: with them any PLD accountant finds the same numbers.
        runs: What was planned and charged.
        private_data_touches: What else looked at private data, one sentence each;
            empty if nothing did, None if that was not stated.
        assumptions: What must hold for the statement, one sentence each.
        not_covered: What the statement does not cover, one sentence each.
        released: What was published, in words.
        software: The packages that computed it, and the hash of this one's source.
    """

    epsilon: float
    delta: float
    delta_error: float
    neighboring_relation: NeighboringRelation
    unit_of_privacy: str
    group_size: int
    accountant: str
    epsilon_pld: float
    epsilon_rdp: float | None
    epsilon_unamplified: float
    epsilon_of_steps_taken: float
    epsilon_of_groups: Mapping[int, float]
    risk: Risk
    steps: int
    key_epochs: int
    intervals: Mapping[str, float]
    runs: tuple[CertifiedRun, ...]
    private_data_touches: tuple[str, ...] | None
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]
    released: str
    software: Mapping[str, str]

    @property
    def is_private(self) -> bool:
        """Whether epsilon is finite."""
        return math.isfinite(self.epsilon)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Every charge of every run, with its probability, noise, norm and number."""
        return tuple(charge for run in self.runs for charge in run.charges)

    def in_plain_words(self) -> tuple[str, ...]:
        """Return what anyone can find out about one unit, or a group, at most."""
        return self.risk.sentences(
            self.neighboring_relation, group_size=self.group_size
        )

    def _title(self) -> str:
        claim = f"epsilon = {self.epsilon:.4f} at delta = {self.delta:g}"
        return f"Certificate: {claim if self.is_private else 'NOT PRIVATE'}"

    def _facts(self) -> dict[str, str]:
        several = "" if self.group_size == 1 else f", any {self.group_size} at once"
        return {
            "for": f"{self.unit_of_privacy}{several} ({self.neighboring_relation})",
            "by": self.accountant,
            "steps": str(self.steps),
            "released": self.released,
            "that is": " ".join(self.in_plain_words()),
        }
