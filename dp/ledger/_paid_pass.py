"""Passes and rounds: one charge for all of their steps.

What a pass by random allocation, or a round by cyclic Poisson sampling, costs is proven
for whole ones with one noise multiplier. So it is
charged before its first release, and a later one is covered by that charge only if it
is another step of the very same pass, has at least the noise that was charged, and the
norm that the ledger states. A pass that is broken off stays charged; nothing of it is
in a state that is saved, so whatever resumes begins, and charges, another one.
"""

import os
from dataclasses import dataclass, field, replace
from typing import final

from dp.exceptions import PrivacyError, SamplingMismatchError
from dp.ledger._charge import Charge
from dp.plan import PrivacyPlan
from dp.sampling import PassStep


__all__ = ("PaidPass", "charged_whole", "check_place")


@final
@dataclass(frozen=True, slots=True)
class PaidPass:
    """The pass or round that was charged last, as far as it was released.

    Attributes:
        last: The step that was released last.
        max_grad_norm: The norm that the charge states.
        process: The process that charged; a fork has paid for nothing.
    """

    last: PassStep
    max_grad_norm: float
    process: int = field(default_factory=os.getpid)

    @property
    def has_steps_left(self) -> bool:
        """Whether the charge covers other steps, unless the pass is broken off."""
        is_over = self.last.step == self.last.num_steps - 1
        return not is_over and self.process == os.getpid()

    def followed_by(self, place: PassStep, max_grad_norm: float) -> "PaidPass | None":
        """Return the pass after the release of *place*, or None if it is not of it.

        Raises:
            SamplingMismatchError: If the step was released already.
            PrivacyError: If the norm is not the one that was charged.
        """
        # Example: a pass of 5 steps. After step 1 come step 2, or step 4 if batches
        # between were skipped; step 1 again would be a second release of its examples
        # under one charge, and step 0 of pass 8 is another pass, with a charge of its
        # own.
        last = self.last
        same = (last.number, last.num_steps) == (place.number, place.num_steps)
        if not same or self.process != os.getpid():
            return None
        if place.step <= last.step:
            raise SamplingMismatchError(
                f"step {place.step} of a {_part(place)} comes after its step"
                f" {last.step}, but a {_part(place)} is charged for one release of each"
                " step; draw the next batch from the loader"
            )
        # The noise is relative to the norm, so the cost would be the same; the ledger
        # states one norm a charge, and would state a wrong one.
        if max_grad_norm != self.max_grad_norm:
            raise PrivacyError(
                f"max_grad_norm changed from {self.max_grad_norm!r} to"
                f" {max_grad_norm!r} within a {_part(place)}, whose one charge states"
                f" the former; assign it before a {_part(place)}, which has"
                f" {place.num_steps} steps"
            )
        return PaidPass(place, max_grad_norm)


def check_place(
    plan: PrivacyPlan, in_pass: PassStep | None, noise_multiplier: float
) -> None:
    """Raise unless *in_pass* is one that the plan's charges cover.

    Raises:
        SamplingMismatchError: If it is missing or another scheme's.
        PrivacyError: If there is less noise than planned.
    """
    planned = (plan.steps_per_pass or plan.bands, plan.bands is not None)
    if in_pass is None:
        is_planned = planned == (None, False)
    else:
        is_planned = planned == (in_pass.num_steps, in_pass.chain is not None)
    if not is_planned:
        raise SamplingMismatchError(
            f"the release is {_named(in_pass)}, but the plan draws by {plan.sampling!r};"
            " release batches of plan.loader(dataset)"
        )
    check_noise_of_passes(plan, noise_multiplier)


def check_noise_of_passes(plan: PrivacyPlan, noise_multiplier: float) -> None:
    """Raise if passes or rounds would have less noise than planned.

    Raises:
        PrivacyError: Whether the number is public or not.
    """
    # A plan of passes has one noise multiplier, so that of step 0 is that of all.
    planned = plan.noise_multiplier_at(0)
    is_whole = plan.steps_per_pass is not None or plan.bands is not None
    if is_whole and noise_multiplier < planned:
        part = "pass" if plan.bands is None else "round"
        raise PrivacyError(
            f"noise_multiplier={noise_multiplier!r} is below the plan's {planned!r}: no"
            f" bound is proven for less noise in some step of a {part}, which has one"
            " charge. Plan with PoissonSampling to lower it during a run"
        )


def charged_whole(charge: Charge, place: PassStep, plan: PrivacyPlan) -> Charge:
    """Return the charge of the pass or round of *place*, for one of its steps.

    It has the planned noise: more of it in some step costs no more, and whether there
    is may depend on what was released.
    """
    # The cost of a pass is not the sum of its steps' costs: it is one mechanism, in
    # which each example is once, and is charged before its first release.
    return replace(
        charge,
        noise_multiplier=plan.noise_multiplier_at(0),
        count=place.num_steps,
        steps_per_pass=plan.steps_per_pass,
        disjoint=plan.disjoint,
        bands=plan.bands,
        public=None,
    )


def _named(in_pass: PassStep | None) -> str:
    if in_pass is None:
        return "of no pass"
    return f"of a {_part(in_pass)} of {in_pass.num_steps} steps"


def _part(place: PassStep) -> str:
    return "pass" if place.chain is None else "round"
