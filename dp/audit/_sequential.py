"""An audit that stops a run at the step whose release refutes its claim."""

from dataclasses import dataclass
from typing import Any, Final, final

from torch.optim import Optimizer

from dp import _checks
from dp._progress import Bar, progress_bars
from dp._reports import Finding, Report, lines_of
from dp.audit._observation import Observation, check_every_row
from dp.audit._sequential_test import SequentialTest
from dp.audit._statistics import FALSE_ALARM
from dp.audit._subject import (
    Bools,
    CanaryDataset,
    CanaryModel,
    Train,
    hooked,
    sample_membership,
)
from dp.exceptions import PrivacyError, UnsupportedOperationError
from dp.optimizer import DPOptimizer
from dp.optimizer._guard import private_owner_of
from dp.sampling import PoissonSampling


__all__ = ("SequentialReport", "sequential")

_FEWEST: Final = 100


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialReport(Report):
    """The evidence against a claim when the audit stopped.

    Attributes:
        error: The probability with which a right run is accused.
        num_steps: How many steps were observed, in all runs.
        refuted_after: After how many of them the claim was refuted; None if it was not.
        capital: How much an auditor has who began with 1 and bet against the claim.
        findings: Whether the claim was refuted.
    """

    error: float
    num_steps: int
    refuted_after: int | None
    capital: float
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the claim was not refuted."""
        return self.refuted_after is None

    def to_text(self) -> str:
        """Return the report for people to read."""
        return "\n".join(lines_of("sequential", self.findings))


def sequential(
    train: Train,
    *,
    num_canaries: int = 2000,
    num_runs: int = 1,
    error: float = FALSE_ALARM,
    progress: bool = False,
) -> SequentialReport:
    """Bet against the claim of each step, and stop as soon as it is refuted.

    Records are those of :func:`dp.audit.canaries`: each is released along coordinates of
    its own. After each step the auditor bets on which of them were in its batch, by a
    :class:`SequentialTest`, against what a Gaussian with the noise that was charged
    permits. What is refuted is the release of a step, given its batch; that batches are
    drawn as stated is for :func:`dp.audit.conformance`.

    Guarantees:
        * Right runs are accused with a probability of at most *error* in all,
          whatever the model does, however many steps there are.
        * At the defaults, sigma 1 and q = 0.1, half the noise was refuted after 46 to 67
          steps in 16 simulated runs, and a clipping norm that is exceeded by half after
          198 to 215 in 8.

    Args:
        train: What is audited, called as ``train(model, dataset)``. A refuted run is
            left at that step, by an exception that passes through it.
        num_canaries: How many records there might be; about half are in the data.
        num_runs: How many runs to watch at most. Evidence goes on from one to the next.
        error: The probability with which a right run is accused.
        progress: Whether to show a progress bar.

    Raises:
        PrivacyError: If the training function makes no ``DPOptimizer``.
        UnsupportedOperationError: If steps have no coins of their own: with other
            sampling than ``PoissonSampling``, as correlated noise needs it.
        ValueError: If there are fewer than 100 canaries, or a number is out of range.

    References:
        Gonzalez, Dulce-Rubio, Ramdas, Ribero, "Sequentially Auditing Differential
        Privacy", 2025, https://arxiv.org/abs/2509.07055.
    """
    num_runs = _checks.count(num_runs=num_runs)
    if num_canaries < _FEWEST:
        raise ValueError(f"num_canaries must be >= {_FEWEST}, got {num_canaries!r}")
    test = SequentialTest(error=error)
    with progress_bars(shown=progress) as bars:
        for _ in range(num_runs):
            included_M = sample_membership(num_canaries)
            watch = _Watch(included_M, test, bars.begin("sequential"))
            with hooked(watch):
                try:
                    train(watch.model, CanaryDataset(included_M))
                except _RefutedError:
                    break
            if not watch.has_seen:
                raise PrivacyError(
                    "no DPOptimizer stepped the audit's model; make one from"
                    " model.parameters() in the training function"
                )
    return _report(test)


class _RefutedError(BaseException):
    """Leaves a training function, also through its ``except Exception``."""


@final
class _Watch:
    """Called after every step of any optimizer; bets on those of the canaries."""

    def __init__(self, included_M: Bools, test: SequentialTest, bar: Bar) -> None:
        self.model = CanaryModel(len(included_M))
        self.has_seen = False
        self._included_M = included_M
        self._test = test
        self._bar = bar

    def __call__(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        owner = private_owner_of(self.model.first.weight)
        if not isinstance(owner, DPOptimizer) or optimizer is not owner:
            return  # What wraps it, or steps other parameters.
        _check_plan(owner)
        check_every_row(owner)
        # Of one step each: what came before was bet on.
        step = Observation(optimizer=owner, num_records=len(self._included_M))
        step.add(self.model)
        self.has_seen = True
        self._bar.show(owner.ledger.steps, owner.plan.steps)
        included_M = self._included_M
        self._test.observe(
            step.signal()[0, included_M],
            step.drawn()[0, included_M],
            noise_multiplier=float(step.noise_multipliers()[0, 0]),
            sampling_probability=float(step.sampling_probabilities()[0, 0]),
        )
        if self._test.is_refuted:
            raise _RefutedError


def _check_plan(optimizer: DPOptimizer) -> None:
    plan = optimizer.plan
    if not isinstance(plan.sampling, PoissonSampling):
        raise UnsupportedOperationError(
            f"with {plan.sampling!r} a step is no experiment of its own, which betting"
            " needs: by PoissonSampling every record has a coin in every step; audit the"
            " whole run by dp.audit.canaries"
        )


def _report(test: SequentialTest) -> SequentialReport:
    seen = f"after {test.num_steps} steps an auditor who began with 1 has"
    return SequentialReport(
        error=test.error,
        num_steps=test.num_steps,
        refuted_after=test.refuted_after,
        capital=test.capital,
        findings=(
            Finding(
                claim="releases hide their canaries as their noise claims",
                holds=not test.is_refuted,
                detail=f"{seen} {test.capital:.3g}, {1 / test.error:.3g} refutes",
            ),
        ),
    )
