"""A scalar loss whose ``backward()`` is a private one.

Trainers scale a loss before they differentiate it: a gradient scaler by some 65536,
gradient accumulation by ``1 / k``. What they did arrives at the :class:`PrivateLoss`
as a gradient, and is divided out again before clipping, so it changes no result.
"""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor


__all__ = ("PrivateLoss", "power_of_two_for", "private_loss")


def private_loss(losses: Tensor, backward: Callable[[float], None]) -> Tensor:
    """Return the mean loss; its ``backward()`` calls *backward* with its gradient.

    No loss at all has mean 0, since an empty batch is a batch.
    """
    mean = losses.detach().sum() / max(losses.numel(), 1)
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
        """Pass on the incoming scalar: the trainer's scale, which no data went into."""
        # Autograd runs this where it finds it, with gradients disabled; the per-example
        # pass below it needs them.
        (gradient,) = gradients
        with torch.enable_grad():
            ctx.private_backward(gradient.item())
        return None, None


def power_of_two_for(scale: float | None, *, expected_batch_size: float) -> float:
    """Return the power of two to differentiate with, as a mean loss would see it.

    A power of two changes no result, unless a gradient leaves the range of its dtype.

    Args:
        scale: What a trainer multiplied the mean loss with; None if it never had one.
        expected_batch_size: By which a mean loss divides.

    Raises:
        ValueError: If *scale* is not above 0 and finite.
    """
    if scale is None:
        return 1.0
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(
            f"the gradient that reached the private loss is {scale!r}; only a"
            " scale above 0 may be applied to it, and is divided out again. Weigh"
            " or negate the vector of losses before private_loss instead"
        )
    exponent = math.floor(math.log2(scale / expected_batch_size))
    return 2.0 ** max(exponent, 0)
