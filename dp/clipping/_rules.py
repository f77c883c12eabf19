"""Clipping rules whose norm is fixed, or follows a schedule.

Shapes: ``B`` examples in a batch, ``G`` groups of parameters that are clipped
together.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from dp import _checks
from dp._typing import NeighboringRelation


__all__ = (
    "AutomaticClipping",
    "Clipping",
    "FlatClipping",
    "PerGroupClipping",
    "PerLayerClipping",
)

# The norm is rounded, and so are the factor and every product with it. Their relative
# errors add up to less than this many units, so the bound holds in exact arithmetic.
_MARGIN_EPS: Final = 16


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


class SingleNormClipping(Clipping):
    """A rule that bounds a gradient by one norm C, of all parameters together."""

    __slots__ = ()

    max_grad_norm: float

    def group_of(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """Return one group for every parameter."""
        return [0] * len(parameters)

    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return ``min(1, C / norm)``, a hair below where it clips."""
        return _at_most(self.max_grad_norm, norms_GB)

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return C, or 2 C where one example may be replaced by another."""
        return _sensitivity(self.max_grad_norm, relation)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FlatClipping(SingleNormClipping):
    """Clip the gradient of all parameters together to one norm.

    >>> import torch
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
        _checks.clipping_norm(max_grad_norm=self.max_grad_norm)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerClipping(SingleNormClipping):
    """Clip the gradient of every parameter tensor to an equal share of one norm.

    Each of G tensors is clipped to ``C / sqrt(G)``, so that all of them together are
    not longer than C.

    >>> import torch
    >>> norms = torch.tensor([[4.0], [0.5]])
    >>> PerLayerClipping(max_grad_norm=2.0).factors(norms)
    tensor([[0.3536],
            [1.0000]])

    Args:
        max_grad_norm: The norm C of all tensors together, in the unit of gradients.

    Raises:
        ValueError: If *max_grad_norm* is not in [1e-18, 1e18].

    Guarantees:
        * As of :class:`FlatClipping`; an example whose norm is not finite in one
          tensor contributes nothing to any.

    References:
        McMahan et al., "Learning Differentially Private Recurrent Language Models",
        2018, section 3, per-layer clipping. https://arxiv.org/abs/1710.06963
    """

    max_grad_norm: float

    def __post_init__(self) -> None:
        _checks.clipping_norm(max_grad_norm=self.max_grad_norm)

    def group_of(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """Return a group for every parameter."""
        return range(len(parameters))

    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return ``min(1, C / (sqrt(G) * norm))``, a hair below where it clips."""
        share = self.max_grad_norm / math.sqrt(max(1, len(norms_GB)))
        return _at_most(share, norms_GB)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PerGroupClipping(Clipping):
    """Clip consecutive parameters of the optimizer together, each group to its norm.

    >>> clipping = PerGroupClipping(group_sizes=(2, 1), max_grad_norms=(3.0, 4.0))
    >>> clipping.sensitivity("add_or_remove_one")
    5.0

    Args:
        group_sizes: How many of the optimizer's trainable parameters belong to each
            group, in the optimizer's order.
        max_grad_norms: The clipping norm of each group, in the unit of gradients.

    Raises:
        ValueError: If the lengths differ, a size is not a whole number of at least 1,
            or a norm is not in [1e-18, 1e18]; when it is used, if the sizes do not
            add up to the number of parameters.

    Guarantees:
        * As of :class:`FlatClipping`, in every group; an example whose norm is not
          finite in one group contributes nothing to any.
    """

    group_sizes: tuple[int, ...]
    max_grad_norms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.group_sizes or len(self.group_sizes) != len(self.max_grad_norms):
            raise ValueError(
                "group_sizes and max_grad_norms must have one entry a group, got"
                f" {self.group_sizes!r} and {self.max_grad_norms!r}"
            )
        for size, bound in zip(self.group_sizes, self.max_grad_norms, strict=True):
            _checks.count(group_size=size)
            _checks.clipping_norm(max_grad_norm=bound)

    def group_of(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """Return the group of each parameter, by their order."""
        if sum(self.group_sizes) != len(parameters):
            raise ValueError(
                f"group_sizes {self.group_sizes!r} must add up to the number of"
                f" trainable parameters, got {len(parameters)} of them"
            )
        return [g for g, size in enumerate(self.group_sizes) for _ in range(size)]

    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return ``min(1, C / norm)`` of each group, a hair below where it clips."""
        bounds_G = norms_GB.new_tensor(self.max_grad_norms)
        bounds_G *= _below_one(norms_GB.dtype)
        return _usable((bounds_G[:, None] / norms_GB).clamp(max=1.0), norms_GB)

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return the norm of the groups' norms, or twice that for a replacement."""
        return _sensitivity(math.hypot(*self.max_grad_norms), relation)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AutomaticClipping(SingleNormClipping):
    """Normalise every gradient, so that there is no norm to tune (AUTO-S).

    >>> import torch
    >>> norms = torch.tensor([[0.0, 0.99, torch.inf]])
    >>> AutomaticClipping(max_grad_norm=1.0).factors(norms)
    tensor([[99.9998,  1.0000,  0.0000]])

    Args:
        max_grad_norm: The norm C that gradients are scaled to, in any unit: the
            learning rate makes up for it.
        stability: What is added to a norm, in the unit of gradients, so that small
            gradients stay small.

    Raises:
        ValueError: If one of them is not in [1e-18, 1e18].

    Guarantees:
        * ``norm * factor < max_grad_norm``, also before rounding.
        * A non-finite norm gets 0.

    References:
        Bu et al., "Automatic Clipping: Differentially Private Deep Learning Made
        Easier and Stronger", 2023, equation (4.1). https://arxiv.org/abs/2206.07136
    """

    max_grad_norm: float
    stability: float = 0.01

    def __post_init__(self) -> None:
        _checks.clipping_norm(max_grad_norm=self.max_grad_norm)
        _checks.clipping_norm(stability=self.stability)

    def factors(self, norms_GB: Float[Tensor, "G B"]) -> Float[Tensor, "G B"]:
        """Return ``C / (norm + stability)``, a hair below."""
        bound = self.max_grad_norm * _below_one(norms_GB.dtype)
        return _usable(bound / (norms_GB + self.stability), norms_GB)


def _at_most(bound: float, norms_GB: Tensor) -> Tensor:
    """Return ``min(1, bound / norm)``, a hair below where it clips."""
    bound *= _below_one(norms_GB.dtype)
    # As ``bound / norms``, which takes twice as long: small batches feel each call.
    return _usable(norms_GB.reciprocal().mul_(bound).clamp_(max=1.0), norms_GB)


def _below_one(dtype: torch.dtype) -> float:
    return 1 - _MARGIN_EPS * torch.finfo(dtype).eps


def _usable(factors_GB: Tensor, norms_GB: Tensor) -> Tensor:
    """Set the factors of examples that have a norm that is not finite to 0, in all groups."""
    # Below the normal numbers a factor may be rounded up by half of itself. A norm
    # that is infinite or NaN has a factor that is 0 or NaN, and so not normal.
    normal_GB = factors_GB >= torch.finfo(norms_GB.dtype).tiny
    if len(norms_GB) > 1:
        normal_GB = normal_GB & norms_GB.isfinite().all(0)
    return factors_GB.masked_fill_(normal_GB.logical_not_(), 0.0)


def _sensitivity(bound: float, relation: NeighboringRelation) -> float:
    return bound * (2.0 if relation == "replace_one" else 1.0)
