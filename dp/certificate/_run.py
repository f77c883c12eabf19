"""One run of a certificate: its plan, its charges and its noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

from dp.accounting import Release, merge_equal_releases
from dp.ledger import Charge
from dp.plan import PrivacyPlan


__all__ = ("RELEASED", "CertifiedRun")

RELEASED: Final = (
    "the model's parameters after every step, and everything computed from them"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedRun:
    """The plan of one run, and the charges in its ledger.

    Attributes:
        plan: The plan.
        plan_sha256: The hash of the plan as JSON.
        segments: The charges of each process that charged, under its random id. A
            process has keys of its own for its noise, so this is the record of resumes
            and forks too.
        num_parameters: How many numbers a release noised.
        rng: ``"os"`` for a cryptographic generator, or ``"fast"``.
        noise: Where the noise came from, in words.
        failure: Why no guarantee holds for what was charged; None if one does.
        released: What was published, in words.
    """

    plan: PrivacyPlan
    plan_sha256: str
    segments: Mapping[str, tuple[Charge, ...]]
    num_parameters: int
    rng: Literal["os", "fast"]
    noise: str
    failure: str | None = None
    released: str = RELEASED

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Every charge, segment by segment."""
        return tuple(c for segment in self.segments.values() for c in segment)

    @property
    def steps(self) -> int:
        """How many releases were charged."""
        return sum(charge.count for charge in self.charges)

    @property
    def releases(self) -> tuple[Release, ...]:
        """The charges as releases for the accountant, equal ones counted together."""
        return merge_equal_releases(charge.to_release() for charge in self.charges)
