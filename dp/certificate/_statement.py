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
    """The facts of a certificate, which :class:`dp.certificate.Certificate` describes."""

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

    def __str__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        claim = (
            f"{self._title()} ({self.accountant}), for {self._who()}, after {steps}."
        )
        return " ".join([claim, f"Released: {self.released}.", *self.in_plain_words()])

    def _who(self) -> str:
        several = "" if self.group_size == 1 else f", any {self.group_size} at once"
        return f"{self.unit_of_privacy}{several} ({self.neighboring_relation})"

    def _facts(self) -> dict[str, str]:
        return {
            "for": self._who(),
            "by": self.accountant,
            "steps": str(self.steps),
            "released": self.released,
            "in plain words": " ".join(self.in_plain_words()),
        }
