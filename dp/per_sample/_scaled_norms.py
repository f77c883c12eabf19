"""Norms of gradients whose coordinates are scaled, each by a number of its own.

Of a linear layer's gradient ``a.T @ g`` with one position, scaled by S, the squared norm
is ``(a * a) @ (S * S) @ (g * g)``, which needs no gradient. All others are computed from
the gradients of a few examples at a time.

Shapes: ``B`` examples, ``I`` by ``O`` a weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp.per_sample._parts.factored import FactoredGrads
from dp.per_sample._parts.part import (
    GradPart,
    chunk_bytes,
    chunks,
    loses_small_factors,
    rounded_up,
    squared_norms,
    wide,
)


__all__ = ("scaled_norms",)

# The parts of a parameter, and where its examples begin in them: they may also hold
# those of other parameters.
Located = tuple[Sequence[GradPart], int]


def scaled_norms(
    located: Sequence[Located],
    scales: Sequence[Tensor],
    group_of: Sequence[int],
    nonfinite_B: Tensor,
) -> Tensor:
    """Return the squared norms of every example's scaled gradient, by group.

    Args:
        located: The parts of each parameter.
        scales: What the elements of its gradients are multiplied by.
        group_of: Its group.
        nonfinite_B: 0 for an example whose loss is finite, or else infinite.
    """
    norms = [nonfinite_B.clone() for _ in range(max(group_of, default=0) + 1)]
    for (parts, first), scale, group in zip(located, scales, group_of, strict=True):
        added_B = _of_one(parts, scale, len(nonfinite_B), first)
        norms[group] += added_B.to(nonfinite_B.device)
    return torch.stack(norms)


def _of_one(
    parts: Sequence[GradPart], scale: Tensor, num_samples: int, first: int
) -> Tensor:
    """Return the squared norms of the sum of the parts of one parameter, scaled."""
    if not parts:
        return scale.new_zeros(num_samples)
    rows = slice(first, first + num_samples)
    if len(parts) == 1 and _is_one_position(parts[0]):
        return _of_products(parts[0], scale, rows)
    norms = []
    for chunk in chunks(num_samples, 4 * scale.numel(), chunk_bytes(scale.device)):
        stop = min(chunk.stop, num_samples)
        examples = slice(first + chunk.start, first + stop)
        gradients = parts[0].gradients(examples)
        for part in parts[1:]:
            gradients = gradients + part.gradients(examples)
        scaled = gradients.reshape(len(gradients), -1) * scale.reshape(-1)
        norms.append(squared_norms(scaled))
    return torch.cat(norms)


def _is_one_position(part: GradPart) -> bool:
    return (
        isinstance(part, FactoredGrads)
        and part.left.dim() == 3  # noqa: PLR2004 -- [B, T, I]
        and part.left.shape[1] == 1
    )


def _of_products(part: GradPart, scale: Tensor, rows: slice) -> Tensor:
    assert isinstance(part, FactoredGrads)  # noqa: S101 -- see _is_one_position
    left_BI = wide(part.left[rows, 0]).square()
    right_BO = wide(part.right[rows, 0]).square()
    if loses_small_factors(left_BI.sum(1), right_BO.sum(1)):
        left_BI = part.left[rows, 0].double().square()
        right_BO = part.right[rows, 0].double().square()
        scale = scale.double()
    left_BI, right_BO = rounded_up(left_BI, 1), rounded_up(right_BO, 1)
    norms_B: Tensor = torch.linalg.vecdot(left_BI @ scale.square(), right_BO)
    # Sums of I and of O terms of one sign: each rounds by a unit a term, at most.
    eps = torch.finfo(norms_B.dtype).eps
    return norms_B * (1 + eps * (left_BI.shape[1] + right_BO.shape[1] + 8))
