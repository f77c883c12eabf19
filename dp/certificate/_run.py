"""One run of a certificate: its plan, its charges and its noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

from dp.accounting import Release, merge_equal_releases
from dp.accounting._release import is_allocated
from dp.accounting._rounds import is_cyclic
from dp.evidence import Evidence
from dp.ledger import Charge
from dp.plan import PrivacyPlan
from dp.schedule import values_of


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
        rng: ``"os"`` for a cryptographic generator, ``"fast"``, or ``"debug"``.
        noise: Where the noise came from, in words.
        evidence: What was seen of the losses of each of these processes.
        declared_public: The tensors that were declared to be no data, one description
            each.
        failure: Why no guarantee holds for what was charged; None if one does.
        released: What was published, in words.
        remaining: What the plan still allowed. It is part of what is claimed, since what
            was released may have decided that the run ended.
        num_advisories: How many faults of dp were known to the releases of it that
            charged, the fewest of them; what was found later is told by ``dp.verify``.
        public_end: Why it is public after how many steps the run ended, if that was
            declared; nothing remains then.
    """

    plan: PrivacyPlan
    plan_sha256: str
    segments: Mapping[str, tuple[Charge, ...]]
    num_parameters: int
    rng: Literal["os", "fast", "debug"]
    noise: str
    evidence: Mapping[str, Evidence]
    declared_public: tuple[str, ...] = ()
    failure: str | None = None
    released: str = RELEASED
    remaining: tuple[Release, ...] = ()
    public_end: str | None = None
    num_advisories: int = 0

    @property
    def has_failed(self) -> bool:
        """Whether no guarantee holds."""
        return self.failure is not None or self.rng == "debug"

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Every charge, segment by segment."""
        return tuple(c for segment in self.segments.values() for c in segment)

    @property
    def steps_of_segments(self) -> dict[str, int]:
        """How many releases each process charged."""
        return {
            key: sum(charge.count for charge in segment)
            for key, segment in self.segments.items()
        }

    @property
    def steps(self) -> int:
        """How many releases were charged."""
        return sum(charge.count for charge in self.charges)

    @property
    def is_allocated(self) -> bool:
        """Whether passes by random allocation are claimed."""
        return is_allocated(self.claimed)

    @property
    def is_cyclic(self) -> bool:
        """Whether rounds by cyclic Poisson sampling are claimed."""
        return is_cyclic(self.claimed)

    @property
    def has_passes(self) -> bool:
        """Whether passes or rounds were charged, each for all of its steps."""
        return any(charge.to_release().steps_per_charge > 1 for charge in self.charges)

    @property
    def releases(self) -> tuple[Release, ...]:
        """The charges as releases for the accountant, equal ones counted together.

        Planned queries are among them, whether they were asked or not.
        """
        charged = [charge.to_release() for charge in self.charges]
        return merge_equal_releases([*charged, *self.plan.query_releases])

    @property
    def claimed(self) -> tuple[Release, ...]:
        """The releases that epsilon is claimed for, both charged and remaining."""
        return merge_equal_releases([*self.releases, *self.remaining])

    @property
    def claimed_steps(self) -> int:
        """How many releases epsilon is claimed for."""
        return self.steps + sum(release.count for release in self.remaining)

    @property
    def has_other_norms(self) -> bool:
        """Whether gradients were clipped to a norm that was assigned, not planned.

        Norms that follow a quantile follow what was released.
        """
        planned = values_of(self.plan.max_grad_norm)
        return any(
            charge.max_grad_norm not in planned
            for charge in self.charges
            if not charge.norm_moves
        )

    @property
    def is_off_plan(self) -> bool:
        """Whether releases were charged that no rule of this plan covers.

        They were charged under another plan, whose state was loaded.
        """
        if self.plan.renyi_order is not None:
            return False
        kinds = {
            (
                self.plan.sampling_probability,
                sigma,
                self.plan.truncation,
                self.plan.steps_per_pass,
                self.plan.disjoint,
                self.plan.bands,
            )
            for sigma in values_of(self.plan.noise_multiplier)
        }
        charged = [c.to_release() for c in self.charges if c.public is None]
        return any(
            (
                r.sampling_probability,
                r.noise_multiplier,
                r.truncation,
                r.steps_per_pass,
                r.disjoint,
                r.bands,
            )
            not in kinds
            for r in charged
        )
