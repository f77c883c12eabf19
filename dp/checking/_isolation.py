"""Compare an example's gradient in its batch with what it is in other company.

In the batch, alone, and among copies of itself an example's gradient must be the same.
Copies keep the shapes, and so the random numbers of each position: with them a model
with dropout can be compared. Alone shows what depends on the size of the batch.

Shapes: ``B`` examples in a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from dp.checking._report import Problem
from dp.checking._trial import Trial, differ


__all__ = ("Comparison",)

# How far gradients may differ by rounding, relative to their norm: other sizes of
# batch make torch sum in another order.
_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 2e-3}
_NARROW_TOLERANCE: Final = 0.1
_NEGLIGIBLE: Final = 1e-4  # Of the largest gradient: below it all is rounding.

_Grads = list[Tensor]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The examples of a batch that are compared, and how.

    Attributes:
        trial: The model and its loss.
        batch: The whole batch.
        num_examples: How many examples it holds.
        taken: Returns the batch of the examples at some positions.
        positions: The examples to compare.
    """

    trial: Trial
    batch: Any
    num_examples: int
    taken: Callable[[Sequence[int]], Any]
    positions: Sequence[int]

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong: nothing, or one thing."""
        in_batch = _Gradients(self.trial, self.batch)
        floor = _NEGLIGIBLE * max(_norm(in_batch.of(i)) for i in self.positions)
        distance = max(
            _distance(in_batch.of(i), self._among_copies(i), floor)
            for i in self.positions
        )
        if distance > _tolerance(self.trial.parameters):
            yield _mixed(
                f"an example's gradient changes by {distance:.0%} of its norm if the"
                " other examples of the batch are exchanged"
            )
        else:
            yield from self._alone(floor)

    def _among_copies(self, position: int) -> _Grads:
        copies = self.taken([position] * self.num_examples)
        return _Gradients(self.trial, copies).of(position)

    def _alone(self, floor: float) -> Iterator[Problem]:
        if self._is_random():  # Another size of batch draws other numbers.
            self.trial.model.eval()
            if self._is_random():
                yield _not_compared("the losses are random, in eval() mode too")
                return
        in_batch = _Gradients(self.trial, self.batch)
        try:
            distance = max(
                _distance(
                    in_batch.of(i), _Gradients(self.trial, self.taken([i])).of(0), floor
                )
                for i in self.positions
            )
        except Exception as error:  # noqa: BLE001 -- reported, whatever the model raises
            reason = " ".join(str(error).split())
            yield _not_compared(f"{type(error).__name__}: {reason}")
            return
        if distance > _tolerance(self.trial.parameters):
            yield _mixed(
                f"an example's gradient changes by {distance:.0%} of its norm if it is"
                " the only one in its batch"
            )

    def _is_random(self) -> bool:
        with torch.no_grad():
            first, second = (
                self.trial.losses(self.batch, seed=seed).detach() for seed in (0, 1)
            )
        return differ(first, second)


@final
class _Gradients:
    """The gradients of one evaluation, an example at a time."""

    def __init__(self, trial: Trial, batch: Any) -> None:
        self._losses_B = trial.losses(batch)
        self._parameters = trial.parameters

    def of(self, position: int) -> _Grads:
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
    """Return the joint norm; 0 if it is not finite, as clipping makes it."""
    norm = float(torch.stack([g.double().norm() for g in grads]).norm())
    return norm if norm < float("inf") else 0.0


def _tolerance(parameters: Sequence[Tensor]) -> float:
    return max(_TOLERANCE.get(p.dtype, _NARROW_TOLERANCE) for p in parameters)


def _mixed(detail: str) -> Problem:
    return Problem(
        severity="error",
        name="examples are mixed",
        detail=detail,
        remedy="divide no loss by anything of the batch (its size, its tokens, its class"
        " weights), and let no layer look at other examples (BatchNorm, routing with a"
        " capacity)",
    )


def _not_compared(reason: str) -> Problem:
    return Problem(
        severity="warning",
        name="not compared alone",
        detail="whether an example's gradient depends on the size of its batch could"
        f" not be seen: {reason}",
        remedy="check a copy of the model that is deterministic and takes one example",
    )
