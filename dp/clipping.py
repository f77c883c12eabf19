"""Bound how much one example can move the gradient.

A rule turns the norms of the examples' gradients into factors; the sum of gradients
times factors then has a known L2 sensitivity. Noise is not added here
(:mod:`dp.noise`), and norms are computed elsewhere (:mod:`dp.per_sample`).

Shapes: ``B`` examples in a batch, ``G`` groups of parameters that are clipped
together.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from dp import _checks
from dp._typing import NeighboringRelation


__all__ = ("Clipping", "FlatClipping")

# The norm is rounded, and so are the factor and every product with it. Their relative
# errors add up to less than this many units, so the bound holds in exact arithmetic.
_MARGIN_EPS: Final = 16
# Beyond these, the square of a norm near the bound underflows or overflows in float32.
_SMALLEST: Final = 1e-18
_LARGEST: Final = 1e18


class Clipping(ABC):
    """A rule that bounds each example's contribution."""

    @abstractmethod
    def group_of(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """Return the group of each parameter: 0, 1, ... without a gap."""

    @abstractmethod
    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return what each example's gradient is multiplied with, group by group.

        Guarantees:
            * An example whose norm is not finite gets 0 in every group.
        """

    @abstractmethod
    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return how far neighbouring datasets' clipped sums can lie apart in L2."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FlatClipping(Clipping):
    """Clip the gradient of all parameters together to one norm.

    >>> norms = torch.tensor([[0.0, 0.5, 4.0, torch.inf]])
    >>> FlatClipping(max_grad_norm=2.0).factors(norms)
    tensor([[1.0000, 1.0000, 0.5000, 0.0000]])

    Args:
        max_grad_norm: The clipping norm C, in the unit of gradients.

    Raises:
        ValueError: If *max_grad_norm* is not in [1e-18, 1e18].

    Guarantees:
        * ``norm * factor <= max_grad_norm``, also before rounding.
        * A factor is in [0, 1]; a zero gradient gets 1, a non-finite norm gets 0.

    References:
        Abadi et al., "Deep Learning with Differential Privacy", 2016, Algorithm 1.
        https://arxiv.org/abs/1607.00133
    """

    max_grad_norm: float

    def __post_init__(self) -> None:
        _checks.positive(max_grad_norm=self.max_grad_norm)
        if not _SMALLEST <= self.max_grad_norm <= _LARGEST:
            raise ValueError(
                f"max_grad_norm must be in [{_SMALLEST:g}, {_LARGEST:g}], where squares"
                f" are float32 numbers, got {self.max_grad_norm!r}; scale the loss"
            )

    def group_of(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """Return one group for every parameter."""
        return [0] * len(parameters)

    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return ``min(1, C / norm)``, a hair below where it clips."""
        margin = _MARGIN_EPS * torch.finfo(norms_GB.dtype).eps
        bound = self.max_grad_norm * (1 - margin)
        factors_GB = (bound / norms_GB).clamp(max=1.0)
        # Below the normal numbers a factor may be rounded up by half of itself.
        usable_GB = norms_GB.isfinite() & (
            factors_GB >= torch.finfo(norms_GB.dtype).tiny
        )
        return torch.where(usable_GB, factors_GB, 0.0)

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return C, or 2 C where one example may be replaced by another."""
        return self.max_grad_norm * (2.0 if relation == "replace_one" else 1.0)
