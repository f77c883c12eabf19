"""Passes of random allocation or of disjoint batches: one charge for all their steps.

What a pass costs is proven for whole passes with one noise multiplier. So a pass is
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
    """The pass that was charged last, as far as it was released.

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
        last = self.last
        same = (last.number, last.num_steps) == (place.number, place.num_steps)
        if not same or self.process != os.getpid():
            return None
        if place.step <= last.step:
            raise SamplingMismatchError(
                f"step {place.step} of a pass comes after its step {last.step}, but a"
                " pass is charged for one release of each step; draw the next batch from"
                " the loader"
            )
        if max_grad_norm != self.max_grad_norm:
            raise PrivacyError(
                f"max_grad_norm changed from {self.max_grad_norm!r} to"
                f" {max_grad_norm!r} within a pass, whose one charge states the former;"
                f" assign it before a pass, which has {place.num_steps} steps"
            )
        return PaidPass(place, max_grad_norm)


def check_place(
    plan: PrivacyPlan, in_pass: PassStep | None, noise_multiplier: float
) -> PassStep | None:
    """Return *in_pass* if it is one that the plan's charges cover.

    Raises:
        SamplingMismatchError: If it is missing or another scheme's.
        PrivacyError: If there is less noise than planned.
    """
    if (None if in_pass is None else in_pass.num_steps) != plan.steps_per_pass:
        raise SamplingMismatchError(
            f"the release is {_named(in_pass)}, but the plan draws by {plan.sampling!r};"
            " release batches of plan.loader(dataset)"
        )
    check_noise_of_passes(plan, noise_multiplier)
    return in_pass


def check_noise_of_passes(plan: PrivacyPlan, noise_multiplier: float) -> None:
    """Raise if a step of a pass would have less noise than planned.

    Raises:
        PrivacyError: Whether the number is public or not.
    """
    planned = plan.noise_multiplier_at(0)
    if plan.steps_per_pass is not None and noise_multiplier < planned:
        raise PrivacyError(
            f"noise_multiplier={noise_multiplier!r} is below the plan's {planned!r}: no"
            " bound is proven for less noise in some step of a pass, which has one"
            " charge. Plan with PoissonSampling to lower it during a run"
        )


def charged_whole(charge: Charge, place: PassStep, plan: PrivacyPlan) -> Charge:
    """Return the charge of the pass of *place*, for a charge of one of its steps.

    It has the planned noise: more of it in some step costs no more, and whether there
    is may depend on what was released.
    """
    return replace(
        charge,
        noise_multiplier=plan.noise_multiplier_at(0),
        count=place.num_steps,
        steps_per_pass=place.num_steps,
        disjoint=plan.disjoint,
        public=None,
    )


def _named(in_pass: PassStep | None) -> str:
    return (
        "of no pass" if in_pass is None else f"of a pass of {in_pass.num_steps} steps"
    )
