"""Watch one run: what it charged has to be what the procedure accounts for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dp._mechanism.fingerprint import fingerprint_of_tensors
from dp._mechanism.paid_for import apart
from dp.accounting import merge_equal_releases
from dp.certificate._tuning import MOST_NUMBERS
from dp.exceptions import PrivacyError
from dp.optimizer import DPOptimizer
from dp.plan import PrivacyPlan


__all__ = ("Left", "Watched", "watched")

Left = tuple[torch.Size, int]
"""The shape of a weight, and the sum of its bits."""


@final
@dataclass(slots=True)
class Watched:
    """The ledgers and noise of the private optimizers that stepped in a run.

    Attributes:
        earlier: Sums of the bits of what earlier runs left in their weights.
        optimizers: The optimizers.
        began: The sums of the bits of their weights, before their first steps.
    """

    earlier: set[Left] = field(default_factory=set)
    optimizers: list[DPOptimizer] = field(default_factory=list)
    began: set[Left] = field(default_factory=set)

    def note(self, optimizer: Optimizer) -> None:
        """Note a private optimizer that is about to step, the first time."""
        is_new = all(optimizer is not known for known in self.optimizers)
        if isinstance(optimizer, DPOptimizer) and is_new:
            self.optimizers.append(optimizer)
            self.began |= _sums(optimizer)

    def left(self) -> set[Left]:
        """Return the sums of the bits of all weights that the run changed."""
        return set().union(*map(_sums, self.optimizers)) - self.began

    def check(self, plan: PrivacyPlan, *, has_public_scores: bool) -> None:
        """Raise unless the run's charges are those that are accounted for.

        Args:
            plan: What the run may release.
            has_public_scores: Whether its score was computed without private data.

        Raises:
            PrivacyError: If it released anything else, or nothing.
        """
        self._check_beginning()
        ledgers = {id(o.ledger): o.ledger for o in self.optimizers}
        if not ledgers:
            raise PrivacyError(
                "no DPOptimizer took a step in the run, so nothing says what it released;"
                " train with DPOptimizer(..., plan=plan)"
            )
        if len(ledgers) > 1:
            raise PrivacyError(
                f"{len(ledgers)} ledgers were charged in one run, and the procedure"
                " accounts for one; join the optimizers (dp.JointOptimizer), or pass"
                " continue_from="
            )
        (ledger,) = ledgers.values()
        if ledger.plan != plan:
            raise PrivacyError(
                "the run was trained by another plan than the procedure accounts for;"
                " train with the plan that tune was given"
            )
        planned = merge_equal_releases(plan.releases(ledger.steps))
        if ledger.releases() != planned:
            raise PrivacyError(
                "the run charged other releases than the first steps of its plan, which"
                " the procedure accounts for; keep the plan's noise, and load no charges"
            )
        if ledger.failure is not None:
            raise PrivacyError(f"no guarantee holds for the run: {ledger.failure}")
        if not has_public_scores and not ledger.asked:
            raise PrivacyError(
                "the run asked no query of its plan, so its score has no noise; plan with"
                " queries=[dp.Query(...)] and return an answer of dp.query.Queries, or"
                " say what public data scores are from: public_scores='...'"
            )
        for optimizer in self.optimizers:
            _check_noise(optimizer)

    def _check_beginning(self) -> None:
        if not self.began.isdisjoint(self.earlier):
            raise PrivacyError(
                "the run began with weights that an earlier run had left, so it released"
                " what both cost, and the procedure accounts for one; make a new model in"
                " train, or load the weights that all runs begin with"
            )


def _check_noise(optimizer: DPOptimizer) -> None:
    noise = optimizer.mechanism.noise
    num_numbers = sum(
        p.numel() for group in optimizer.param_groups for p in group["params"]
    )
    if noise.rng != "os":
        raise PrivacyError(
            f"the run drew its noise from rng={noise.rng!r}, for which no bound is known;"
            " use GaussianNoise()"
        )
    if (num_numbers + 1) * optimizer.plan.steps > MOST_NUMBERS:
        raise PrivacyError(
            f"the run noises {num_numbers} numbers a step, and the certificate counts"
            f" {MOST_NUMBERS:.0e} a run at most; tune a smaller part of the model"
        )


def _sums(optimizer: DPOptimizer) -> set[Left]:
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    # One number may be the same by chance.
    several = [p for p in weights if p.numel() > 1]
    sums = fingerprint_of_tensors(several)
    return {(p.shape, number) for p, number in zip(several, sums, strict=True)}


@contextmanager
def watched(earlier: set[Left] | None = None) -> Iterator[Watched]:
    """Watch the private optimizers of this block.

    What they pay for is forgotten afterwards: the procedure pays for all runs.

    Args:
        earlier: What earlier runs left in their weights, to which this run adds.
    """
    found = Watched(set() if earlier is None else earlier)

    def look(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        found.note(optimizer)

    handle = register_optimizer_step_pre_hook(look)
    try:
        with apart():
            yield found
    finally:
        handle.remove()
