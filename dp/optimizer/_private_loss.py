"""A scalar loss whose ``backward()`` is a private one, and what trainers do to it.

Trainers scale a loss before they differentiate it: a gradient scaler by some 65536,
gradient accumulation by ``1 / k``. What they did arrives at the :class:`PrivateLoss`
as a gradient, and is divided out again before clipping, so it changes no result.
Trainers also look at ``p.grad``, where no gradient without noise may ever be: a
:class:`Placeholder` is what they find there.

Shapes: ``B`` examples in a batch.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor


__all__ = ("LossScale", "Placeholder", "PrivateLoss", "private_loss")


def private_loss(losses_B: Tensor, backward: Callable[[float], None]) -> Tensor:
    """Return the mean loss; its ``backward()`` calls *backward* with what arrives.

    No loss at all has mean 0, since an empty batch is a batch.
    """
    mean = losses_B.detach().sum() / max(len(losses_B), 1)
    anchor = mean.requires_grad_()
    loss: Tensor = PrivateLoss.apply(anchor, backward)  # type: ignore[no-untyped-call]  # torch has no types
    return loss


@final
class PrivateLoss(torch.autograd.Function):
    """Run a private backward pass when autograd reaches the scalar loss."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, backward: Callable[[float], None]) -> Tensor:
        """Keep *backward* for later; the value is the anchor's."""
        ctx.private_backward = backward
        return anchor.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        """Hand over the gradient that arrived: a number, made by the trainer alone."""
        (gradient,) = gradients
        with torch.enable_grad():
            ctx.private_backward(gradient.item())
        return None, None


@final
class LossScale:
    """By what the losses of a step were multiplied before their backward pass.

    Guarantees:
        * Scales are powers of two, so that they change no result, unless a gradient
          leaves the range of its dtype.
        * A scale that grows by itself is sent back where it started. Whether a scale
          overflows is decided by the largest gradient of one example; nothing that is
          decided by it, a skipped step or another scale, may be seen.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self.all_scaled = True  # For every backward pass of this step.

    def power_of_two_for(
        self, arrived: float | None, *, expected_batch_size: float
    ) -> float:
        """Return the power of two to differentiate with, as a mean loss would see it.

        Args:
            arrived: What a trainer multiplied the mean loss with; None if it never
                had one.
            expected_batch_size: By which a mean loss divides.

        Raises:
            ValueError: If *arrived* is not a scale.
        """
        if arrived is None:
            return 1.0
        if not (math.isfinite(arrived) and arrived > 0):
            raise ValueError(
                f"the gradient that reached the private loss is {arrived!r}; only a"
                " scale above 0 may be applied to it, and is divided out again. Weigh"
                " or negate the vector of losses before private_loss instead"
            )
        if self._first is None:
            self._first = arrived
        exponent = math.floor(math.log2(arrived / expected_batch_size))
        return 2.0 ** max(exponent, 0)

    def has_grown(self, arrived: float | None) -> bool:
        """Whether a scaler grew its scale, which the caller should send back."""
        first = 1.0 if self._first is None else max(self._first, 1.0)
        return arrived is not None and arrived > first

    def __reduce__(self) -> tuple[object, ...]:
        return LossScale, ()  # A copy is trained by another trainer.


@final
class Placeholder:
    """A gradient of zeros on one parameter, while the real ones are kept secret.

    A gradient scaler needs some gradient to have looked at; a trainer that clears
    gradients on the model, behind the optimizer's back, clears this one.
    """

    def __init__(self) -> None:
        self._parameter: Tensor | None = None
        self._written: weakref.ref[Tensor] | None = None

    def clear(self, parameters: Sequence[Tensor]) -> None:
        """Clear every gradient: none of them is of the batch at hand."""
        for parameter in parameters:
            parameter.grad = None
        self._parameter = None

    def put(self, parameters: Sequence[Tensor], *, value: float) -> None:
        """Clear every gradient, and leave a placeholder on the smallest parameter."""
        self.clear(parameters)
        self._parameter = min(parameters, key=Tensor.numel, default=None)
        if self._parameter is not None:
            self._parameter.grad = torch.full_like(self._parameter, value)

    def has_foreign_grads(self, parameters: Sequence[Tensor]) -> bool:
        """Whether gradients of somebody else came since the last :meth:`clear`."""
        grads = [p.grad for p in parameters if p is not self._parameter]
        return any(grad is not None and bool(grad.any()) for grad in grads)

    def is_gone(self) -> bool:
        """Whether somebody set the gradients to None since :meth:`put`."""
        return self._parameter is not None and self._parameter.grad is None

    def remove(self) -> None:
        """Forget it: what stands there now is a released gradient, or nothing."""
        self._parameter = None

    def mark_released(self, parameters: Sequence[Tensor]) -> None:
        """Remember that the gradients of *parameters* were released by a step."""
        self.remove()
        grads = [p.grad for p in parameters if p.grad is not None]
        self._written = weakref.ref(grads[0]) if grads else None

    def all_foreign(self, parameters: Sequence[Tensor]) -> bool:
        """Whether all gradients were set by somebody else than this object's owner."""
        ours = {id(self._parameter.grad)} if self._parameter is not None else set()
        if self._written is not None:
            ours.add(id(self._written()))
        grads = [p.grad for p in parameters]
        return bool(grads) and not any(g is None or id(g) in ours for g in grads)

    def __reduce__(self) -> tuple[object, ...]:
        return Placeholder, ()  # The batch at hand is not copied either.
