"""Compare an example's gradient in its batch with what it is in other company.

In the batch, alone, among copies of itself and beside outliers an example's gradient
must be the same. Copies and outliers keep the shapes, and so the random numbers of each
position: with them a model with dropout can be compared. Alone shows what depends on the
size of the batch. Outliers, which are the other examples multiplied, open gates that the
batch at hand leaves closed, such as a clamp or the largest value of all.

Finite against not finite is a difference. What cannot be compared is counted and told.

Shapes: ``B`` examples in a batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor

from dp.checking._batches import multiplied
from dp.checking._report import Problem
from dp.checking._trial import Trial, differ


__all__ = ("Comparison",)

# How far gradients may differ by rounding, relative to their norm: other sizes of
# batch make torch sum in another order.
_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 2e-3}
_NARROW_TOLERANCE: Final = 0.1
_NEGLIGIBLE: Final = 1e-4  # Of the largest gradient: below it all is rounding.
# What outliers are multiplied with, the first at which all losses stay finite.
_FACTORS: Final = ((1e4, 1e2, 10.0), (1e-4,))

_Grads = list[Tensor]


@final
@dataclass(slots=True, kw_only=True)
class Comparison:
    """The examples of a batch that are compared, and how.

    Attributes:
        trial: The model and its loss.
        batch: The whole batch.
        num_examples: How many examples it holds.
        taken: Returns the batch of the examples at some positions.
        positions: The examples to compare.
        has_take: Whether the caller takes examples out of the batch, so that where they
            are in it is unknown.
    """

    trial: Trial
    batch: Any
    num_examples: int
    taken: Callable[[Sequence[int]], Any]
    positions: Sequence[int]
    has_take: bool = False
    _uncompared: set[int] = field(default_factory=set)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong, one thing at most, and what could not be compared."""
        in_batch = _Evaluation(self.trial, self.batch)
        # Example: 4 examples are compared in the batch 0 1 2 3, then example 2 in 2 2 2
        # 2, then as the one that stays in 0 a 2 b with a and b multiplied by 10 000,
        # then alone.
        norms = [_norm(in_batch.gradient(i)) for i in self.positions]
        if math.inf in norms:
            sound = [
                i
                for i in self.positions
                if math.isfinite(_norm(self._copies(i).gradient(i)))
            ]
            if 1 < len(sound) < self.num_examples:
                yield from self._without_others(sound)
                return
        # An example that is learnt has a gradient of rounding errors alone, which
        # differ by as much as they are long.
        floor = _NEGLIGIBLE * max((n for n in norms if math.isfinite(n)), default=0.0)
        farthest = max(
            self._apart(in_batch, self._copies(i), i, i, floor) for i in self.positions
        )
        if farthest > self._tolerance:
            yield _mixed(
                _said(farthest) + " if the other examples of the batch are exchanged"
            )
        else:
            yield from self._beside_outliers(in_batch, floor)
        if len(self._uncompared) == len(self.positions):
            yield _nothing_compared()
        elif self._uncompared:
            yield _not_all_compared(len(self._uncompared))

    def _copies(self, position: int) -> "_Evaluation":
        return _Evaluation(self.trial, self.taken([position] * self.num_examples))

    def _without_others(self, sound: Sequence[int]) -> Iterator[Problem]:
        """Compare examples that have finite gradients of their own, without the others.

        A row without one spoils the gradients of all in torch's backward pass.
        """
        if len(sound) < len(self.positions):
            yield _not_all_compared(len(self.positions) - len(sound))
        yield from Comparison(
            trial=self.trial,
            batch=self.taken(sound),
            num_examples=len(sound),
            taken=lambda positions: self.taken([sound[i] for i in positions]),
            positions=range(len(sound)),
            has_take=self.has_take,
        ).problems()

    def _apart(
        self,
        one: "_Evaluation",
        other: "_Evaluation",
        here: int,
        there: int,
        floor: float,
    ) -> float:
        """Return how far an example's gradients in two companies are apart.

        It is infinite if one of them is finite and the other is not. In a batch, a
        finite gradient may meet what is not finite in rows of other examples: zero times
        infinity. Then the losses decide.
        """
        left, right = one.gradient(here), other.gradient(there)
        finite = [math.isfinite(_norm(grads)) for grads in (left, right)]
        if all(finite):
            return _distance(left, right, floor)
        # Finite in the batch and not among copies, or with another loss: not by
        # rounding.
        if finite[0] or not _alike(one.losses[here], other.losses[there]):
            return math.inf
        self._uncompared.add(here)
        return 0.0

    def _beside_outliers(
        self, in_batch: "_Evaluation", floor: float
    ) -> Iterator[Problem]:
        farthest, num_batches = 0.0, 0
        for factors in _FACTORS:
            for first in (0, 1):  # Each half is an outlier's company once.
                stay = range(first, self.num_examples, 2)
                company = None if self.has_take else self._multiplied(stay, factors)
                if company is None:
                    continue
                num_batches += 1
                farthest = max(
                    farthest,
                    *(
                        self._apart_from_outliers(in_batch, company, i, floor)
                        for i in self.positions
                        if i in stay
                    ),
                    0.0,
                )
        if farthest > self._tolerance:
            yield _mixed(_said(farthest) + " if other examples become outliers")
            return
        if not num_batches:
            yield Problem(
                severity="note",
                name="no outliers",
                detail="the batch holds no numbers that could be multiplied, so mixing"
                " behind a gate that it leaves closed was not looked for",
                remedy="none is needed; pass a batch with an outlier to see more",
            )
        yield from self._alone(in_batch, floor)

    def _apart_from_outliers(
        self, one: "_Evaluation", other: "_Evaluation", i: int, floor: float
    ) -> float:
        if not _alike(one.losses[i], other.losses[i]):
            return math.inf
        left, right = one.gradient(i), other.gradient(i)
        if not math.isfinite(_norm(left)) or not math.isfinite(_norm(right)):
            return 0.0  # An outlier's own: zero times infinity. The losses agree.
        return _distance(left, right, floor)

    def _multiplied(
        self, stay: Sequence[int], factors: Sequence[float]
    ) -> "_Evaluation | None":
        """Return an evaluation with all others multiplied; None if none is finite."""
        for factor in factors:
            for part in (None, 0, 1, 2, 3):  # All numbers, or else those of one part.
                batch = multiplied(
                    self.batch,
                    factor,
                    stay=stay,
                    num_examples=self.num_examples,
                    only=part,
                )
                if batch is None:
                    break
                try:
                    company = _Evaluation(self.trial, batch)
                except Exception:  # noqa: BLE001, S112 -- as targets out of range may
                    continue
                if bool(company.losses.isfinite().all()):
                    return company
        return None

    def _alone(self, in_batch: "_Evaluation", floor: float) -> Iterator[Problem]:
        if self._is_random():  # Another size of batch draws other numbers.
            self.trial.model.eval()
            if self._is_random():
                yield _not_compared("the losses are random, in eval() mode too")
                return
            in_batch = _Evaluation(self.trial, self.batch)
        try:
            farthest = max(
                self._apart(
                    in_batch, _Evaluation(self.trial, self.taken([i])), i, 0, floor
                )
                for i in self.positions
            )
        except Exception as error:  # noqa: BLE001 -- reported, whatever the model raises
            reason = " ".join(str(error).split())
            yield _not_compared(f"{type(error).__name__}: {reason}")
            return
        if farthest > self._tolerance:
            yield _mixed(_said(farthest) + " if it is the only one in its batch")

    def _is_random(self) -> bool:
        with torch.no_grad():
            first, second = (
                self.trial.losses(self.batch, seed=seed).detach() for seed in (0, 1)
            )
        return differ(first, second)

    @property
    def _tolerance(self) -> float:
        return max(
            _TOLERANCE.get(p.dtype, _NARROW_TOLERANCE) for p in self.trial.parameters
        )


@final
class _Evaluation:
    """The losses of one batch, and the gradient of each."""

    def __init__(self, trial: Trial, batch: Any) -> None:
        self._losses_B = trial.losses(batch)
        self._parameters = trial.parameters
        self.losses = self._losses_B.detach()

    def gradient(self, position: int) -> _Grads:
        """Return the gradient of one example's loss."""
        return list(
            torch.autograd.grad(
                self._losses_B[position],
                self._parameters,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )


def _distance(left: _Grads, right: _Grads, floor: float) -> float:
    """Return how far two gradients are apart, relative to the larger one."""
    apart = _norm([a - b for a, b in zip(left, right, strict=True)])
    scale = max(_norm(left), _norm(right), floor)
    return apart / scale if scale > 0 else 0.0


def _norm(grads: _Grads) -> float:
    """Return the joint norm, infinite if it is not finite."""
    norm = float(torch.stack([g.double().norm() for g in grads]).norm())
    return norm if math.isfinite(norm) else math.inf


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two losses are equal up to rounding; NaN equals itself."""
    tolerance = _TOLERANCE.get(one.dtype, _NARROW_TOLERANCE)
    return bool(
        torch.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    )


def _said(distance: float) -> str:
    if math.isfinite(distance):
        return "an example's gradient changes by more than rounding"
    return (
        "an example's loss changes, or its gradient is finite in one batch and not in"
        " another,"
    )


def _mixed(detail: str) -> Problem:
    return Problem(
        severity="error",
        name="examples are mixed",
        detail=detail,
        remedy="divide no loss by anything of the batch (its size, its tokens, its class"
        " weights), and let no layer look at other examples (BatchNorm, routing with a"
        " capacity)",
    )


def _not_all_compared(num_left: int) -> Problem:
    return _not_compared(
        f"the gradients of {num_left} of the compared examples are not finite",
        name="not all compared",
        remedy="pass examples whose losses and gradients are finite",
    )


def _nothing_compared() -> Problem:
    return Problem(
        severity="error",
        name="nothing compared",
        detail="no example's gradient is finite, so whether examples are mixed could not"
        " be seen",
        remedy="pass examples whose losses and gradients are finite",
    )


def _not_compared(
    reason: str,
    *,
    name: str = "not compared alone",
    remedy: str = "check a copy of the model that is deterministic and takes one example",
) -> Problem:
    return Problem(
        severity="warning",
        name=name,
        detail="whether an example's gradient depends on the others could not be seen"
        f" throughout: {reason}",
        remedy=remedy,
    )
