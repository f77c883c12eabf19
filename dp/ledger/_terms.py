"""What the charge of one step is: the same as of the step before, if their numbers are.

A run charges thousands of equal releases. Each is checked against the plan; what a check
finds follows from the numbers of the release and what the plan says of its step alone,
so steps in which none of them is another have the charge of the last one.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

from dp.accounting import Release, Truncation
from dp.accounting._counted import NoiseBesideCount, check_counted
from dp.ledger._budget import Budget
from dp.ledger._charge import Charge
from dp.ledger._claim import accounted
from dp.ledger._paid_pass import charged_whole, check_place
from dp.plan import PrivacyPlan
from dp.sampling import PassStep


__all__ = ("Numbers", "Terms", "TermsOfSteps")


class Numbers(NamedTuple):
    """The numbers of one release; see :meth:`dp.ledger.Ledger.reserve`."""

    sampling_probability: float
    noise_multiplier: float
    max_grad_norm: float
    truncation: Truncation | None
    public: str | None
    noise_beside_count: NoiseBesideCount | None


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """What a release is charged as.

    Attributes:
        charge: The charge, as it is accounted.
        release: What the accountant composes for it.
        is_planned: Whether the plan releases just that at this step.
    """

    charge: Charge
    release: Release
    is_planned: bool


@final
class TermsOfSteps:
    """Finds what each release of a run is charged as."""

    def __init__(self, plan: PrivacyPlan, budget: Budget) -> None:
        self._plan = plan
        self._budget = budget
        self._last: tuple[object, Terms] | None = None

    def of(self, numbers: Numbers, step: int, place: PassStep | None) -> Terms:
        """Return what a release with *numbers* at *step* is charged as.

        Args:
            numbers: Of the release.
            step: How many were charged before.
            place: Which step of which pass or round it is, all of which is charged.

        Raises:
            SamplingMismatchError: If *place* is missing, or another scheme's.
            ValueError: If a sum and a count have less noise than they are charged as.
            PrivacyError: If it costs more than planned, and nothing covers that.
        """
        # Plans cannot change: of this one, a step decides the noise multiplier alone; of
        # a place counts what it is part of, a pass or a round of how many steps.
        of_step = self._plan.noise_multiplier_at(step)
        part = None if place is None else (place.num_steps, place.chain is None)
        about = numbers, of_step, part
        if self._last is None or self._last[0] != about:
            self._last = about, self._found(numbers, step, place)
        return self._last[1]

    def _found(self, numbers: Numbers, step: int, place: PassStep | None) -> Terms:
        check_place(self._plan, place, numbers.noise_multiplier)
        check_counted(numbers.noise_multiplier, numbers.noise_beside_count)
        charge = Charge(**numbers._asdict(), count=1)
        if place is not None:
            charge = charged_whole(charge, place, self._plan)
        charge = accounted(self._plan, charge, step)
        release = charge.to_release()
        return Terms(charge, release, self._budget.plans(release, step))
