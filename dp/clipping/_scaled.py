"""Clip gradients in the geometry of an adaptive optimizer (scale-then-privatize).

Shapes: ``B`` examples in a batch, ``G`` groups of parameters, of which there is one.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dp import _checks
from dp.clipping._rules import SingleNormClipping


__all__ = ("ScaledClipping",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledClipping(SingleNormClipping):
    """Clip and noise each coordinate on the scale that the optimizer has for it.

    With v the second moments of gradients that the wrapped optimizer keeps, of the steps
    before, every example's gradient is multiplied by ``s = 1 / (sqrt(v + root_stability)
    + stability)``; the products are clipped to C, summed and noised; and the noisy sum
    is divided by s. What the optimizer gets is a gradient, whose noise is small where
    gradients are.

    It needs an optimizer with second moments: Adam, AdamW, NAdam, RAdam, RMSprop or
    Adagrad of ``torch.optim``. Before the first step v is 0, and gradients are clipped to
    ``C * stability``, as by flat clipping: take a usual norm of gradients there, or less.
    Were *stability* as small as in Adam, these clipped gradients would be as small, v
    would stay near 0, and nothing would ever be scaled.

    Where it helps: its authors found it better than all other private forms of Adam
    that they tried, on a small language model. Where it hurts: norms of scaled gradients
    take the gradients of single examples, a few at a time, in layers with several
    positions, and so about as long as clipping did before it was done without them.

    >>> import torch
    >>> clipping = ScaledClipping(max_grad_norm=1.0, stability=1.0)
    >>> clipping.scale(torch.tensor([0.0, 9.0]))
    tensor([1.0000, 0.2500])

    Args:
        max_grad_norm: The norm C of scaled gradients, which have no unit.
        stability: What is added to the root of v, in the unit of gradients. Small, it
            spares coordinates whose gradients are small; large, it is
            :class:`FlatClipping` at ``C * stability``.
        root_stability: What is added to v under the root.

    Raises:
        ValueError: If a number is out of range.
        UnsupportedOperationError: When it is used, if the optimizer keeps no second
            moments that are known, or if its parameters are sharded.

    Guarantees:
        * ``norm * factor <= max_grad_norm`` for the norm of the scaled gradient.
        * Scales are functions of what was released, so dividing by them is
          post-processing: epsilon is the plan's.

    References:
        Ganesh, McMahan and Thakurta, "On Design Principles for Private Adaptive
        Optimizers", 2025, Algorithm 8. https://arxiv.org/abs/2507.01129
    """

    max_grad_norm: float
    stability: float = 0.01
    root_stability: float = 0.0

    def __post_init__(self) -> None:
        _checks.clipping_norm(max_grad_norm=self.max_grad_norm)
        _checks.positive(stability=self.stability)
        _checks.non_negative(root_stability=self.root_stability)

    def scale(self, second_moment: Tensor) -> Tensor:
        """Return what each coordinate is multiplied by, in float32 at least."""
        wide = second_moment.to(torch.promote_types(second_moment.dtype, torch.float32))
        return ((wide + self.root_stability).sqrt() + self.stability).reciprocal()
