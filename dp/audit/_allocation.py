"""Are passes by random allocation what they claim to be?

Shapes: ``P`` complete passes, ``N`` records in the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from dp._reports import Finding
from dp.audit._observation import Observation
from dp.audit._statistics import binomial_p, finding, sizes_p
from dp.audit._subject import Bools


__all__ = ("about_allocation",)

Steps = NDArray[np.int_]


def about_allocation(
    first: Observation, second: Observation, included_M: Bools
) -> Iterator[Finding]:
    """Test that each record is in one step of a pass, by a coin of its own.

    Args:
        first: A run.
        second: The same, resumed.
        included_M: Which records are in the data.
    """
    yield _once_a_pass(first, included_M)
    ours, theirs = (_steps_of(run, included_M) for run in (first, second))
    if not len(ours.steps):
        return
    yield ours.sizes()
    yield ours.same("over passes", ours.steps[:-1], ours.steps[1:])
    yield ours.same("over records", ours.steps[:, :-1], ours.steps[:, 1:])
    both = min(len(ours.steps), len(theirs.steps))
    yield ours.same("over restarts", ours.steps[:both], theirs.steps[:both])


def _once_a_pass(run: Observation, included_M: Bools) -> Finding:
    """No record is in two steps of a pass, and none is in no step of a whole one."""
    fewest, most = 1, 0
    drawn_TM = run.drawn()[:, included_M]
    for rows in run.passes():
        counts = drawn_TM[rows].sum(axis=0)
        most = max(most, int(counts.max()))
        if len(rows) == run.steps_per_pass:
            fewest = min(fewest, int(counts.min()))
    return Finding(
        claim="sampling: every record once a pass",
        holds=fewest == 1 and most <= 1,
        detail=f"in {fewest} to {most} steps of a pass of {run.steps_per_pass}",
    )


def _steps_of(run: Observation, included_M: Bools) -> "_Steps":
    drawn_TM = run.drawn()[:, included_M]
    whole = [rows for rows in run.passes() if len(rows) == run.steps_per_pass]
    steps_PN = np.array([drawn_TM[rows].argmax(axis=0) for rows in whole], np.int_)
    shape = len(whole), drawn_TM.shape[1]
    return _Steps(steps_PN.reshape(shape), run.steps_per_pass or 1)


@final
@dataclass(frozen=True, slots=True)
class _Steps:
    """The step of every record in every pass, [P, N], and how many there are."""

    steps: Steps
    num_steps: int

    def sizes(self) -> Finding:
        """Sizes of batches are multinomial: neither uneven, nor too even."""
        sizes = [np.bincount(row, minlength=self.num_steps) for row in self.steps]
        deviation = float(np.std(np.array(sizes) - self._mean_size()))
        return finding(
            "sampling: sizes of batches",
            sizes_p(np.array(sizes)),
            f"standard deviation {deviation:.1f}, {self._deviation():.1f} if by coins",
        )

    def same(self, what: str, left: Steps, right: Steps) -> Finding:
        """Two coins show the same step as often as independent ones."""
        together, trials = int((left == right).sum()), left.size
        share = together / max(1, trials)
        return finding(
            f"sampling: independent {what}",
            binomial_p(together, trials, 1 / self.num_steps) if trials else 1.0,
            f"{share:.5f} in the same step, {1 / self.num_steps:g} if so",
        )

    def _mean_size(self) -> float:
        return float(self.steps.shape[1] / self.num_steps)

    def _deviation(self) -> float:
        return float(np.sqrt(self._mean_size() * (1 - 1 / self.num_steps)))
