"""Parts of a parameter that is used several times: as few as may be, and one norm.

Shapes: ``B`` examples, ``P`` elements of a parameter.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from dp.per_sample._parts.embedding import EmbeddingGrads, join_tables
from dp.per_sample._parts.factored import FactoredGrads, concatenated
from dp.per_sample._parts.part import (
    GradPart,
    MaterializedGrads,
    chunked_norms,
    wide,
)
from dp.per_sample._parts.ragged import join_ragged
from dp.per_sample._parts.reparametrized import transposed_back


__all__ = ("merge_uses", "squared_norms_of")

# Units in the last place by which a sum of three terms that cancel may be too small.
_MARGIN: Final = 8.0


def merge_uses(uses: Sequence[GradPart]) -> Sequence[GradPart]:
    """Return the uses of one parameter, with those of a kind as one part.

    The norm is that of the sum over all uses, so a recurrent weight that is used at
    100 steps becomes one product of 100 times as many positions, with one norm.
    """
    uses = join_ragged(uses)
    if len(uses) == 1:
        return uses
    materialized = [u.grads_BP for u in uses if isinstance(u, MaterializedGrads)]
    products = _concatenated([u for u in uses if isinstance(u, FactoredGrads)])
    tables = [use for use in uses if isinstance(use, EmbeddingGrads)]
    joined = (MaterializedGrads, FactoredGrads, EmbeddingGrads)
    others = [use for use in uses if not isinstance(use, joined)]
    if tables:
        others.append(join_tables(tables))
    return [*_added(materialized), *products, *others]


def _concatenated(uses: Sequence[FactoredGrads]) -> list[FactoredGrads]:
    """Return products of as many axes as one product."""
    by_axes: dict[int, list[FactoredGrads]] = {}
    for use in uses:
        by_axes.setdefault(use.left.dim(), []).append(use)
    return [
        same[0] if len(same) == 1 else concatenated(same) for same in by_axes.values()
    ]


def _added(grads: Sequence[Tensor]) -> list[GradPart]:
    """Return the sum of materialized gradients as one part; none if there are none."""
    if len(grads) < 2:  # noqa: PLR2004 -- nothing to add
        return [MaterializedGrads(grads_BP) for grads_BP in grads]
    total_BP = wide(grads[0]) + grads[1]
    for grads_BP in grads[2:]:
        total_BP += grads_BP
    return [MaterializedGrads(total_BP)]


def _is_one_product(head: FactoredGrads | MaterializedGrads) -> bool:
    return isinstance(head, MaterializedGrads) or head.left.dim() == 3  # noqa: PLR2004 -- [B, T, V]


def squared_norms_of(
    parts: Sequence[GradPart], num_samples: int, parameter: Tensor
) -> Tensor:
    """Return the squared norms of the sum of several uses, cross terms included.

    Tied input and output embeddings are common, and large: V by D numbers an example.
    Their norm follows from the three terms of |a + b|^2 without holding a or b.
    """
    if len(parts) == 1:
        return parts[0].squared_norms()
    match [transposed_back(parts[0]), *parts[1:]]:
        case [
            FactoredGrads() | MaterializedGrads() as head,
            EmbeddingGrads() as table,
        ] if _is_one_product(head):
            # Example: a = (3, 0) of the head and b = (-3, 1) of the lookups: 9 + 10 - 2
            # * 9 = 1, which is |(0, 1)|^2.
            cross_B = table.products_with(head)
            whole_B = parts[0].squared_norms() + table.squared_norms()
            # The two may cancel, and leave a small difference of large numbers.
            margin_B = _MARGIN * torch.finfo(whole_B.dtype).eps * whole_B
            return (whole_B + 2 * cross_B).clamp(min=0) + margin_B
        case _:
            return chunked_norms(
                parts, num_samples, parameter.numel(), parameter.device
            )
