"""Correlated noise: the recursion over the sums and releases of earlier steps.

With coefficients ``c_0, ..., c_(b-1)`` of norm 1, step t of a run

1. turns the clipped sum ``x_t`` into ``u_t = c_0 x_t + ... + c_(b-1) x_(t-b+1)``,
2. lets the noise stage release ``o_t = u_t + z_t``, with noise that is independent of all
   else and has the standard deviation that was charged, and
3. turns ``o_t`` into ``y_t = (o_t - c_1 y_(t-1) - ... - c_(b-1) y_(t-b+1)) / c_0``, which
   is ``x_t`` plus noise that takes back a part of the noise in earlier ``y``.

Only 2 has to be private, and it is the Gaussian mechanism that a run without correlation
uses, on another sum. In particular its result is rounded to a lattice exactly, whatever
``u_t`` is, so that rounding is post-processing here, too, and adds no delta of its own.
That is why private sums are kept, and not noise: ``x_t`` plus correlated noise that is
computed in floating point, as ``x_t + (z_t - c_1 n_(t-1) - ...) / c_0``, is no rounding of
an ideal release. In 3 nothing is private any more, so how it rounds does not matter. What
rounds 1 is of the same kind as what rounds the clipped sums themselves.

For example, with two coefficients 0.8 and 0.6, and sums 1, 0, 0 of one example that is in
the first step only, ``u`` is 0.8, 0.6, 0: a vector of norm 1 over all steps. That is what
the noise has to hide, once, before the example may be in another step.

Steps count as the loader's draws do. Where the one before was not released, or belongs to
another iteration or other parameters, the recursion begins anew: C is block-diagonal
then, which costs nothing. So a state holds nothing of it, and nothing of it leaves the
process.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from dp._mechanism.batch import PendingBatch
from dp.noise import BandedNoise
from dp.plan import PrivacyPlan
from dp.sampling import PassStep


__all__ = ("Recursion", "correlated_step", "recursion_of")


@final
@dataclass(frozen=True, slots=True)
class _Past:
    """Tensors of one earlier step, and the clipping norm of that step."""

    tensors: Sequence[Tensor]
    max_grad_norm: float


@final
@dataclass(slots=True)
class _History:
    """The last ``b - 1`` steps of one share of the totals, the latest first."""

    sums: deque[_Past]  # Private.
    releases: deque[_Past]


@final
@dataclass(slots=True, eq=False)
class Recursion:
    """The recursion of one mechanism; it is never copied, pickled or saved.

    Args:
        correlation: Its coefficients.
    """

    correlation: BandedNoise
    _units: tuple[float, ...] = field(init=False)
    _histories: list[_History] = field(default_factory=list, init=False)
    # The position that the histories end with, and whose they are.
    _released: tuple[int, tuple[object, ...]] | None = field(default=None, init=False)
    _parameters: tuple[Tensor, ...] = field(default=(), init=False)
    _share: int = field(default=0, init=False)
    _totals: Sequence[Tensor] | None = field(default=None, init=False)
    _max_grad_norm: float = field(default=0.0, init=False)
    _inverse: deque[float] = field(default_factory=deque, init=False)
    _growth: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._units = self.correlation.unit_coefficients

    @contextmanager
    def step(
        self,
        place: PassStep,
        parameters: tuple[Tensor, ...],
        *,
        segment: str,
        num_ranks: int,
        max_grad_norm: float,
        totals: Sequence[Tensor] | None = None,
    ) -> Iterator["Recursion"]:
        """Go on from the step before, or begin anew if that was not released.

        Args:
            place: Which step of the loader's iteration it is.
            parameters: What the release is about.
            segment: The id under which it is charged; a state that is loaded, in which
                parameters have no noise of the steps before, brings another one.
            num_ranks: How many ranks share the totals.
            max_grad_norm: The clipping norm of the step.
            totals: All totals by their parameters, where the one share that there is
                lays the same memory out in another order at each step.
        """
        about = (place.chain, segment, num_ranks, *map(id, parameters))
        if self._released != (place.position - 1, about):
            self._histories, self._inverse, self._growth = [], deque(), 0.0
        self._grow()
        # No step follows one that failed half-way, and has left some shares a step ahead
        # of others: its position is not noted, and its ticket is spent.
        self._share, self._max_grad_norm = 0, max_grad_norm
        self._totals = totals
        yield self
        self._totals = None
        self._released = place.position, about
        self._parameters = parameters  # While they live, no other has their ids.

    def _grow(self) -> None:
        """Add the noise that is in one more release to the growth of it."""
        known = zip(self._units[1:], self._inverse, strict=False)
        first = 0.0 if self._growth else 1.0
        coefficient = (first - sum(c * h for c, h in known)) / self._units[0]
        self._inverse.appendleft(coefficient)
        if len(self._inverse) == self.correlation.bands:
            self._inverse.pop()
        self._growth += coefficient**2

    @property
    def noise_growth(self) -> float:
        """The noise in the last release, over the independent noise that was added.

        It has that of all steps since the recursion began, in the shares by which
        ``C^-1`` takes it back: the norm of a row of that matrix.
        """
        return math.sqrt(self._growth)

    def combine(self, share: Sequence[Tensor]) -> None:
        """Add the sums of earlier steps to a share of the totals, in place.

        Sums of another clipping norm count in units of theirs.
        """
        if self._share == len(self._histories):
            kept = self.correlation.bands - 1
            self._histories.append(_History(deque(maxlen=kept), deque(maxlen=kept)))
        share = share if self._totals is None else self._totals
        history = self._histories[self._share]
        now = self._past(share)
        for total in share:
            total.mul_(self._units[0])
        self._add(share, history.sums, sign=1)
        history.sums.appendleft(now)

    def separate(self, share: Sequence[Tensor]) -> None:
        """Take earlier releases out of a noised share, in place."""
        share = share if self._totals is None else self._totals
        history = self._histories[self._share]
        self._add(share, history.releases, sign=-1)
        for total in share:
            total.div_(self._units[0])
        history.releases.appendleft(self._past(share))
        self._share += 1

    def _past(self, share: Sequence[Tensor]) -> _Past:
        return _Past([total.clone() for total in share], self._max_grad_norm)

    def _add(self, share: Sequence[Tensor], past: deque[_Past], *, sign: int) -> None:
        for unit, step in zip(self._units[1:], past, strict=False):
            factor = sign * unit * (self._max_grad_norm / step.max_grad_norm)
            for total, earlier in zip(share, step.tensors, strict=True):
                total.add_(earlier, alpha=factor)


def recursion_of(plan: PrivacyPlan) -> Recursion | None:
    """Return a recursion that begins, if the plan correlates noise."""
    return None if plan.correlation is None else Recursion(plan.correlation)


def correlated_step(
    recursion: Recursion | None,
    batch: PendingBatch,
    totals: Sequence[Tensor],
    segment: str,
    num_ranks: int,
) -> AbstractContextManager[Recursion | None]:
    """Take a recursion, if there is one, to the step of a batch.

    Args:
        recursion: The recursion; None for independent noise.
        batch: The batch.
        totals: What is summed over ranks, by its parameters.
        segment: The id under which the step is charged.
        num_ranks: How many ranks there are. Of several, each has shares of the totals
            that are cut alike at each step; one has all of them in a single share.
    """
    if recursion is None or batch.in_pass is None:
        return nullcontext()
    return recursion.step(
        batch.in_pass,
        batch.parameters,
        segment=segment,
        num_ranks=num_ranks,
        max_grad_norm=batch.max_grad_norm,
        totals=totals if num_ranks == 1 else None,
    )
